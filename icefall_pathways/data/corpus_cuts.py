"""The cuts of a corpus: manifests and indexes of its languages."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from lhotse.cut import Cut

from icefall_pathways.corpora.layout import SplitFiles, find_corpus, result_name
from icefall_pathways.corpora.path_resolver import PathResolver
from icefall_pathways.data.cut_index import CutIndex
from icefall_pathways.data.data_config import DataConfig
from icefall_pathways.data.indexing import hash_memory, open_index
from icefall_pathways.data.manifests import DataError, check_sampling_rate, read_cuts
from icefall_pathways.data.shar import SharIndex, read_config, shar_location
from icefall_pathways.data.tokenizer import Tokenizer
from icefall_pathways.data.training_cuts import CutLimits, TrainingCuts
from icefall_pathways.data.usable_cuts import CutFlag, drop_report
from icefall_pathways.languages import Language


class CorpusCuts:
    """The cuts of a corpus: the manifests of its languages and splits, and the indexes of the training cuts.

    Args:
      config: The options.
      tokenizer: Required for indexes.
    """

    def __init__(self, config: DataConfig, tokenizer: Tokenizer | None) -> None:
        self.config = config
        self._tokenizer = tokenizer

    @property
    def corpus(self) -> str:
        """The name of the corpus, the first part of the names of manifests.

        Raises:
          CorpusError: `manifest_dir` holds several corpora.
        """
        return find_corpus(self.config.manifest_dir, "cuts")

    @property
    def result_name(self) -> str:
        """The name of the corpus in result files, see `corpora.layout.result_name`."""
        return result_name(self.config.manifest_dir)

    def open_index(self, language: Language) -> CutIndex:
        """Return the index of the training cuts of a language; write it first if it is missing or outdated.

        Raises:
          DataError: There is no tokenizer, or the manifest is missing or damaged.
        """
        if self._tokenizer is None:
            raise DataError(
                "training requires a tokenizer: it detects utterances with too many tokens for their length"
            )
        files = self.training_files(language)
        folder = self.config.index_dir or self.config.manifest_dir / "index"
        if not self.config.from_shar:
            return open_index([files.cuts], self._tokenizer, folder, f"{files.corpus}-{language.name}_{files.split}")
        shar = read_config(files, hash_memory(files.cuts, folder))
        index = open_index([files.shar_cuts], self._tokenizer, folder, files.shar.name)
        return SharIndex(index, shar_location(files, self.config.shar_dir), shar)

    def training_files(self, language: Language) -> SplitFiles:
        """Return the paths of the training cuts of a language.

        Raises:
          DataError: The manifest is missing.
        """
        return self.files(language, "train")

    def check_vocabulary(self, languages: Sequence[Language]) -> None:
        """Check that the tokens cover the training transcripts of languages.

        Raises:
          DataError: They do not; the message names the uncovered characters.
        """
        assert self._tokenizer is not None
        for language in languages:
            index = self.open_index(language)
            uncovered: set[str] = set()
            for cut in index.read((index.flags & CutFlag.UNCOVERED_CHARACTERS).nonzero()[0]):
                uncovered.update(self._tokenizer.uncovered(cut.supervisions[0].text))
            if uncovered:
                raise DataError(
                    f"the vocabulary has no token for {' '.join(sorted(uncovered))} in the training transcripts of "
                    f"{language.name}: a language can be added to a model only if its tokens cover it. Remove "
                    "transcripts with these characters, or train a dense model with a vocabulary of all languages"
                )

    def files(self, language: Language, split: str) -> SplitFiles:
        """Return the paths of the cuts of a split of a language.

        Raises:
          DataError: The manifest is missing.
        """
        folder = self.config.manifest_dir
        files = SplitFiles(folder, self.corpus, language, split)
        if not files.cuts.is_file():
            existing = ", ".join(sorted(path.name for path in folder.glob("*_cuts_*"))) or "no cuts"
            raise DataError(
                f"no {files.cuts} ({folder} holds {existing}): pass the folder that holds the {split} cuts of "
                f"{language.name} to --manifest-dir, check --languages, or prepare the data with ./prepare.sh "
                f"--languages {language.code}, stages 0 to 3"
            )
        return files

    def read(self, language: Language, split: str) -> Iterator[Cut]:
        """Yield the cuts of a split of a language.

        Raises:
          DataError: The manifest is missing, damaged or not trustworthy.
        """
        path = self.files(language, split).cuts
        paths = PathResolver(path.parent)
        for cut in read_cuts(path):
            self._check_audio(cut, path)
            yield paths.resolve(cut)

    def usable(self, language: Language) -> TrainingCuts:
        """Return the training cuts of a language that can be used, from their index.

        Raises:
          DataError: The manifest is missing or damaged, or no cut can be used.
        """
        config, index = self.config, self.open_index(language)
        if config.on_the_fly_feats:
            unsuitable = (index.flags & CutFlag.UNSUITABLE_AUDIO).nonzero()[0]
            for cut in index.read(unsuitable[:1]):
                self._check_audio(cut, self.files(language, "train").cuts)
        limits = CutLimits(config.min_cut_duration, config.max_cut_duration, config.on_the_fly_feats)
        cuts = TrainingCuts.select(index, limits)
        if not len(cuts.numbers):
            raise DataError(
                f"no training cut of {language.name} is usable in {config.manifest_dir}: fix the causes in this table, "
                f"or check --bpe-model\n{drop_report({language.code: cuts})}"
            )
        return cuts

    def _check_audio(self, cut: Cut, path: Path) -> None:
        if self.config.on_the_fly_feats and cut.has_recording:
            check_sampling_rate(cut.recording, f"cut {cut.id} in {path}")
            if cut.recording.num_channels > 1:
                raise DataError(
                    f"cut {cut.id} in {path} has {cut.recording.num_channels} channels, but only prepare.sh downmixes "
                    "audio: use --on-the-fly-feats 0"
                )
