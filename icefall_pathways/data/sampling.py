"""Monolingual, resumable sampling: the batches of an update are a function of the seed and the update number."""

import math
import random
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any

from lhotse import CutSet
from lhotse.dataset import DynamicBucketingSampler, SimpleCutSampler
from lhotse.dataset.sampling.base import CutSampler
from torch.utils.data import Sampler


@dataclass(frozen=True)
class BatchPlan:
    """The description of a batch, from which a loader worker makes it.

    Attributes:
      update: Number of the update that uses the batch, from 1.
      language: Code of the language of all cuts.
      cuts: The cuts.
      seed: Seed of the augmentation.
    """

    update: int
    language: str
    cuts: CutSet
    seed: int


@dataclass(frozen=True)
class LanguageCuts:
    """The training cuts of one language, their number, and their total duration in seconds."""

    cuts: CutSet
    num_cuts: int
    total_seconds: float


class MonolingualSampler(Sampler[BatchPlan]):
    """Draw a language for every update, then the next batch of that language.

    A language is drawn with probability proportional to hours^(1/temperature). The draw depends on the seed and the
    update number only, so that all ranks draw the same language. Each language is read in successive passes, each with
    its own order. After a resume, the sampler repeats the draws up to `start_update` and returns to the current pass of
    each language without reading any audio: a resumed run gets the batches of the uninterrupted run, regardless of
    prefetching.

    Args:
      languages: Training cuts by language code.
      max_duration: Maximum seconds of audio per batch and rank.
      temperature: 1 draws languages in proportion to their data; large values draw them uniformly.
      num_buckets: Number of buckets of cuts of similar duration.
      shuffle: Whether passes are in random order.
      short_first: Whether the first pass over each language is in order of increasing duration.
      seed: Seed of all orders and draws.
      rank: Rank of this process.
      world_size: Number of processes; in each update they get different cuts.
      start_update: Number of completed updates.
      num_updates: Number of updates to sample for.
      accum_grad: Batches per update and rank, all of the same language.
      pass_lengths: Number of batches of each completed pass over each language; the sampler appends to it. Values of an
        earlier run avoid iterating over its completed passes again.

    Raises:
      ValueError: The temperature is not above 0.
    """

    def __init__(
        self,
        languages: dict[str, LanguageCuts],
        max_duration: float,
        temperature: float,
        num_buckets: int,
        shuffle: bool,
        short_first: bool,
        seed: int,
        rank: int,
        world_size: int,
        start_update: int,
        num_updates: int,
        accum_grad: int = 1,
        pass_lengths: dict[str, list[int]] | None = None,
    ) -> None:
        self.languages = languages
        self.max_duration = max_duration
        if temperature <= 0:
            raise ValueError(
                f"--sampling-temperature is {temperature}: expected more than 0; 1 draws languages in proportion to "
                "their data"
            )
        longest = max(cuts.total_seconds for cuts in languages.values())
        self.weights = [(cuts.total_seconds / longest) ** (1 / temperature) for cuts in languages.values()]
        self.num_buckets = num_buckets
        self.shuffle = shuffle
        self.short_first = short_first
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.start_update = start_update
        self.num_updates = num_updates
        self.accum_grad = accum_grad
        self.pass_lengths = {} if pass_lengths is None else pass_lengths

    def __len__(self) -> int:
        return self.num_updates * self.accum_grad

    def __iter__(self) -> Iterator[BatchPlan]:
        completed = Counter(self.language_of(update) for update in range(1, self.start_update + 1))
        batches = {code: self._batches(code, skip=completed[code] * self.accum_grad) for code in self.languages}
        for update in range(self.start_update + 1, self.start_update + self.num_updates + 1):
            language = self.language_of(update)
            for i in range(self.accum_grad):
                # The index counts over all ranks, as Lhotse distributes batches: the seed does not depend on the rank.
                index = i * self.world_size + self.rank
                seed = random.Random(f"{self.seed}/{index}/{update}/augmentation").getrandbits(32)
                yield BatchPlan(update, language, next(batches[language]), seed)

    def language_of(self, update: int) -> str:
        """Return the code of the language of an update, the same on every rank."""
        draw = random.Random(f"{self.seed}/{update}/language")
        return draw.choices(list(self.languages), self.weights)[0]

    def _batches(self, language: str, skip: int) -> Iterator[CutSet]:
        """Yield the batches of one language indefinitely, after skipping `skip` of them."""
        lengths = self.pass_lengths.setdefault(language, [])
        for epoch in count():
            if epoch < len(lengths) and lengths[epoch] <= skip:
                skip -= lengths[epoch]
                continue
            length = 0
            for cuts in self._pass_sampler(language, epoch):
                length += 1
                if length > skip:
                    yield cuts
            skip = max(0, skip - length)
            if epoch == len(lengths):
                lengths.append(length)

    def _pass_sampler(self, language: str, epoch: int) -> CutSampler:
        cuts = self.languages[language].cuts
        buckets = max(1, min(self.num_buckets, self.languages[language].num_cuts))
        ranks = {"world_size": self.world_size, "rank": self.rank}
        if epoch == 0 and self.short_first:
            return sequential_batches(cuts.to_eager().sort_by_duration(ascending=True), self.max_duration, **ranks)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*eagerly read CutSet.*")  # intended for small corpora
            sampler = _BucketingSampler(
                cuts,
                max_duration=self.max_duration,
                shuffle=self.shuffle,
                num_buckets=buckets,
                duration_bins=[] if buckets == 1 else None,  # lhotse cannot estimate the limits of a single bucket
                seed=self.seed,
                drop_last=False,
                **ranks,
            )
        sampler.set_epoch(epoch)
        return sampler


class _TorchSamplerAdapter(Sampler[CutSet]):
    """Base class between lhotse's samplers and torch's; only in old versions, torch's __init__ requires an argument."""

    def __init__(self, *_args: Any, **_kwargs: Any) -> None:
        pass


class _BucketingSampler(DynamicBucketingSampler, _TorchSamplerAdapter):
    pass


class _SequentialSampler(SimpleCutSampler, _TorchSamplerAdapter):
    pass


def sequential_batches(cuts: CutSet, max_duration: float, rank: int = 0, world_size: int = 1) -> CutSampler:
    """Return a sampler of batches in the order of `cuts`, different on each rank.

    Args:
      cuts: The cuts.
      max_duration: Maximum seconds of audio per batch.
      rank: Rank of this process.
      world_size: Number of processes.
    """
    return _SequentialSampler(cuts, max_duration=max_duration, shuffle=False, rank=rank, world_size=world_size)


def updates_per_epoch(languages: dict[str, LanguageCuts], max_duration: float, batches_per_update: int) -> int:
    """Return the number of updates that process as much audio as all languages have together."""
    return max(
        1, math.ceil(sum(cuts.total_seconds for cuts in languages.values()) / (max_duration * batches_per_update))
    )
