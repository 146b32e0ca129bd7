"""Data module: monolingual batches of the training, dev, and test cuts of each language."""

import logging
import math
from collections.abc import Generator, Iterator, Mapping
from dataclasses import replace
from functools import cached_property

from lhotse import CutSet
from tabulate import tabulate

from icefall_pathways.data.augmentation import Augmentation
from icefall_pathways.data.batch import Batch
from icefall_pathways.data.corpus_cuts import CorpusCuts
from icefall_pathways.data.data_config import DataConfig
from icefall_pathways.data.dataset import BatchPlan, IndexedDataset, SpeechDataset
from icefall_pathways.data.loading import load_batches
from icefall_pathways.data.manifests import DataError
from icefall_pathways.data.sampling import (
    BatchStream,
    LanguageDraws,
    MonolingualSampler,
    ShardedBatchStream,
    SortedCuts,
    consecutive_batches,
    draw_cuts,
    updates_per_epoch,
)
from icefall_pathways.data.shar import SharIndex
from icefall_pathways.data.split_loader import SplitLoader
from icefall_pathways.data.tokenizer import Tokenizer
from icefall_pathways.data.training_cuts import TrainingCuts
from icefall_pathways.data.usable_cuts import drop_report, has_dropped, rejections, select_usable
from icefall_pathways.languages import Language, get_language, parse_languages

logger = logging.getLogger("icefall_pathways")

__all__ = ["DataConfig", "DataError", "SpeechDataModule", "SplitLoader"]


class SpeechDataModule:
    """Batches of training, dev, and test cuts.

    Args:
      config: The options.
      tokenizer: Required for training: it fills the tokens of a batch, and training cuts with uncovered characters or
        with more tokens than a transducer can emit are dropped.

    Attributes:
      languages: The languages, in the order of the options.
      corpus_cuts: The manifests and indexes.
      batch_offsets: Position in the stream of batches of each language before the first update; see
        `MonolingualSampler`. Restore it before a resumed run.
    """

    def __init__(self, config: DataConfig, tokenizer: Tokenizer | None = None) -> None:
        self.config = config
        self.languages: list[Language] = parse_languages(config.languages)
        self.batch_offsets: dict[str, int] = {}
        self.corpus_cuts = CorpusCuts(config, tokenizer)
        self._tokenizer = tokenizer
        self._streams: dict[int, dict[str, BatchStream | ShardedBatchStream]] = {}

    @cached_property
    def training_cuts(self) -> dict[str, TrainingCuts]:
        """The usable training cuts of each language. Their index is opened, or written, on first access.

        Raises:
          DataError: Manifests are missing or damaged, or all cuts of a language are dropped.
        """
        cuts: dict[str, TrainingCuts] = {
            language.code: self.corpus_cuts.usable(language) for language in self.languages
        }
        log = logger.warning if has_dropped(cuts) else logger.info
        log("training cuts:\n%s", drop_report(cuts))
        return cuts

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

    def loader(self, language: str, split: str, max_hours: float = math.inf, seed: int = 0) -> SplitLoader:
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
        files = self.corpus_cuts.files(tag, split)
        reasons = rejections(self.config.on_the_fly_feats, has_loss=self._tokenizer is not None)
        cuts, counts = select_usable(self.corpus_cuts.read(tag, split), self._tokenizer, reasons)
        if not counts:
            raise DataError(f"{files.cuts} has no cuts: run ./prepare.sh --stage 3 for {tag.name} again")
        if not cuts:
            table = tabulate(sorted(counts.items()), ["cuts", "number"], tablefmt="simple_outline")
            raise DataError(f"no cut of {files.cuts} is usable: fix the causes in this table\n{table}")
        cuts = sorted(draw_cuts(cuts, 3600 * max_hours, seed), key=lambda cut: cut.duration, reverse=True)
        batches = consecutive_batches([cut.duration for cut in cuts], self.config.max_duration)
        plans = [BatchPlan(0, tag.code, CutSet.from_cuts(cuts[batch]), 0) for batch in batches]
        test_set = replace(files, corpus=self.corpus_cuts.result_name).test_set
        return SplitLoader(plans, self._dataset(), test_set, counts)

    def texts(self, language: str, split: str) -> Iterator[str]:
        """Yield the transcripts of a split of a language.

        Raises:
          DataError: The manifest is missing or damaged.
        """
        for cut in self.corpus_cuts.read(get_language(language), split):
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
        sorted_cuts = SortedCuts(code, cuts.numbers, cuts.durations)
        if not isinstance(cuts.index, SharIndex):
            return BatchStream(sorted_cuts, self.config)
        shards = cuts.numbers // cuts.index.config.shard_size
        return ShardedBatchStream(sorted_cuts, shards, self.config, batches_per_update)

    def _language_draws(self, seed: int) -> LanguageDraws:
        seconds = {code: cuts.total_seconds for code, cuts in self.training_cuts.items()}
        return LanguageDraws(seconds, self.config.sampling_temperature, seed)

    def _dataset(self, augmentation: Augmentation | None = None) -> SpeechDataset:
        level_norm = self.config.fbank.level_norm
        return SpeechDataset(augmentation, self.config.on_the_fly_feats, self._tokenizer, level_norm)
