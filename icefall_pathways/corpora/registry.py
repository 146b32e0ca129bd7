"""The corpora that prepare.sh can process, by the value of --corpus.

To add a corpus, write a module with its `prepare_manifests` function and add a line to `CORPORA`; everything after the
manifests (features, tokenizer, training, decoding, result files) depends only on their names, see
`icefall_pathways.corpora.layout`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol

from icefall_pathways.corpora.download import DownloadConfig, download_mls
from icefall_pathways.corpora.mini import MiniCorpusConfig, make_mini_corpus
from icefall_pathways.corpora.mls import prepare_manifests
from icefall_pathways.corpora.validation import CorpusError, CorpusReport
from icefall_pathways.languages import LANGUAGES, Language, LanguageCode


class PrepareManifests(Protocol):
    """Writes the recording and supervision manifests of every split of some languages."""

    def __call__(
        self, corpus_dir: Path, output_dir: Path, languages: Sequence[Language], subset: str, num_jobs: int
    ) -> CorpusReport:
        """Write the manifests to the paths that `SplitFiles` defines.

        Args:
          corpus_dir: Folder of the corpus.
          output_dir: Folder for the manifests.
          languages: Languages to prepare.
          subset: Training data: "train" for all of it, or the name of a subset.
          num_jobs: Files to read in parallel.

        Returns:
          The numbers of kept and rejected utterances.

        Raises:
          CorpusError: FeatureShards of the corpus are missing, or there is no such subset.
        """


@dataclass(frozen=True)
class Acquisition:
    """A function that downloads or synthesizes a corpus.

    Attributes:
      config: Dataclass of its options, `corpus_dir` and `languages` among them, each with a default.
      run: Brings the corpus into `corpus_dir`; skips what is complete.
    """

    config: type
    run: Callable[[Any], None]

    def __call__(self, options: Mapping[str, Any]) -> None:
        """Run with the options that `config` has; other options are ignored."""
        names = {field.name for field in fields(self.config)}
        self.run(self.config(**{name: value for name, value in options.items() if name in names}))


@dataclass(frozen=True)
class CorpusSpec:
    """A corpus.

    Attributes:
      name: Value of --corpus.
      description: Text for --help.
      languages: Codes of the languages that it offers.
      prepare_manifests: Writes its manifests.
      acquire: Downloads or synthesizes it; None if the user has to provide --corpus-dir.
      synthetic: Whether `acquire` also runs, and verifies, in an existing --corpus-dir. A downloaded corpus is used as
        it is.
      content_options: Names of the options that determine its manifests; changed values invalidate prepared data.
    """

    name: str
    description: str
    languages: tuple[LanguageCode, ...]
    prepare_manifests: PrepareManifests
    acquire: Acquisition | None = None
    synthetic: bool = False
    content_options: tuple[str, ...] = ("subset",)


_MINI_OPTIONS = ("hours_per_language", "hours", "content", "dev_utterances", "test_utterances", "seed")

CORPORA: dict[str, CorpusSpec] = {
    spec.name: spec
    for spec in (
        CorpusSpec(
            name="mini",
            description="the embedded corpus: synthetic speech in MLS layout",
            languages=tuple(LANGUAGES),
            prepare_manifests=prepare_manifests,
            acquire=Acquisition(MiniCorpusConfig, make_mini_corpus),
            synthetic=True,
            content_options=_MINI_OPTIONS,
        ),
        CorpusSpec(
            name="mls",
            description="Multilingual LibriSpeech, or any folder in its layout",
            languages=tuple(LANGUAGES),
            prepare_manifests=prepare_manifests,
            acquire=Acquisition(DownloadConfig, download_mls),
        ),
    )
}


def get_corpus(name: str) -> CorpusSpec:
    """Return the corpus with the given name.

    Raises:
      CorpusError: There is no such corpus; the message lists all corpora.
    """
    if name not in CORPORA:
        raise CorpusError(f"--corpus {name}: expected {' or '.join(CORPORA)}")
    return CORPORA[name]
