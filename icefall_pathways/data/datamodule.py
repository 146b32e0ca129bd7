"""Data module: monolingual batches of the training, dev, and test cuts of each language."""

import logging
import math
from collections import Counter
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from lhotse import CutSet, MonoCut
from tabulate import tabulate

from icefall_pathways.corpora.layout import SplitFiles, find_corpus
from icefall_pathways.data.augmentation import Augmentation, AugmentationConfig
from icefall_pathways.data.batch import Batch
from icefall_pathways.data.cut_index import CutIndex
from icefall_pathways.data.dataset import BatchPlan, IndexedDataset, SpeechDataset
from icefall_pathways.data.features import FbankConfig
from icefall_pathways.data.indexing import open_index
from icefall_pathways.data.loading import load_batches
from icefall_pathways.data.manifests import DataError, check_cut, check_sampling_rate
from icefall_pathways.data.sampling import (
    BatchStream,
    LanguageDraws,
    MonolingualSampler,
    SamplingConfig,
    ShardedBatchStream,
    consecutive_batches,
    draw_cuts,
    updates_per_epoch,
)
from icefall_pathways.data.shar import SharIndex, read_config
from icefall_pathways.data.tokenizer import Tokenizer
from icefall_pathways.data.training_cuts import CutLimits, TrainingCuts
from icefall_pathways.data.usable_cuts import CutFlag, drop_report, has_dropped, rejections, select_usable
from icefall_pathways.languages import (
    DEFAULT_LANGUAGES,
    Language,
    LanguageList,
    get_language,
    normalize_languages,
    parse_languages,
)
from icefall_pathways.ranges import PositiveFloat

logger = logging.getLogger("icefall_pathways")

__all__ = ["DataConfig", "DataError", "SpeechDataModule", "SplitLoader"]


