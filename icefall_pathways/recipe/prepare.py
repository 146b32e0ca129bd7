"""Data preparation: from audio to features and tokens."""

import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Literal

from icefall_pathways.corpora.registry import CorpusName, get_corpus
from icefall_pathways.data.sample_config import SampleConfig
from icefall_pathways.files import read_text
from icefall_pathways.languages import LanguageCode, codes_of, is_language_code, parse_languages
from icefall_pathways.ranges import PositiveFloat, PositiveInt, Seed, Share, Stage
from icefall_pathways.recipe.corpus_options import CorpusOptions
from icefall_pathways.recipe.jobs import Job, Step
from icefall_pathways.recipe.programs import as_typed, option_words, program
from icefall_pathways.sharding.executors import ArrayPart, ExecutionConfig

_SHARDED_STAGES = (1, 3, 7)
_RETRAINED = ", retrained on "  # in the done marks of tokenizer and index, followed by the tokenizer's languages


@dataclass(frozen=True)
class PrepareConfig(CorpusOptions, ExecutionConfig, SampleConfig):
    """Options of the data preparation."""

    stage: Stage = 0
    """First stage to run."""

    stop_stage: Stage = 100
    """Last stage to run."""

    corpus: CorpusName = "mini"
    """mini: the embedded corpus, synthesized; mls: Multilingual LibriSpeech or any folder in its layout; folder: clips
    in a folder per language, implied by --corpus-dir; manifests: Lhotse manifests, implied by --manifests; stamps:
    phrases of Tux Paint in nine languages."""

    manifests: str = ""
    """manifests: folders of Lhotse manifests, separated by spaces."""

    manifest_weights: str = ""
    """manifests: a weight for the sampling of each folder, such as "1 0.5". Empty: 1 for all."""

    language_map: str = ""
    """manifests: languages by the names that supervisions use, such as "Castilian=es,none=fr"."""

    audio_format: str = "opus"
    """mls: archives to download, opus or flac."""

    base_url: str = ""
    """mls: URL of a mirror to download from. Empty: OpenSLR."""

    keep_case: bool = False
    """Keep upper-case letters in transcripts, of a corpus that has them. 0: convert them to lower case."""

    keep_punctuation: bool = False
    """Keep the punctuation of sentences in transcripts, of a corpus that has it. 0: remove it."""

    musan_dir: str = ""
    """Folder of MUSAN, for noise augmentation. Empty: none."""

    store_feats: bool = True
    """Store features. 0: compute them in training (train.py --on-the-fly-feats 1)."""

    store: Literal["files", "shar"] = "files"
    """shar: also copy the training cuts to shuffled tar files, for sequential reading (train.py --from-shar 1)."""

    perturb_speed: bool = False
    """Add copies of the training data at 0.9 and 1.1 times the speed."""

    max_dropped_share: Share = 0.1
    """Fail if a split of a language loses more than this share of its utterances."""

    hours_per_language: PositiveFloat = 0.4
    """mini: hours of training speech per language."""

    content: str = "numbers calendar"
    """mini: kinds of sentences, see make_mini_corpus.py --help."""

    dev_utterances: PositiveInt = 60
    """mini: dev utterances per language."""

    test_utterances: PositiveInt = 120
    """mini: test utterances per language."""

    seed: Seed = 42
    """mini: seed of sentences and speakers."""

    retrain_tokenizer: bool = False
    """Train the tokenizer again on --languages. 0: keep an existing one, which trained models depend on."""

    dry_run: bool = False
    """Print the jobs with their commands and done marks, and run nothing."""

    @property
    def corpus_folder(self) -> str:
        """Folder of the corpus."""
        return self.manifests or self.corpus_dir or f"download/{self.corpus}"


def implied_corpus(config: PrepareConfig, default: PrepareConfig) -> PrepareConfig:
    """Return the defaults with the corpus that --manifests or --corpus-dir imply."""
    corpus = "manifests" if config.manifests else corpus_of_folder(config.corpus_dir)
    return replace(default, corpus=corpus) if corpus else default


def corpus_of_folder(corpus_dir: str) -> str | None:
    """Return "folder" if --corpus-dir is a folder with subfolders, but not one in the layout of MLS."""
    folder = Path(corpus_dir)
    subfolders = [path.name for path in folder.iterdir() if path.is_dir()] if corpus_dir and folder.is_dir() else []
    return "folder" if subfolders and not any(name.startswith("mls_") for name in subfolders) else None


