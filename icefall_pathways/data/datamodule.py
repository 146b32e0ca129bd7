"""Manifests become monolingual batches."""

import heapq
import logging
from collections import Counter
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

from lhotse import CutSet, MonoCut
from lhotse.dataset import K2SpeechRecognitionDataset, OnTheFlyFeatures, PrecomputedFeatures
from lhotse.utils import compute_num_frames
from tabulate import tabulate
from torch.utils.data import Dataset
from tqdm import tqdm

from icefall_pathways.constants import SUBSAMPLING_FACTOR
from icefall_pathways.corpora.layout import SplitFiles, find_corpus
from icefall_pathways.data.augmentation import Augmentation, AugmentationConfig, seeded
from icefall_pathways.data.batch import Batch
from icefall_pathways.data.features import FbankConfig
from icefall_pathways.data.loading import load_batches
from icefall_pathways.data.manifests import DataError, check_cut, check_files
from icefall_pathways.data.sampling import (
    BatchPlan,
    LanguageCuts,
    MonolingualSampler,
    sequential_batches,
    updates_per_epoch,
)
from icefall_pathways.data.tokenizer import Tokenizer
from icefall_pathways.errors import first_line
from icefall_pathways.languages import Language, get_language, parse_languages

logger = logging.getLogger("icefall_pathways")

__all__ = ["DataConfig", "DataError", "SpeechDataModule", "SplitLoader", "check_monolingual"]

_USED = "used"
_MAX_EAGER_CUTS = 200_000  # a language with fewer cuts keeps them in memory; else every pass reads the file


@dataclass(frozen=True)
class DataConfig(AugmentationConfig):
    """Which data to read, and how batches are made of it."""

    manifest_dir: Path = Path("data/fbank")
    """Where the cuts with features are."""

    languages: str = "en fr it nl"
    """Languages, by code or name, in the order of their bits in masks."""

    max_duration: float = 200.0
    """Seconds of audio in a batch of one rank."""

    on_the_fly_feats: bool = False
    """Compute features from the audio as batches are made; 0 reads those that prepare.sh has stored."""

    num_workers: int = 2
    """Processes that load batches ahead of time; 0 loads them in the training process."""

    num_buckets: int = 10
    """Buckets of cuts of similar duration, for little padding."""

    sampling_temperature: float = 1.0
    """A language is drawn with probability proportional to hours^(1/T): 1 as the data is, large evenly."""

    shuffle: bool = True
    """Random order of cuts."""

    short_first: bool = False
    """Go through each language from short to long cuts the first time: helps small models off the plateau."""

    min_cut_duration: float = 0.0
    """Leave out training cuts shorter than this (seconds)."""

    max_cut_duration: float = 20.0
    """Leave out training cuts longer than this (seconds)."""