@dataclass(frozen=True)
class DataConfig(SamplingConfig, AugmentationConfig):
    """Options of the data and the sampling of batches."""

    manifest_dir: Path = Path("data/fbank")
    """Folder of the cuts with features."""

    index_dir: Path | None = None
    """Folder of the indexes of the training cuts. None: the folder index in --manifest-dir."""

    languages: LanguageList = DEFAULT_LANGUAGES
    """Languages, by code or name, in the order of their bits in masks."""

    from_shar: bool = False
    """Read the training cuts from the tar files that ./prepare.sh --store shar wrote, one after another."""

    shar_dir: str = ""
    """With --from-shar 1: folder or URL, such as s3://bucket/shar, to which the tar files have been moved, with their
    folders."""

    on_the_fly_feats: bool = False
    """Compute features from the audio during training; 0 reads the features that prepare.sh stored."""

    level_norm: Literal["auto", "none", "running-max"] = "auto"
    """Normalization of the level of features. running-max: subtract a running maximum of the energy, without
    look-ahead; auto: as in the training that is resumed or in --init-from, and running-max for a new model."""

    num_workers: int = 2
    """Data loader workers; 0 loads batches in the training process."""

    min_cut_duration: float = 0.0
    """Drop training cuts shorter than this (seconds)."""

    max_cut_duration: PositiveFloat = 20.0
    """Drop training cuts longer than this (seconds)."""

    @property
    def fbank(self) -> FbankConfig:
        """The features of batches; a normalization that is not resolved is none, as in models of earlier versions."""
        return FbankConfig(level_norm="none" if self.level_norm == "auto" else self.level_norm)

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
      batch_offsets: Position in the stream of batches of each language before the first update; see
        `MonolingualSampler`. Restore it before a resumed run.
    """

    def __init__(self, config: DataConfig, tokenizer: Tokenizer | None = None) -> None:
        self.config = config
        self.languages: list[Language] = parse_languages(config.languages)
        self.batch_offsets: dict[str, int] = {}
        self._tokenizer = tokenizer
        self._streams: dict[int, dict[str, BatchStream | ShardedBatchStream]] = {}

    @cached_property
    def training_cuts(self) -> dict[str, TrainingCuts]:
        """The usable training cuts of each language. Their index is opened, or written, on first access.

        Raises:
          DataError: Manifests are missing or damaged, or all cuts of a language are dropped.
        """
        cuts: dict[str, TrainingCuts] = {language.code: self._usable(language) for language in self.languages}
        log = logger.warning if has_dropped(cuts) else logger.info
        log("training cuts:\n%s", drop_report(cuts))
        return cuts

    @property
    def corpus(self) -> str:
        """The name of the corpus, the first part of the names of manifests and of result files.

        Raises:
          CorpusError: `manifest_dir` holds several corpora.
        """
        return find_corpus(self.config.manifest_dir, "cuts")

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
        shar = read_config(files)
        location = f"{self.config.shar_dir.rstrip('/')}/{files.shar.name}" if self.config.shar_dir else str(files.shar)
        return SharIndex(open_index([files.shar_cuts], self._tokenizer, folder, files.shar.name), location, shar)

    def training_files(self, language: Language) -> SplitFiles:
        """Return the paths of the training cuts of a language.

        Raises:
          DataError: The manifest is missing.
        """
        return self._files(language, "train")

    def check_vocabulary(self) -> None:
        """Check that the tokens cover the training transcripts of every language.

        Raises:
          DataError: They do not; the message names the uncovered characters.
        """
        assert self._tokenizer is not None
        for language in self.languages:
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

    def updates_per_epoch(self, batches_per_update: int) -> int:
        """Return the number of updates that process as much audio as all languages have together.

        Args:
          batches_per_update: Batches of an update, summed over ranks.
        """
        seconds = sum(cuts.total_seconds for cuts in self.training_cuts.values())
        return updates_per_epoch(seconds, self.config.max_duration, batches_per_update)

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
        sampler = MonolingualSampler(
            self._batch_streams(world_size * accum_grad),
            self._language_draws(seed),
            seed,
            rank,
            world_size,
            start_update,
            num_updates,
            accum_grad,
            self.batch_offsets,
        )
        indexes = {code: cuts.index for code, cuts in self.training_cuts.items()}
        for index in indexes.values():
            if isinstance(index, SharIndex):
                index.num_kept = accum_grad  # each of these batches of an update is from another shard
        dataset = IndexedDataset(indexes, self._dataset(Augmentation(self.config)))
        yield from load_batches(dataset, sampler, self.config.num_workers)

    def progress(self, update: int, batches_per_update: int, seed: int) -> dict[str, float]:
        """Return how often each language has been passed over by the end of an update.

        Args:
          update: Number of the update.
          batches_per_update: Batches of an update, summed over ranks.
          seed: Seed of the language draws.
        """
        counts = self._language_draws(seed).count(update)
        return {
            code: (self.batch_offsets.get(code, 0) + counts[code] * batches_per_update) / stream.num_batches
            for code, stream in self._batch_streams(batches_per_update).items()
        }

    def set_progress(self, progress: Mapping[str, float], update: int, batches_per_update: int, seed: int) -> None:
        """Set `batch_offsets` so that `progress`, with the same arguments, returns these values, rounded to batches."""
        counts = self._language_draws(seed).count(update)
        self.batch_offsets = {
            code: round(progress[code] * stream.num_batches) - counts[code] * batches_per_update
            for code, stream in self._batch_streams(batches_per_update).items()
        }

    def loader(self, language: str, split: str, max_hours: float = math.inf, seed: int = 0) -> "SplitLoader":
        """Return the batches of a split of a language, by decreasing duration and without augmentation.

        Unusable cuts are dropped and counted, see `usable_cuts`; those that only a loss cannot use are kept if the data
        module has no tokenizer.

        Args:
          language: Code or name of the language.
          split: "train", "dev", or "test".
          max_hours: Draw cuts of at most this duration, at least one.
          seed: Seed of the draw.

        Raises:
          DataError: The manifest is missing, damaged, or has no usable cut.
        """
        tag = get_language(language)
        files = self._files(tag, split)
        reasons = rejections(self.config.on_the_fly_feats, has_loss=self._tokenizer is not None)
        cuts, counts = select_usable(self._cuts(tag, split), self._tokenizer, reasons)
        if not counts:
            raise DataError(f"{files.cuts} has no cuts: run ./prepare.sh --stage 3 for {tag.name} again")
        if not cuts:
            table = tabulate(sorted(counts.items()), ["cuts", "number"], tablefmt="simple_outline")
            raise DataError(f"no cut of {files.cuts} is usable: fix the causes in this table\n{table}")
        cuts = sorted(draw_cuts(cuts, 3600 * max_hours, seed), key=lambda cut: cut.duration, reverse=True)
        batches = consecutive_batches([cut.duration for cut in cuts], self.config.max_duration)
        plans = [BatchPlan(0, tag.code, CutSet.from_cuts(cuts[batch]), 0) for batch in batches]
        return SplitLoader(plans, self._dataset(), files.test_set, counts)

    def texts(self, language: str, split: str) -> Iterator[str]:
        """Yield the transcripts of a split of a language.

        Raises:
          DataError: The manifest is missing or damaged.
        """
        for cut in self._cuts(get_language(language), split):
            yield from (supervision.text for supervision in cut.supervisions if supervision.text)

    def longest_batch(self, language: str, seconds: float) -> Batch:
        """Return the training batch that requires the most memory: the longest cuts of a language, at least one.

        Args:
          language: Code of the language.
          seconds: Maximum audio, counted as for `max_duration`: every cut counts as much as the longest.

        Raises:
          DataError: Features cannot be read.
        """
        cuts = self.training_cuts[language]
        longest = cuts.numbers[-max(1, int(seconds / cuts.longest)) :]
        return self._dataset().load(BatchPlan(0, language, cuts.index.load(longest), 0))

    def _batch_streams(self, batches_per_update: int) -> Mapping[str, BatchStream | ShardedBatchStream]:
        if batches_per_update not in self._streams:
            self._streams[batches_per_update] = {
                code: self._batch_stream(code, cuts, batches_per_update) for code, cuts in self.training_cuts.items()
            }
        return self._streams[batches_per_update]

    def _batch_stream(self, code: str, cuts: TrainingCuts, batches_per_update: int) -> BatchStream | ShardedBatchStream:
        if not isinstance(cuts.index, SharIndex):
            return BatchStream(code, cuts.numbers, cuts.durations, self.config)
        shards = cuts.numbers // cuts.index.config.shard_size
        return ShardedBatchStream(code, cuts.numbers, cuts.durations, shards, self.config, batches_per_update)

    def _language_draws(self, seed: int) -> LanguageDraws:
        seconds = {code: cuts.total_seconds for code, cuts in self.training_cuts.items()}
        return LanguageDraws(seconds, self.config.sampling_temperature, seed)

    def _dataset(self, augmentation: Augmentation | None = None) -> SpeechDataset:
        level_norm = self.config.fbank.level_norm
        return SpeechDataset(augmentation, self.config.on_the_fly_feats, self._tokenizer, level_norm)

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

    def _usable(self, language: Language) -> TrainingCuts:
        config, index = self.config, self.open_index(language)
        if config.on_the_fly_feats:
            unsuitable = (index.flags & CutFlag.UNSUITABLE_AUDIO).nonzero()[0]
            for cut in index.read(unsuitable[:1]):
                self._check(cut, self._files(language, "train").cuts)
        limits = CutLimits(config.min_cut_duration, config.max_cut_duration, config.on_the_fly_feats)
        cuts = TrainingCuts.select(index, limits)
        if not len(cuts.numbers):
            raise DataError(
                f"no training cut of {language.name} is usable: fix the causes in this table, or check --bpe-model\n"
                f"{drop_report({language.code: cuts})}"
            )
        return cuts


class SplitLoader:
    """The batches of a split, in the same order in every iteration.

    Args:
      plans: The batches in their order.
      dataset: Makes a batch from its plan.
      test_set: Name of the split in result files, such as "mls-french-test".
      counts: Number of used and of dropped cuts of the split, by reason.

    Attributes:
      test_set: As given.
      counts: As given.
    """

    def __init__(
        self, plans: list[BatchPlan], dataset: SpeechDataset, test_set: str, counts: Counter[str] | None = None
    ) -> None:
        self.test_set = test_set
        self.counts = counts or Counter[str]()
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

    def every(self, num_cuts: int) -> set[str]:
        """Return the ids of `num_cuts` cuts at most, evenly distributed over the order of the batches."""
        ids = [cut.id for plan in self._plans for cut in plan.cuts]
        return set(ids[:: -(-len(ids) // num_cuts)]) if num_cuts else set()

    def shard(self, index: int, count: int, num_workers: int) -> Iterator[Batch]:
        """Yield every `count`-th batch from `index` on; the other batches are not made.

        Args:
          index: 0 to count - 1.
          count: Number of parts.
          num_workers: Loader workers, which exist until the last batch; 0 makes batches in this process.

        Raises:
          DataError: A batch cannot be made; the message names the cut and the file.
        """
        plans = self._plans[index::count]
        yield from load_batches(self._dataset, plans, min(num_workers, len(plans)))

    def __len__(self) -> int:
        return len(self._plans)

    def __iter__(self) -> Iterator[Batch]:
        for plan in self._plans:
            yield self._dataset.load(plan)
