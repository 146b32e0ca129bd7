"""Data module: monolingual batches of the training, dev, and test cuts of each language."""

import heapq
import logging
import math
from collections import Counter
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

from lhotse import CutSet, MonoCut
from lhotse.utils import compute_num_frames
from tabulate import tabulate
from tqdm import tqdm

from icefall_pathways.constants import SUBSAMPLING_FACTOR
from icefall_pathways.corpora.layout import SplitFiles, find_corpus
from icefall_pathways.data.augmentation import Augmentation, AugmentationConfig
from icefall_pathways.data.batch import Batch
from icefall_pathways.data.dataset import SpeechDataset
from icefall_pathways.data.features import FbankConfig
from icefall_pathways.data.loading import load_batches
from icefall_pathways.data.manifests import DataError, check_cut, check_sampling_rate
from icefall_pathways.data.sampling import (
    BatchPlan,
    LanguageCuts,
    MonolingualSampler,
    sequential_batches,
    updates_per_epoch,
)
from icefall_pathways.data.tokenizer import Tokenizer
from icefall_pathways.languages import (
    DEFAULT_LANGUAGES,
    Language,
    LanguageList,
    get_language,
    normalize_languages,
    parse_languages,
)
from icefall_pathways.ranges import PositiveFloat, PositiveInt

logger = logging.getLogger("icefall_pathways")

__all__ = ["DataConfig", "DataError", "SpeechDataModule", "SplitLoader"]

_USED = "used"
_MAX_EAGER_CUTS = 200_000  # the cuts of a larger language are not kept in memory; every pass reads the manifest


