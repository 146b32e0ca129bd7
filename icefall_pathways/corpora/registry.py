"""The corpora that prepare.sh can process, by the value of --corpus.

To add a corpus, write a module with the functions of `CorpusModule` and add a line to `CORPORA`. Everything after the
manifests (features, tokenizer, training, decoding, result files) depends only on their names, see
`icefall_pathways.corpora.layout`.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, cast

from icefall_pathways.corpora.mls_layout import DOWNLOAD_MARK
from icefall_pathways.corpora.validation import CorpusError, CorpusReport
from icefall_pathways.languages import DEFAULT_LANGUAGES, MLS_LANGUAGES, Language, LanguageCode, TextOptions
from icefall_pathways.sharding.executors import Workers


class CorpusModule(Protocol):
    """Functions of the module of a corpus."""

    def prepare_manifests(
        self,
        corpus_dir: Path,
        output_dir: Path,
        languages: Sequence[Language],
        subset: str,
        workers: Workers,
        **options: str,
    ) -> CorpusReport:
        """Write the recording and supervision manifests of every split, with `layout.write_manifests`.

        Every supervision has the code of its language and a text, and every recording is sampled at 16 kHz
        (`recording.resample(16000)`); `write_manifests` normalizes the texts and checks the sampling rates. It has a
        speaker, if `compare.py --resample speaker` is to be used.

        Args:
          corpus_dir: Folder of the corpus.
          output_dir: Folder for the manifests.
          languages: Languages to prepare.
          subset: Training data: "train" for all of it, or the name of a subset.
          workers: Read the files, in parallel or on other machines; `layout.write_manifests` takes them.
          options: Values of `CorpusSpec.manifest_options`.

        Returns:
          The numbers of kept and dropped utterances of the splits that are complete.

        Raises:
          CorpusError: Parts of the corpus are missing, or there is no such subset.
        """

    def acquire(self, corpus_dir: Path, languages: Sequence[Language], num_jobs: int) -> None:
        """Download or synthesize the corpus; complete parts are skipped. Only for corpora with `acquire_command`."""

    def discover_languages(self, corpus_dir: Path, **options: str) -> Sequence[LanguageCode]:
        """Return the codes of the languages in a corpus folder. Only for corpora whose spec lists no languages.

        Raises:
          CorpusError: There are none.
        """


@dataclass(frozen=True)
class CorpusSpec:
    """A corpus.

    Attributes:
      name: Value of --corpus.
      description: One line for documentation.
      module: Name of its module, a `CorpusModule`; it is imported on first use.
      languages: Codes of the languages that it offers; None: those of the corpus folder, see `discover_languages`.
      default_languages: Codes of the languages that are prepared unless others are selected.
      acquire_command: Command that downloads or synthesizes it: "get_corpus", which calls `acquire`, or a command with
        more options. None: the user has to provide --corpus-dir.
      acquire_options: Options of prepare.sh that the command receives besides the corpus folder and the languages.
      manifest_options: Options of prepare.sh that `prepare_manifests` and `discover_languages` receive as well.
      content_options: Options of prepare.sh that determine the manifests; changed values invalidate prepared data.
      has_plain_text: Its transcripts are already in lower case and without punctuation, as those of MLS, and are used
        unchanged. Others are normalized, see `normalize_transcript`.
      expected_dropped_share: Share of the utterances that the corpus loses by design; a smaller --max-dropped-share has
        no effect.
      is_own: Result files have the name of the user's folder in place of the name of the corpus.
      synthetic: The command also runs in an existing --corpus-dir, to verify or complete it. A downloaded corpus is
        used unchanged.
      download_mark: File that the command creates first: in a folder with it, the command completes the download.
    """

    name: str
    description: str
    module: str
    languages: tuple[LanguageCode, ...] | None
    default_languages: tuple[LanguageCode, ...] = DEFAULT_LANGUAGES
    acquire_command: str | None = None
    acquire_options: tuple[str, ...] = ("num_jobs",)
    manifest_options: tuple[str, ...] = ()
    content_options: tuple[str, ...] = ("subset",)
    has_plain_text: bool = False
    expected_dropped_share: float = 0.0
    is_own: bool = False
    synthetic: bool = False
    download_mark: str = ""

    def load(self) -> CorpusModule:
        """Import the module."""
        return cast(CorpusModule, import_module(self.module))

    def label(self, corpus_dir: Path) -> str:
        """Return the name in result files of a corpus folder, or of several, separated by spaces; "": `name`."""
        folders = [corpus_dir] if corpus_dir.exists() else map(Path, str(corpus_dir).split())
        names = [re.sub(r"\W+", "_", folder.resolve().name).strip("_") for folder in folders]
        return "_".join(filter(None, names)) if self.is_own else ""

    def text_options(self, keep_case: bool, keep_punctuation: bool) -> TextOptions | None:
        """Return the normalization of its transcripts; None if they are used unchanged.

        Raises:
          CorpusError: The corpus has neither case nor punctuation.
        """
        if not self.has_plain_text:
            return TextOptions(keep_case, keep_punctuation)
        if keep_case or keep_punctuation:
            raise CorpusError(
                f"--keep-case and --keep-punctuation: the transcripts of --corpus {self.name} have neither; expected "
                "another corpus, or neither option"
            )
        return None

    def check_languages(self, languages: Sequence[Language]) -> None:
        """Check that the corpus offers all given languages.

        Raises:
          CorpusError: It does not.
        """
        if self.languages is None:
            return
        if missing := [language.code for language in languages if language.code not in self.languages]:
            raise CorpusError(
                f"--languages: the corpus {self.name} does not offer {' '.join(missing)}; expected some of "
                f"{' '.join(self.languages)}"
            )


_LANGUAGES_OF_STAMPS = tuple(map(LanguageCode, ("be", "bg", "ca", "da", "el", "es", "fr", "ro", "ru")))
_LANGUAGES_OF_MINI = (*MLS_LANGUAGES, *(code for code in _LANGUAGES_OF_STAMPS if code not in MLS_LANGUAGES))
_MANIFEST_OPTIONS = ("manifest_weights", "language_map")
_SIZE_OPTIONS = ("hours_per_language", "hours", "content", "dev_utterances", "test_utterances", "seed")

CORPORA: dict[str, CorpusSpec] = {
    spec.name: spec
    for spec in (
        CorpusSpec(
            name="mini",
            description="the embedded corpus: synthetic speech in MLS layout",
            module="icefall_pathways.corpora.mini",
            languages=_LANGUAGES_OF_MINI,
            acquire_command="make_mini_corpus",
            acquire_options=(*_SIZE_OPTIONS, "transcripts_dir", "num_jobs"),
            content_options=_SIZE_OPTIONS,
            has_plain_text=True,
            synthetic=True,
        ),
        CorpusSpec(
            name="mls",
            description="Multilingual LibriSpeech, or any folder in its layout",
            module="icefall_pathways.corpora.mls",
            languages=tuple(MLS_LANGUAGES),
            acquire_command="download_mls",
            acquire_options=("audio_format", "base_url"),
            download_mark=DOWNLOAD_MARK,
            has_plain_text=True,
        ),
        CorpusSpec(
            name="folder",
            description="a folder of audio files with transcripts, one subfolder per language",
            module="icefall_pathways.corpora.folder",
            languages=None,
            content_options=(),
            is_own=True,
        ),
        CorpusSpec(
            name="manifests",
            description="Lhotse manifests, such as those of `lhotse prepare`",
            module="icefall_pathways.corpora.manifests",
            languages=None,
            manifest_options=_MANIFEST_OPTIONS,
            content_options=_MANIFEST_OPTIONS,
            is_own=True,
        ),
        CorpusSpec(
            name="stamps",
            description="phrases of Tux Paint in nine languages, real speech",
            module="icefall_pathways.corpora.stamps",
            languages=_LANGUAGES_OF_STAMPS,
            default_languages=_LANGUAGES_OF_STAMPS,
            acquire_command="get_corpus",
            content_options=(),
            expected_dropped_share=0.5,
        ),
    )
}


if TYPE_CHECKING:
    CorpusName = str
else:
    CorpusName = Literal[tuple(CORPORA)]  # lists the choices in --help


def get_corpus(name: str) -> CorpusSpec:
    """Return the corpus with the given name.

    Raises:
      CorpusError: There is no such corpus; the message lists all corpora.
    """
    if name not in CORPORA:
        raise CorpusError(f"--corpus {name}: expected one of {', '.join(CORPORA)}")
    return CORPORA[name]