def default_languages(config: PrepareConfig, default: PrepareConfig) -> PrepareConfig:
    """Return the defaults with the languages of the corpus.

    Raises:
      ValueError: They cannot be determined.
    """
    if config.languages != default.languages:
        return default
    return replace(default, languages=languages_of_corpus(config))


def languages_of_corpus(config: PrepareConfig) -> str:
    """Return the languages to prepare unless others are selected: those of the corpus folder, or of the corpus.

    Raises:
      ValueError: The corpus folder has none.
    """
    spec = get_corpus(config.corpus)
    if spec.languages is not None or not _has_corpus(config):
        return " ".join(spec.default_languages)
    options = {name: getattr(config, name) for name in spec.manifest_options}
    return " ".join(spec.load().discover_languages(Path(config.corpus_folder), **options))


@dataclass(frozen=True)
class _Stage:
    """A stage of the preparation.

    Attributes:
      index: Number of the stage, for --stage and --stop-stage.
      name: Name of its job.
      title: Printed when it starts.
      options: Options that its result depends on, besides the languages; they are stored in its done marks.
      command: Returns program and arguments for a list of languages; empty if there is nothing to do.
      per_language: It has a done mark for each language instead of a single one.
      variant: Suffix of the done marks, for a stage that can be run with several values of an option.
      message: Printed before the command runs.
    """

    index: int
    name: str
    title: str
    options: tuple[str, ...]
    command: Callable[[str], tuple[str, ...]]
    per_language: bool = True
    variant: str = ""
    message: str = ""

    @property
    def mark(self) -> str:
        """Name of its done mark; a language has a suffix."""
        return f".done-{self.index}{self.variant}"

    @property
    def mark_text(self) -> str:
        """Content of its done marks."""
        return " ".join(self.options)

    def languages_of(self, previous_mark: str) -> list[LanguageCode]:
        """Return the languages of a mark of previous versions, which is one for all languages; [] if options differ."""
        corpus, folder, *options = self.options
        rest = " ".join(options).partition(_RETRAINED)[0]
        pattern = " ".join([re.escape(f"{corpus} {folder}"), "(.+?)", re.escape(rest)])
        match = re.fullmatch(pattern, previous_mark)
        return codes_of(match[1]) if match else []


def prepare_jobs(config: PrepareConfig) -> list[Job]:
    """Return the jobs of the selected stages; each depends on the previous one.

    Raises:
      ValueError: A stage was finished in this folder with other options, the MUSAN folder does not exist, the corpus
        does not offer a language or has no case or punctuation to keep, or --shard is not K/N or used with several
        stages.
    """
    spec = get_corpus(config.corpus)
    spec.check_languages(parse_languages(config.languages))
    spec.text_options(config.keep_case, config.keep_punctuation)
    ArrayPart.parse(config.shard)  # here, because a job that fails adds a second message
    if config.shard and not (config.stage == config.stop_stage and config.stage in _SHARDED_STAGES):
        expected = " or ".join(f"--stage {stage} --stop-stage {stage}" for stage in _SHARDED_STAGES)
        raise ValueError(f"--shard {config.shard} needs one stage that is divided into shards: expected {expected}")
    jobs: list[Job] = []
    for stage in _stages(config):
        if config.stage <= stage.index <= config.stop_stage:
            after = (jobs[-1].name,) if jobs else ()
            heading = f"Stage {stage.index}{stage.variant}: {stage.title}"
            jobs.append(Job(stage.name, (_step(config, stage),), after, heading=heading))
    return jobs


def _step(config: PrepareConfig, stage: _Stage) -> Step:
    """Return the step of a stage, for the languages that it is not finished for."""
    languages = codes_of(config.languages)
    finished = _finished_languages(config, stage)
    missing = [language for language in languages if language not in finished]
    command = stage.command(" ".join(missing)) if missing else ()
    if config.shard:
        return Step(command)
    names = [f"{stage.mark}-{language}" for language in languages] if stage.per_language else [stage.mark]
    mark, *more_marks = (config.data_dir / name for name in names)
    return Step(command, mark, stage.mark_text, stage.message, tuple(more_marks))