class SpeechDataModule:
    """Batches of training, dev, and test cuts.

    Args:
      config: The options of the data.
      tokenizer: Required for training: it fills the tokens of a batch, and training cuts with uncovered characters or
        with more tokens than a transducer can emit are excluded.
    """

    def __init__(self, config: DataConfig, tokenizer: Tokenizer | None = None) -> None:
        self.config = config
        self.languages: list[Language] = parse_languages(config.languages)
        self._tokenizer = tokenizer
        self._counts: Counter[tuple[str, str]] = Counter()
        self._training: dict[str, LanguageCuts] | None = None
        #: Batches of the passes over each language that `train_batches` has finished; to be kept for a resumed run.
        self.pass_lengths: dict[str, list[int]] = {}

    @property
    def training_cuts(self) -> dict[str, LanguageCuts]:
        """The usable training cuts of each language, read on first use.

        Raises:
          DataError: Manifests are missing, or all cuts of a language are left out.
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
          DataError: They do not; the message names the letters.
        """
        assert self._tokenizer is not None
        for language in self.languages:
            letters: set[str] = set()
            for cut in self._cuts(language, "train"):
                letters.update(*(self._tokenizer.uncovered(s.text or "") for s in cut.supervisions))
            if letters:
                raise DataError(
                    f"the vocabulary has no token for {' '.join(sorted(letters))} in the training transcripts of "
                    f"{language.name}: a language can be added to a model only if its tokens cover it. Leave "
                    "transcripts with these letters out, or train a dense model with a vocabulary made of all languages"
                )

    def drop_report(self) -> str:
        """A table of the training cuts, by language: those that are used, and those left out, by reason."""
        rows = [[language, reason, count] for (language, reason), count in sorted(self._counts.items())]
        return tabulate(rows, ["language", "training cuts", "number"], tablefmt="simple_outline")

    def updates_per_epoch(self, batches_per_update: int) -> int:
        """Updates, of so many batches over all ranks, that take as much audio as all languages have together."""
        return updates_per_epoch(self.training_cuts, self.config.max_duration, batches_per_update)

    def train_batches(
        self, start_update: int, num_updates: int, seed: int, rank: int = 0, world_size: int = 1, accum_grad: int = 1
    ) -> Generator[Batch, None, None]:
        """The batches of the updates after `start_update`: the same ones whether or not the run was interrupted there.

        Args:
          start_update: Updates that are done.
          num_updates: How many updates to make batches for.
          seed: Seed of order, language draws and augmentation.
          rank: This process.
          world_size: All processes.
          accum_grad: Batches per update, which come one after the other and are of one language.

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
        """Batches of the dev or test split of a language, long utterances first, without augmentation.

        Raises:
          DataError: Its manifest is missing, damaged or empty.
        """
        tag = get_language(language)
        cuts = CutSet.from_cuts(self._cuts(tag, split))
        if len(cuts) == 0:
            raise DataError(f"{self._path(tag, split)} holds no cuts: run ./prepare.sh --stage 3 for {tag.name} again")
        batches = sequential_batches(cuts.sort_by_duration(), self.config.max_duration)
        return SplitLoader(
            [BatchPlan(0, tag.code, batch, 0) for batch in batches],
            self._dataset(),
            SplitFiles(self.config.manifest_dir, self.corpus, tag, split).test_set,
        )

    def texts(self, language: str, split: str) -> Iterator[str]:
        """The transcripts of a split of a language.

        Raises:
          DataError: Its manifest is missing or damaged.
        """
        for cut in self._cuts(get_language(language), split):
            yield from (supervision.text for supervision in cut.supervisions)

    def longest_batch(self, language: str, seconds: float) -> Batch:
        """The training batch that takes the most memory: the longest cuts of a language, at least one.

        Args:
          language: Its code.
          seconds: Audio in it at most, as `max_duration` counts: all cuts as long as the longest.

        Raises:
          DataError: Features cannot be read.
        """
        cuts = self.training_cuts[language].cuts
        longest = max(cut.duration for cut in cuts)
        chosen = heapq.nlargest(max(1, int(seconds / longest)), cuts, key=lambda cut: cut.duration)
        return self._dataset().load(BatchPlan(0, language, CutSet.from_cuts(chosen), 0))

    def _dataset(self, augmentation: Augmentation | None = None) -> "_SpeechDataset":
        return _SpeechDataset(augmentation, self.config.on_the_fly_feats, self._tokenizer)

    def _path(self, language: Language, split: str) -> Path:
        folder = self.config.manifest_dir
        path = SplitFiles(folder, self.corpus, language, split).cuts
        if not path.is_file():
            found = ", ".join(sorted(p.name for p in folder.glob("*_cuts_*"))) or "no cuts"
            raise DataError(
                f"no {path} ({folder} holds {found}): run ./prepare.sh --languages {language.code}, stages 0 to 3, "
                "or check --manifest-dir and --languages"
            )
        return path

    def _cuts(self, language: Language, split: str) -> Iterator[MonoCut]:
        path = self._path(language, split)
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
        if self.config.on_the_fly_feats and cut.has_recording and cut.recording.num_channels > 1:
            raise DataError(
                f"cut {cut.id} in {path} has {cut.recording.num_channels} channels, which are mixed when features are "
                "stored: use --on-the-fly-feats 0"
            )

    def _usable(self, language: Language) -> LanguageCuts:
        """Read a language's training cuts once: count what is left out, add up what stays."""
        kept: list[MonoCut] = []
        number, seconds = 0, 0.0
        for cut in tqdm(self._cuts(language, "train"), f"reading {language.code}", unit="cut", leave=False, delay=3):
            reason = self._rejection_reason(cut)
            self._counts[language.code, reason or _USED] += 1
            if reason is None:
                number += 1
                seconds += cut.duration
                if number <= _MAX_EAGER_CUTS:
                    kept.append(cut)
        if not number:
            raise DataError(
                f"no training cut of {language.name} can be used; mend what the table says, or look at --bpe-model:\n"
                f"{self.drop_report()}"
            )
        if number <= _MAX_EAGER_CUTS:
            return LanguageCuts(CutSet.from_cuts(kept), number, seconds)
        lazy = CutSet.from_jsonl_lazy(self._path(language, "train")).filter(self._is_usable)
        return LanguageCuts(lazy, number, seconds)

    def _is_usable(self, cut: MonoCut) -> bool:
        return self._rejection_reason(cut) is None

    def _rejection_reason(self, cut: MonoCut) -> str | None:
        if cut.duration < self.config.min_cut_duration:
            return f"shorter than {self.config.min_cut_duration} s"
        if cut.duration > self.config.max_cut_duration:
            return f"longer than {self.config.max_cut_duration} s"
        if self._tokenizer is None:
            raise DataError(
                "training needs a tokenizer: it tells which utterances have too many tokens for their length"
            )
        if len(cut.supervisions) != 1 or not cut.supervisions[0].text:
            return "not one transcript"
        if self.config.on_the_fly_feats and not cut.has_recording:
            return "no audio"
        if not self.config.on_the_fly_feats and not cut.has_features:
            return "no features"
        tokens = self._tokenizer.encode([cut.supervisions[0].text])[0]
        if self._tokenizer.unknown_id in tokens:
            return "letters that no token stands for"
        # A transducer emits at most one symbol a frame in k2's pruned loss (T >= S); two to spare, as in icefall.
        if len(tokens) + 2 > -(-_num_frames(cut) // SUBSAMPLING_FACTOR):
            return "too many tokens for its length"
        return None


class SplitLoader:
    """The batches of a split, in the same order in every iteration.

    Attributes:
      test_set: Name of the split in result files, such as "mls-french-test".
    """

    def __init__(self, plans: list[BatchPlan], dataset: "_SpeechDataset", test_set: str) -> None:
        self._plans = plans
        self._dataset = dataset
        self.test_set = test_set

    @property
    def num_cuts(self) -> int:
        """Cuts in all batches."""
        return sum(len(plan.cuts) for plan in self._plans)

    @property
    def cuts(self) -> list[MonoCut]:
        """All cuts, ordered by their ids; neither audio nor features are read."""
        return sorted((cut for plan in self._plans for cut in plan.cuts), key=lambda cut: cut.id)

    def __len__(self) -> int:
        return len(self._plans)

    def __iter__(self) -> Iterator[Batch]:
        for plan in self._plans:
            yield self._dataset.load(plan)


class _SpeechDataset(Dataset[Batch | DataError]):
    """Makes a batch of a plan.

    An error is returned, not raised, so that it comes out of a worker as it is, without the worker's trace.
    """

    def __init__(self, augmentation: Augmentation | None, on_the_fly: bool, tokenizer: Tokenizer | None) -> None:
        self._augmentation = augmentation
        self._on_the_fly = on_the_fly
        self._tokenizer = tokenizer
        strategy = OnTheFlyFeatures(FbankConfig().extractor()) if on_the_fly else PrecomputedFeatures()
        transforms = augmentation.transforms if augmentation else []
        self._dataset = K2SpeechRecognitionDataset(
            return_cuts=True, input_transforms=transforms, input_strategy=strategy
        )

    def load(self, plan: BatchPlan) -> Batch:
        """Return the batch of a plan.

        Raises:
          DataError: The batch cannot be made; the message names the cut and the file.
        """
        batch = self[plan]
        if isinstance(batch, DataError):
            raise batch
        return batch

    def __getitem__(self, plan: BatchPlan) -> Batch | DataError:
        try:
            check_monolingual(plan)
            with seeded(plan.seed):
                cuts = self._augmentation.mix(plan.cuts) if self._augmentation else plan.cuts
                for cut in cuts:
                    check_files(cut, not self._on_the_fly)
                batch = self._dataset[cuts]
        except DataError as error:
            return error
        except Exception as error:  # the readers of features raise whatever they like
            return DataError(_explain(plan, self._on_the_fly, error))
        return Batch.from_lhotse(batch, plan.language, self._tokenizer)


def _explain(plan: BatchPlan, on_the_fly: bool, error: Exception) -> str:
    """Why no batch could be made of `plan`: the first cut that cannot be read."""
    for cut in plan.cuts:
        try:
            _ = cut.load_audio() if on_the_fly else cut.load_features()
        except Exception as cause:
            if on_the_fly:
                return f"cannot read the audio of cut {cut.id} ({first_line(cause)}): mend the file or leave it out"
            return (
                f"cannot read the features of cut {cut.id} in {cut.features.storage_path} ({first_line(cause)}): "
                f"remove the cuts files of {get_language(plan.language).name} and run ./prepare.sh --stage 3 again"
            )
    ids = ", ".join(cut.id for cut in plan.cuts)
    return f"cannot make a batch of the {plan.language} cuts {ids}: {first_line(error)}"


def _num_frames(cut: MonoCut) -> int:
    """Frames of a cut whose features need not be stored."""
    config = FbankConfig()
    return cut.num_frames or compute_num_frames(
        cut.duration, config.frame_shift / config.sample_rate, config.sample_rate
    )


def check_monolingual(plan: BatchPlan) -> None:
    """Check that a batch holds one language.

    Raises:
      DataError: It does not; the message names the cuts.
    """
    strangers = [cut.id for cut in plan.cuts if any(s.language != plan.language for s in cut.supervisions)]
    if strangers:
        raise DataError(f"a batch of {plan.language} holds cuts of another language: {', '.join(strangers)}")