@dataclass(frozen=True)
class DataConfig(AugmentationConfig):
    """Options of the data and the sampling of batches."""

    manifest_dir: Path = Path("data/fbank")
    """Folder of the cuts with features."""

    languages: LanguageList = DEFAULT_LANGUAGES
    """Languages, by code or name, in the order of their bits in masks."""

    max_duration: PositiveFloat = 200.0
    """Maximum seconds of audio in a batch, per rank."""

    on_the_fly_feats: bool = False
    """Compute features from the audio during training; 0 reads the features that prepare.sh stored."""

    num_workers: int = 2
    """Data loader workers; 0 loads batches in the training process."""

    num_buckets: PositiveInt = 10
    """Buckets of cuts of similar duration, which reduce padding."""

    sampling_temperature: PositiveFloat = 1.0
    """Draw a language with probability proportional to hours^(1/T): 1 follows the data; large values are uniform."""

    shuffle: bool = True
    """Read the training cuts in random order."""

    short_first: bool = False
    """Order the first pass over each language by increasing duration; helps small models leave the initial plateau."""

    min_cut_duration: float = 0.0
    """Drop training cuts shorter than this (seconds)."""

    max_cut_duration: PositiveFloat = 20.0
    """Drop training cuts longer than this (seconds)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "languages", normalize_languages(self.languages))


class SpeechDataModule:
    """Batches of training, dev, and test cuts.

    Args:
      config: The options.
      tokenizer: Required for training: it fills the tokens of a batch, and training cuts with uncovered characters or
        with more tokens than a transducer can emit are dropped.

    Attributes:
      languages: The languages, in the order of the options.
      pass_lengths: Number of batches of each pass over each language that `train_batches` has completed; restore it
        before a resumed run.
    """

    def __init__(self, config: DataConfig, tokenizer: Tokenizer | None = None) -> None:
        self.config = config
        self.languages: list[Language] = parse_languages(config.languages)
        self.pass_lengths: dict[str, list[int]] = {}
        self._tokenizer = tokenizer
        self._counts: Counter[tuple[str, str]] = Counter()
        self._training: dict[str, LanguageCuts] | None = None

    @property
    def training_cuts(self) -> dict[str, LanguageCuts]:
        """The usable training cuts of each language, read on first access.

        Raises:
          DataError: Manifests are missing, or all cuts of a language are dropped.
        """
        if self._training is None:
            self._training = {language.code: self._usable(language) for language in self.languages}
            log = logger.warning if any(reason != _USED for _, reason in self._counts) else logger.info
            log("training cuts:\n%s", self.drop_report())
        return self._training

    @property
    def corpus(self) -> str:
        """The name of the corpus, the first part of the names of manifests and of result files.

        Raises:
          CorpusError: `manifest_dir` holds several corpora.
        """
        return find_corpus(self.config.manifest_dir, "cuts")

    def check_vocabulary(self) -> None:
        """Check that the tokens cover the training transcripts of every language.

        Raises:
          DataError: They do not; the message names the uncovered characters.
        """
        assert self._tokenizer is not None
        for language in self.languages:
            uncovered: set[str] = set()
            for cut in self._cuts(language, "train"):
                uncovered.update(*(self._tokenizer.uncovered(s.text or "") for s in cut.supervisions))
            if uncovered:
                raise DataError(
                    f"the vocabulary has no token for {' '.join(sorted(uncovered))} in the training transcripts of "
                    f"{language.name}: a language can be added to a model only if its tokens cover it. Remove "
                    "transcripts with these characters, or train a dense model with a vocabulary of all languages"
                )

    def drop_report(self) -> str:
        """Return a table of the numbers of used and dropped training cuts, by language and reason."""
        rows = [[language, reason, count] for (language, reason), count in sorted(self._counts.items())]
        return tabulate(rows, ["language", "training cuts", "number"], tablefmt="simple_outline")

    def updates_per_epoch(self, batches_per_update: int) -> int:
        """Return the number of updates that process as much audio as all languages have together.

        Args:
          batches_per_update: Batches of an update, summed over ranks.
        """
        return updates_per_epoch(self.training_cuts, self.config.max_duration, batches_per_update)

    def train_batches(
        self, start_update: int, num_updates: int, seed: int, rank: int = 0, world_size: int = 1, accum_grad: int = 1
    ) -> Generator[Batch, None, None]:
        """Yield the batches of the updates after `start_update`, regardless of where earlier runs were interrupted.

        Args:
          start_update: Number of completed updates.
          num_updates: Number of updates.
          seed: Seed of order, language draws, and augmentation.
          rank: Rank of this process.
          world_size: Number of processes.
          accum_grad: Batches per update, consecutive and of one language.

        Raises:
          DataError: A batch cannot be made; the message names the cut and the file.
        """
        config = self.config
        sampler = MonolingualSampler(
            self.training_cuts,
            config.max_duration,
            config.sampling_temperature,
            config.num_buckets,
            config.shuffle,
            config.short_first,
            seed,
            rank,
            world_size,
            start_update,
            num_updates,
            accum_grad,
            self.pass_lengths,
        )
        for batch in load_batches(self._dataset(Augmentation(config)), sampler, config.num_workers):
            if isinstance(batch, DataError):
                raise batch
            yield batch

    def loader(self, language: str, split: str) -> "SplitLoader":
        """Return the batches of a split of a language, by decreasing duration and without augmentation.

        Raises:
          DataError: The manifest is missing, damaged, or empty.
        """
        tag = get_language(language)
        files = self._files(tag, split)
        cuts = CutSet.from_cuts(self._cuts(tag, split))
        if len(cuts) == 0:
            raise DataError(f"{files.cuts} has no cuts: run ./prepare.sh --stage 3 for {tag.name} again")
        batches = sequential_batches(cuts.sort_by_duration(), self.config.max_duration)
        plans = [BatchPlan(0, tag.code, batch, 0) for batch in batches]
        return SplitLoader(plans, self._dataset(), files.test_set)

    def texts(self, language: str, split: str) -> Iterator[str]:
        """Yield the transcripts of a split of a language.

        Raises:
          DataError: The manifest is missing or damaged.
        """
        for cut in self._cuts(get_language(language), split):
            yield from (supervision.text for supervision in cut.supervisions)

    def longest_batch(self, language: str, seconds: float) -> Batch:
        """Return the training batch that requires the most memory: the longest cuts of a language, at least one.

        Args:
          language: Code of the language.
          seconds: Maximum audio, counted as for `max_duration`: every cut counts as much as the longest.

        Raises:
          DataError: Features cannot be read.
        """
        cuts = self.training_cuts[language].cuts
        longest = max(cut.duration for cut in cuts)
        selected = heapq.nlargest(max(1, int(seconds / longest)), cuts, key=lambda cut: cut.duration)
        return self._dataset().load(BatchPlan(0, language, CutSet.from_cuts(selected), 0))

    def _dataset(self, augmentation: Augmentation | None = None) -> SpeechDataset:
        return SpeechDataset(augmentation, self.config.on_the_fly_feats, self._tokenizer)

    def _files(self, language: Language, split: str) -> SplitFiles:
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

    def _cuts(self, language: Language, split: str) -> Iterator[MonoCut]:
        path = self._files(language, split).cuts
        try:
            for cut in CutSet.from_jsonl_lazy(path):
                self._check(cut, path)
                yield cut
        except DataError:
            raise
        except (EOFError, OSError, ValueError, KeyError) as error:
            raise DataError(
                f"{path} is damaged ({error}): remove it and run ./prepare.sh --stage 3 for {language.name} again"
            ) from error

    def _check(self, cut: MonoCut, path: Path) -> None:
        check_cut(cut, path)
        if self.config.on_the_fly_feats and cut.has_recording:
            check_sampling_rate(cut.recording, f"cut {cut.id} in {path}")
            if cut.recording.num_channels > 1:
                raise DataError(
                    f"cut {cut.id} in {path} has {cut.recording.num_channels} channels, but only prepare.sh downmixes "
                    "audio: use --on-the-fly-feats 0"
                )

    def _usable(self, language: Language) -> LanguageCuts:
        """Read the training cuts of a language; count the dropped ones, and sum the durations of the others."""
        usable: list[MonoCut] = []
        num_cuts, total_seconds = 0, 0.0
        for cut in tqdm(self._cuts(language, "train"), f"reading {language.code}", unit="cut", leave=False, delay=3):
            reason = self._rejection_reason(cut)
            self._counts[language.code, reason or _USED] += 1
            if reason is None:
                num_cuts += 1
                total_seconds += cut.duration
                if num_cuts <= _MAX_EAGER_CUTS:
                    usable.append(cut)
        if not num_cuts:
            raise DataError(
                f"no training cut of {language.name} is usable: fix the causes in this table, or check --bpe-model\n"
                f"{self.drop_report()}"
            )
        if num_cuts <= _MAX_EAGER_CUTS:
            return LanguageCuts(CutSet.from_cuts(usable), num_cuts, total_seconds)
        lazy = CutSet.from_jsonl_lazy(self._files(language, "train").cuts).filter(self._is_usable)
        return LanguageCuts(lazy, num_cuts, total_seconds)

    def _is_usable(self, cut: MonoCut) -> bool:
        return self._rejection_reason(cut) is None

    def _rejection_reason(self, cut: MonoCut) -> str | None:
        if cut.duration < self.config.min_cut_duration:
            return f"shorter than {self.config.min_cut_duration} s"
        if cut.duration > self.config.max_cut_duration:
            return f"longer than {self.config.max_cut_duration} s"
        if self._tokenizer is None:
            raise DataError(
                "training requires a tokenizer: it detects utterances with too many tokens for their length"
            )
        if len(cut.supervisions) != 1 or not cut.supervisions[0].text:
            return "zero or several transcripts"
        if self.config.on_the_fly_feats and not cut.has_recording:
            return "no audio"
        if not self.config.on_the_fly_feats and not cut.has_features:
            return "no features"
        tokens = self._tokenizer.encode([cut.supervisions[0].text])[0]
        if self._tokenizer.unknown_id in tokens:
            return "characters without a token"
        # k2's pruned loss emits at most one symbol per frame (T >= S); the margin of two is icefall's.
        if len(tokens) + 2 > -(-_num_frames(cut) // SUBSAMPLING_FACTOR):
            return "too many tokens for its length"
        return None


class SplitLoader:
    """The batches of a split, in the same order in every iteration.

    Args:
      plans: The batches in their order.
      dataset: Makes a batch from its plan.
      test_set: Name of the split in result files, such as "mls-french-test".

    Attributes:
      test_set: As given.
    """

    def __init__(self, plans: list[BatchPlan], dataset: SpeechDataset, test_set: str) -> None:
        self.test_set = test_set
        self._plans = plans
        self._dataset = dataset

    @property
    def num_cuts(self) -> int:
        """Number of cuts of all batches."""
        return sum(len(plan.cuts) for plan in self._plans)

    @property
    def cuts(self) -> list[MonoCut]:
        """All cuts in the order of their ids; neither audio nor features are read."""
        return sorted((cut for plan in self._plans for cut in plan.cuts), key=lambda cut: cut.id)

    def parts(self, max_seconds: float) -> list["SplitLoader"]:
        """Divide the batches, in their order, into parts of at most `max_seconds` of audio, but at least one batch."""
        parts: list[list[BatchPlan]] = []
        seconds = math.inf
        for plan in self._plans:
            duration = sum(cut.duration for cut in plan.cuts)
            if seconds + duration > max_seconds:
                parts.append([])
                seconds = 0.0
            parts[-1].append(plan)
            seconds += duration
        return [SplitLoader(plans, self._dataset, self.test_set) for plans in parts]

    def __len__(self) -> int:
        return len(self._plans)

    def __iter__(self) -> Iterator[Batch]:
        for plan in self._plans:
            yield self._dataset.load(plan)


def _num_frames(cut: MonoCut) -> int:
    """Return the number of feature frames of a cut, from its duration if its features are not stored."""
    config = FbankConfig()
    return cut.num_frames or compute_num_frames(cut.duration, config.frame_seconds, config.sample_rate)