def _finished_languages(config: PrepareConfig, stage: _Stage) -> set[LanguageCode]:
    """Return the languages that a stage is finished for.

    Raises:
      ValueError: It was finished with other options, for these or other languages.
    """
    finished: set[LanguageCode] = set()
    for mark in sorted(config.data_dir.glob(f"{stage.mark}*")):
        suffix = mark.name.removeprefix(stage.mark).removeprefix("-")
        if suffix and not is_language_code(suffix):
            continue  # of another variant
        text = read_text(mark).strip()
        languages = [LanguageCode(suffix)] if suffix else codes_of(config.languages)
        if stage.per_language and not suffix:
            languages = stage.languages_of(text)
        elif text.partition(_RETRAINED)[0] != stage.mark_text.partition(_RETRAINED)[0]:
            languages = []
        if not languages:
            raise ValueError(
                f"stage {stage.index} ({stage.title}) was finished in {config.data_dir} with other options: "
                f"({text}), now ({stage.mark_text}); use another --data-dir, or remove {config.data_dir}"
            )
        if _RETRAINED not in stage.mark_text or text == stage.mark_text:
            finished.update(languages)
    return finished


def _stages(config: PrepareConfig) -> Iterator[_Stage]:
    corpus = _corpus_options(config)
    speed = str(int(config.perturb_speed))
    command, message = _corpus_command(config)
    # Stage 0 runs for all languages, not only for missing ones: it completes an existing corpus.
    yield _Stage(0, "corpus", "get the corpus", corpus, lambda _: command, message=message)
    yield _Stage(1, "manifests", "manifests", corpus, partial(_manifests_command, config))
    musan = (config.musan_dir,)
    if config.musan_dir:
        musan_manifests = _musan_manifests_command(config)
        yield _Stage(2, "musan-manifests", "MUSAN manifests", musan, lambda _: musan_manifests, per_language=False)
    stored = speed if config.store_feats else f"{speed}, not stored"
    title = "features, validation, statistics"
    yield _Stage(3, "features", title, (*corpus, stored), partial(_features_command, config))
    if config.musan_dir:
        musan_features = _musan_features_command(config)
        yield _Stage(4, "musan-features", "MUSAN features", musan, lambda _: musan_features, per_language=False)
    title = f"SentencePiece, {config.vocab_size} tokens"
    variant = f"-{config.vocab_size}"
    tokenizer = _retraining(config, variant)
    options = (*corpus, speed + _sample_options(config) + tokenizer)
    tokens = _tokens_command(config)  # of all languages: they share the tokenizer
    yield _Stage(5, "tokens", title, options, lambda _: tokens, variant=variant)
    index = partial(_index_command, config)
    yield _Stage(6, "index", "index of the training cuts", (*corpus, stored + tokenizer), index, variant=variant)
    if config.store == "shar":
        title = "training cuts in tar files"
        yield _Stage(7, "shar", title, (*corpus, stored), partial(_shar_command, config))


def _corpus_options(config: PrepareConfig) -> tuple[str, ...]:
    """Return the options that determine the content of the manifests: the corpus, its folder, and others."""
    values = (as_typed(getattr(config, name)) for name in get_corpus(config.corpus).content_options)
    return config.corpus, config.corpus_folder, *values, *_text_options(config)


def _text_options(config: PrepareConfig) -> dict[str, bool]:
    """Return the options of the normalization of transcripts that are on."""
    return {name: True for name in ("keep_case", "keep_punctuation") if getattr(config, name)}


def _sample_options(config: PrepareConfig) -> str:
    """Return the options of the tokenizer's texts that differ from the defaults."""
    changed = [
        f", {field.name} {as_typed(getattr(config, field.name))}"
        for field in fields(SampleConfig)
        if getattr(config, field.name) != field.default
    ]
    return "".join(changed)


def _retraining(config: PrepareConfig, variant: str) -> str:
    """Return the suffix of done marks with the languages on which the tokenizer was trained again; "" if it was not.

    An index whose done mark has another suffix belongs to another tokenizer.
    """
    if config.retrain_tokenizer:
        return _RETRAINED + config.languages
    marks = [config.data_dir / f".done-5{variant}", *config.data_dir.glob(f".done-5{variant}-[a-z]*")]
    newest = max(filter(Path.exists, marks), key=lambda mark: mark.stat().st_mtime_ns, default=None)
    return "".join(read_text(newest).strip().partition(_RETRAINED)[1:]) if newest else ""


