"""Data preparation: from audio to features and tokens."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from icefall_pathways.corpora.registry import CorpusName, get_corpus
from icefall_pathways.languages import parse_languages
from icefall_pathways.ranges import Options, PositiveFloat, PositiveInt, Seed, Share, Stage
from icefall_pathways.recipe.jobs import Job, Step
from icefall_pathways.recipe.programs import as_typed, option_words, program


@dataclass(frozen=True)
class PrepareConfig(Options):
    """Options of the data preparation."""

    stage: Stage = 0
    """First stage to run."""

    stop_stage: Stage = 100
    """Last stage to run."""

    corpus: CorpusName = "mini"
    """mini: the embedded corpus, synthesized; mls: Multilingual LibriSpeech or any folder in its layout."""

    corpus_dir: str = ""
    """Folder of the corpus, existing or to be created. Empty: download/<corpus>."""

    languages: str = "en fr it nl"
    """Languages, separated by spaces; an unsupported one is reported with those that the corpus offers."""

    data_dir: Path = Path("data")
    """Folder for manifests, features and tokens."""

    vocab_size: PositiveInt = 500
    """Number of tokens of the vocabulary that all languages share."""

    subset: str = "train"
    """mls: training data, train (all) or limited supervision: 10hr, or its parts 9hr and 1hr."""

    audio_format: str = "opus"
    """mls: archives to download, opus or flac."""

    base_url: str = ""
    """mls: URL of a mirror to download from. Empty: OpenSLR."""

    musan_dir: str = ""
    """Folder of MUSAN, for noise augmentation. Empty: none."""

    store_feats: bool = True
    """Store features. 0: compute them in training (train.py --on-the-fly-feats 1)."""

    perturb_speed: bool = False
    """Add copies of the training data at 0.9 and 1.1 times the speed."""

    max_dropped_share: Share = 0.1
    """Fail if a split of a language loses more than this share of its utterances."""

    hours_per_language: PositiveFloat = 0.4
    """mini: hours of training speech per language."""

    hours: str = ""
    """mini: hours of training speech of some languages, such as "en=2 it=0.5"."""

    content: str = "numbers calendar"
    """mini: kinds of sentences, see make_mini_corpus.py --help."""

    dev_utterances: PositiveInt = 60
    """mini: dev utterances per language."""

    test_utterances: PositiveInt = 120
    """mini: test utterances per language."""

    seed: Seed = 42
    """mini: seed of sentences and speakers."""

    num_jobs: int = 0
    """Number of processes; 0 uses all cores."""

    dry_run: bool = False
    """Print the jobs with their commands and done marks, and run nothing."""

    @property
    def corpus_folder(self) -> str:
        """Folder of the corpus."""
        return self.corpus_dir or f"download/{self.corpus}"


@dataclass(frozen=True)
class _Stage:
    """A stage of the preparation.

    Attributes:
      index: Number of the stage, for --stage and --stop-stage.
      name: Name of its job.
      title: Printed when it starts.
      options: Options that its result depends on; they are stored in its done mark.
      command: Program and arguments; empty if there is nothing to do.
      variant: Suffix of the done mark, for a stage that can be run with several values of an option.
      message: Printed before the command runs.
    """

    index: int
    name: str
    title: str
    options: str
    command: tuple[str, ...]
    variant: str = ""
    message: str = ""


def prepare_jobs(config: PrepareConfig) -> list[Job]:
    """Return the jobs of the selected stages; each depends on the previous one.

    Raises:
      ValueError: A stage was finished in this folder with other options, the MUSAN folder does not exist, or the
        corpus does not offer a language.
    """
    get_corpus(config.corpus).check_languages(parse_languages(config.languages))
    jobs: list[Job] = []
    for stage in _stages(config):
        if not config.stage <= stage.index <= config.stop_stage:
            continue
        mark = config.data_dir / f".done-{stage.index}{stage.variant}"
        step = Step(stage.command, mark, stage.options, stage.message)
        if mark.exists() and not step.is_done():
            stored = mark.read_text(encoding="utf-8").strip()
            raise ValueError(
                f"stage {stage.index} ({stage.title}) was finished in {config.data_dir} with other options: "
                f"({stored}), now ({stage.options}); use another --data-dir, or remove {config.data_dir}"
            )
        after = (jobs[-1].name,) if jobs else ()
        heading = f"Stage {stage.index}{stage.variant}: {stage.title}"
        jobs.append(Job(stage.name, (step,), after, heading=heading))
    return jobs


def _stages(config: PrepareConfig) -> Iterator[_Stage]:
    corpus = _corpus_options(config)
    speed = str(int(config.perturb_speed))
    command, message = _corpus_command(config)
    yield _Stage(0, "corpus", "get the corpus", corpus, command, message=message)
    yield _Stage(1, "manifests", "manifests", corpus, _manifests_command(config))
    if config.musan_dir:
        yield _Stage(2, "musan-manifests", "MUSAN manifests", config.musan_dir, _musan_manifests_command(config))
    features = f"{corpus} {speed}" if config.store_feats else f"{corpus} {speed}, not stored"
    yield _Stage(3, "features", "features, validation, statistics", features, _features_command(config))
    if config.musan_dir:
        yield _Stage(4, "musan-features", "MUSAN features", config.musan_dir, _musan_features_command(config))
    title = f"SentencePiece, {config.vocab_size} tokens"
    yield _Stage(5, "tokens", title, f"{corpus} {speed}", _tokens_command(config), f"-{config.vocab_size}")


def _corpus_options(config: PrepareConfig) -> str:
    """Return the options that determine the content of the corpus, as done marks of existing data folders hold them."""
    values = [as_typed(getattr(config, name)) for name in get_corpus(config.corpus).content_options]
    return " ".join([config.corpus, config.corpus_folder, config.languages, *values])


def _corpus_command(config: PrepareConfig) -> tuple[tuple[str, ...], str]:
    """Return the command, or no command and a message if the corpus exists.

    Raises:
      ValueError: The corpus cannot be downloaded or synthesized, and --corpus-dir is not an existing folder.
    """
    spec = get_corpus(config.corpus)
    if not spec.synthetic and config.corpus_dir and Path(config.corpus_dir).is_dir():
        return (), f"The corpus is in {config.corpus_dir}"
    if spec.acquire_command is None:
        raise ValueError(
            f"--corpus {spec.name} cannot be downloaded: expected an existing folder as --corpus-dir, found "
            f"{config.corpus_dir!r}"
        )
    words = () if spec.acquire_command != "get_corpus" else option_words(corpus=config.corpus)
    words += option_words(corpus_dir=config.corpus_folder, languages=config.languages)
    values = {name: getattr(config, name) for name in spec.acquire_options}
    words += option_words(**{name: value for name, value in values.items() if value != ""})  # "" is the default
    return program("local", spec.acquire_command) + words, ""


def _manifests_command(config: PrepareConfig) -> tuple[str, ...]:
    return program("local", "prepare_manifests") + option_words(
        corpus=config.corpus,
        corpus_dir=config.corpus_folder,
        output_dir=config.data_dir / "manifests",
        languages=config.languages,
        subset=config.subset,
        max_dropped_share=config.max_dropped_share,
        num_jobs=config.num_jobs,
    )


def _features_command(config: PrepareConfig) -> tuple[str, ...]:
    return program("local", "compute_fbank") + option_words(
        manifest_dir=config.data_dir / "manifests",
        output_dir=config.data_dir / "fbank",
        languages=config.languages,
        store_feats=config.store_feats,
        perturb_speed=config.perturb_speed,
        max_dropped_share=config.max_dropped_share,
        num_jobs=config.num_jobs,
    )


def _musan_manifests_command(config: PrepareConfig) -> tuple[str, ...]:
    if not Path(config.musan_dir).is_dir():
        raise ValueError(f"--musan-dir {config.musan_dir}: expected an existing folder")
    lhotse = str(Path(sys.executable).with_name("lhotse"))
    return lhotse, "prepare", "musan", config.musan_dir, str(config.data_dir / "manifests")


def _musan_features_command(config: PrepareConfig) -> tuple[str, ...]:
    return program("local", "compute_fbank_musan") + option_words(
        manifest_dir=config.data_dir / "manifests", output_dir=config.data_dir / "fbank", num_jobs=config.num_jobs
    )


def _tokens_command(config: PrepareConfig) -> tuple[str, ...]:
    return program("local", "train_bpe") + option_words(
        cuts_dir=config.data_dir / "fbank",
        languages=config.languages,
        vocab_size=config.vocab_size,
        output_dir=config.data_dir / f"lang_bpe_{config.vocab_size}",
    )
