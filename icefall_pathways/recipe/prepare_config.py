"""Options of the data preparation, and the defaults that a corpus implies."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from icefall_pathways.corpora.mls_layout import DOWNLOAD_MARK, MINI_OPTIONS_FILE
from icefall_pathways.corpora.registry import CorpusName, get_corpus
from icefall_pathways.data.sample_config import SampleConfig
from icefall_pathways.ranges import PositiveFloat, PositiveInt, Seed, Share, Stage
from icefall_pathways.recipe.corpus_options import CorpusOptions
from icefall_pathways.sharding.executors import ExecutionConfig


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
    """mini: types of sentences, see make_mini_corpus.py --help."""

    transcripts_dir: str = ""
    """mini: folder of the prepared manifests of another corpus, for sentences of the type transcripts."""

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

    @property
    def has_corpus(self) -> bool:
        """True if --corpus-dir or --manifests is given and exists."""
        return bool(self.typed_folders) and all(folder.exists() for folder in self.typed_folders)

    @property
    def typed_folders(self) -> list[Path]:
        """The folder of --corpus-dir, or the folders of --manifests."""
        typed = self.manifests or self.corpus_dir
        folders = typed.split() if self.corpus == "manifests" and not Path(typed).exists() else [typed]
        return [Path(folder) for folder in folders if folder]

    @property
    def text_options(self) -> dict[str, bool]:
        """The options of the normalization of transcripts that are on."""
        return {name: True for name in ("keep_case", "keep_punctuation") if getattr(self, name)}


def implied_corpus(config: PrepareConfig, default: PrepareConfig) -> PrepareConfig:
    """Return the defaults with the corpus that --manifests or --corpus-dir imply."""
    corpus = "manifests" if config.manifests else corpus_of_folder(config.corpus_dir)
    return replace(default, corpus=corpus) if corpus else default


def corpus_of_folder(corpus_dir: str) -> str | None:
    """Return the corpus that --corpus-dir implies; None without it.

    It is "mini" for a folder that make_mini_corpus.py has created, "mls" for another one in the layout of MLS, and
    otherwise "folder". A folder that does not exist implies "folder" too: its path may be mistyped, so only a corpus
    that is selected by its name may be downloaded or synthesized into it.
    """
    if not corpus_dir:
        return None
    folder = Path(corpus_dir)
    if (folder / MINI_OPTIONS_FILE).is_file():
        return "mini"
    names = [path.name for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []
    is_mls = (folder / DOWNLOAD_MARK).exists() or any(name.startswith("mls_") for name in names)
    return "mls" if is_mls else "folder"


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
    if spec.languages is not None or not config.has_corpus:
        return " ".join(spec.default_languages)
    options = {name: getattr(config, name) for name in spec.manifest_options}
    return " ".join(spec.load().discover_languages(Path(config.corpus_folder), **options))