def _corpus_command(config: PrepareConfig) -> tuple[tuple[str, ...], str]:
    """Return the command, or no command and a message if the corpus exists.

    Raises:
      ValueError: The corpus cannot be downloaded or synthesized, and --corpus-dir is not an existing folder.
    """
    spec = get_corpus(config.corpus)
    if not spec.synthetic and _has_corpus(config):
        return (), f"The corpus is in {config.corpus_folder}"
    if spec.acquire_command is None:
        raise ValueError(
            f"--corpus {spec.name} cannot be downloaded: expected an existing folder as --corpus-dir, found "
            f"{config.manifests or config.corpus_dir!r}"
        )
    words = () if spec.acquire_command != "get_corpus" else option_words(corpus=config.corpus)
    words += option_words(corpus_dir=config.corpus_folder, languages=config.languages)
    values = {name: getattr(config, name) for name in spec.acquire_options}
    words += option_words(**{name: value for name, value in values.items() if value != ""})  # "" is the default
    return program("local", spec.acquire_command) + words, ""


def _has_corpus(config: PrepareConfig) -> bool:
    """Return whether --corpus-dir or --manifests is given and exists; --manifests may be a list of folders."""
    typed = config.manifests or config.corpus_dir
    folders = typed.split() if config.corpus == "manifests" and not Path(typed).exists() else [typed]
    return bool(typed) and all(Path(folder).exists() for folder in folders)


def _manifests_command(config: PrepareConfig, languages: str) -> tuple[str, ...]:
    return program("local", "prepare_manifests") + option_words(
        corpus=config.corpus,
        corpus_dir=config.corpus_folder,
        output_dir=config.data_dir / "manifests",
        languages=languages,
        subset=config.subset,
        **_text_options(config),
        max_dropped_share=_max_dropped_share(config),
        num_jobs=config.num_jobs,
        **{name: value for name in get_corpus(config.corpus).manifest_options if (value := getattr(config, name))},
        **_execution_options(config),
    )


def _max_dropped_share(config: PrepareConfig) -> float:
    return max(config.max_dropped_share, get_corpus(config.corpus).expected_dropped_share)


def _features_command(config: PrepareConfig, languages: str) -> tuple[str, ...]:
    return program("local", "compute_fbank") + option_words(
        manifest_dir=config.data_dir / "manifests",
        output_dir=config.data_dir / "fbank",
        languages=languages,
        store_feats=config.store_feats,
        perturb_speed=config.perturb_speed,
        max_dropped_share=_max_dropped_share(config),
        num_jobs=config.num_jobs,
        **_execution_options(config),
    )


def _execution_options(config: PrepareConfig) -> dict[str, str]:
    """Return the options of many machines that are used."""
    values = {"executor": config.executor, "dask_scheduler": config.dask_scheduler, "shard": config.shard}
    defaults = ExecutionConfig()
    return {name: value for name, value in values.items() if value != getattr(defaults, name)}


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
    defaults = SampleConfig()
    sample = {field.name: getattr(config, field.name) for field in fields(SampleConfig)}
    return program("local", "train_bpe") + option_words(
        cuts_dir=config.data_dir / "fbank",
        languages=config.languages,
        vocab_size=config.vocab_size,
        output_dir=config.data_dir / f"lang_bpe_{config.vocab_size}",
        keep_model=not config.retrain_tokenizer,
        **{name: value for name, value in sample.items() if value != getattr(defaults, name)},
    )


def _index_command(config: PrepareConfig, languages: str) -> tuple[str, ...]:
    return program("local", "index_cuts") + option_words(
        manifest_dir=config.data_dir / "fbank",
        languages=languages,
        bpe_model=config.data_dir / f"lang_bpe_{config.vocab_size}" / "bpe.model",
    )


def _shar_command(config: PrepareConfig, languages: str) -> tuple[str, ...]:
    return program("local", "export_shar") + option_words(
        manifest_dir=config.data_dir / "fbank",
        languages=languages,
        bpe_model=config.data_dir / f"lang_bpe_{config.vocab_size}" / "bpe.model",
        field="features" if config.store_feats else "recording",
        num_jobs=config.num_jobs,
        **_execution_options(config),
    )
