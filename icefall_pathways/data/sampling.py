"""Monolingual, resumable, elastic sampling: the batches of an update are a function of the seed and the update number.

Nothing is read or simulated to reach an update. The language of an update is a hash of its number. The cuts of a
language form an infinite stream of batches: passes over all its cuts, each in a new order given by pseudo-random
permutations, so that any batch of the stream can be computed on its own. An update takes the next `world_size *
accum_grad` batches of the stream of its language; how they are distributed over ranks and accumulation steps changes
neither the cuts nor the seeds of a batch.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from lhotse.cut import Cut
from torch.utils.data import Sampler

from icefall_pathways.data.permutation import Ints, permute, stable_hash, uniform
from icefall_pathways.ranges import Options, PositiveFloat, PositiveInt

_LANGUAGE, _BATCHES, _CUTS, _AUGMENTATION, _SHARDS = range(5)  # purposes of hashes
_MAX_SPLIT_SIZE = 20  # with more cuts per batch, another one changes little
_KEPT_ORDERS = 4  # passes; lanes do not end a pass at the same time
_CHUNK = 1 << 20  # updates whose languages are counted at once


@dataclass(frozen=True)
class SamplingConfig(Options):
    """Options of the order and the size of training batches."""

    max_duration: PositiveFloat = 200.0
    """Maximum seconds of audio in a batch, per rank."""

    num_buckets: PositiveInt = 10
    """Buckets of cuts of similar duration, which reduce padding."""

    sampling_temperature: PositiveFloat = 1.0
    """Draw a language with probability proportional to hours^(1/T): 1 follows the data; large values are uniform."""

    shuffle: bool = True
    """Shuffle the training cuts again in every pass over a language. 0 repeats the order of the first pass."""

    short_first: bool = False
    """Order the first pass over each language by increasing duration; helps small models leave the initial plateau."""


class BatchDraw(NamedTuple):
    """The cuts of a batch, by their numbers in the index of the language.

    Attributes:
      update: Number of the update that uses the batch, from 1.
      language: Code of the language of all cuts.
      numbers: Numbers of the cuts.
      seed: Seed of the augmentation.
    """

    update: int
    language: str
    numbers: list[int]
    seed: int


@dataclass(frozen=True, eq=False)
class SortedCuts:
    """The cuts of one language by increasing duration.

    Attributes:
      language: Code of the language.
      numbers: Numbers of the cuts, (n,), n > 0.
      durations: Their durations in seconds, (n,).
    """

    language: str
    numbers: npt.NDArray[np.unsignedinteger]
    durations: npt.NDArray[np.float64]

    @property
    def key(self) -> int:
        """The language as an integer, for hashes."""
        return int.from_bytes(self.language.encode(), "big")

    def select(self, positions: Ints) -> "SortedCuts":
        """Return the cuts at some positions, increasing."""
        return SortedCuts(self.language, self.numbers[positions], self.durations[positions])


class BatchStream:
    """The infinite stream of the batches of one language.

    Cuts are divided into buckets by duration. All batches of a bucket have the same number of cuts: as many of its
    longest as fit into `max_duration`. Every pass has the same number of batches.

    Args:
      cuts: The cuts.
      config: The options.

    Attributes:
      num_batches: Number of batches of a pass.
    """

    def __init__(self, cuts: SortedCuts, config: SamplingConfig) -> None:
        self._cuts = cuts
        self._config = config
        self._starts, self._batch_sizes = divide_into_buckets(cuts.durations, config.max_duration, config.num_buckets)
        self._bucket_sizes = np.diff(self._starts, append=len(cuts.numbers))
        self._first_batches = np.concatenate([[0], np.cumsum(-(-self._bucket_sizes // self._batch_sizes))])
        self.num_batches = int(self._first_batches[-1])

    def cuts(self, positions: npt.ArrayLike, seed: int) -> list[list[int]]:
        """Return the numbers of the cuts of the batches at some positions of the stream with a seed."""
        epochs, batches = np.divmod(np.atleast_1d(positions), self.num_batches)
        ordered = (epochs == 0) & self._config.short_first
        if not self._config.shuffle:
            epochs = np.zeros_like(epochs)
        key = stable_hash(seed, self._cuts.key, epochs)
        batches = np.where(ordered, batches, permute(batches, self.num_batches, stable_hash(key, _BATCHES)))
        buckets = np.searchsorted(self._first_batches, batches, side="right") - 1
        firsts = (batches - self._first_batches[buckets]) * self._batch_sizes[buckets]
        counts = np.minimum(self._batch_sizes[buckets], self._bucket_sizes[buckets] - firsts)
        # One entry per cut from here on.
        of_cut = np.repeat(np.arange(len(batches)), counts)
        ends = np.cumsum(counts)
        buckets = buckets[of_cut]
        ranks = firsts[of_cut] + np.arange(len(of_cut)) - (ends - counts)[of_cut]
        shuffled = permute(ranks, self._bucket_sizes[buckets], stable_hash(key[of_cut], _CUTS, buckets))
        cuts = self._cuts.numbers[self._starts[buckets] + np.where(ordered[of_cut], ranks, shuffled)]
        return [part.tolist() for part in np.split(cuts, ends[:-1])]


def divide_into_buckets(durations: npt.NDArray[np.float64], max_duration: float, num_buckets: int) -> tuple[Ints, Ints]:
    """Divide sorted durations into about `num_buckets` buckets of similar total duration.

    They are divided further where another cut fits into a batch, as long as batches have few cuts. All buckets but the
    first, the one of the shortest cuts, hold whole batches, so that there is at most one incomplete batch. Padded to
    the longest cut of its bucket, a batch has at most `max_duration` seconds, or a single cut.

    Args:
      durations: Durations in seconds, increasing, (n,), n > 0.
      max_duration: Maximum seconds of a batch.
      num_buckets: Number of buckets.

    Returns:
      The position of the first cut of each bucket, and the number of cuts of its batches.
    """
    totals = np.cumsum(durations)
    target = totals[-1] / num_buckets
    starts: list[int] = []
    batch_sizes: list[int] = []
    end = len(durations)
    while end:
        batch_size = max(1, int(max_duration / durations[end - 1]))
        start = int(np.searchsorted(totals, totals[end - 1] - target, side="right"))
        if batch_size < _MAX_SPLIT_SIZE:
            larger_batches = int(np.searchsorted(durations, max_duration / (batch_size + 1), side="right"))
            if larger_batches < end and larger_batches > start - (end - start) / 2:
                start = larger_batches
        end = max(0, end - math.ceil((end - start) / batch_size) * batch_size)
        starts.append(end)
        batch_sizes.append(batch_size)
    return np.array(starts[::-1]), np.array(batch_sizes[::-1])


class ShardedBatchStream:
    """The infinite stream of the batches of one language whose cuts are in shards, each read from start to end.

    The stream is divided into lanes: batch i belongs to lane i modulo `num_lanes`. In every pass over the cuts, the
    shards are shuffled and dealt to the lanes, and a lane takes all batches of a shard before those of the next. With
    as many lanes as an update has batches, a rank reads one shard after another. Within a shard, batches are those of a
    `BatchStream`.

    Args:
      cuts: The cuts.
      shards: Their shards, (n,).
      config: The options; without `shuffle`, every pass has the order of the first.
      num_lanes: Batches of an update, summed over ranks.

    Attributes:
      num_batches: Number of batches of a pass.
    """

    def __init__(
        self, cuts: SortedCuts, shards: npt.NDArray[np.integer[Any]], config: SamplingConfig, num_lanes: int
    ) -> None:
        order = np.argsort(shards, kind="stable")
        parts = np.split(order, np.flatnonzero(np.diff(shards[order])) + 1)
        self._key = cuts.key
        self._streams = [BatchStream(cuts.select(part), config) for part in parts]
        self._sizes = np.array([stream.num_batches for stream in self._streams])
        self._shuffle = config.shuffle
        self._num_lanes = min(num_lanes, len(parts))
        self._orders: dict[tuple[int, int], Ints] = {}
        self._lane_sizes: dict[tuple[int, int], Ints] = {}
        self.num_batches = int(self._sizes.sum())

    def cuts(self, positions: npt.ArrayLike, seed: int) -> list[list[int]]:
        """Return the numbers of the cuts of the batches at some positions of the stream with a seed."""
        return [self._batch(int(position), seed) for position in np.atleast_1d(positions)]

    def _batch(self, position: int, seed: int) -> list[int]:
        row, lane = divmod(position, self._num_lanes)
        for epoch in count():
            size = int(self._sizes_of_lanes(seed, epoch)[lane])
            if row < size:
                break
            row -= size
        shards = self._order(seed, epoch)[lane :: self._num_lanes]
        ends = np.cumsum(self._sizes[shards])
        i = int(np.searchsorted(ends, row, side="right"))
        shard = int(shards[i])
        batch = row - int(ends[i] - self._sizes[shard])
        (numbers,) = self._streams[shard].cuts(epoch * int(self._sizes[shard]) + batch, seed)
        return numbers

    def _order(self, seed: int, epoch: int) -> Ints:
        """Return the order of the shards in a pass; the last ones are kept."""
        if (seed, epoch) not in self._orders:
            size, key = len(self._sizes), stable_hash(seed, self._key, epoch if self._shuffle else 0, _SHARDS)
            self._orders[seed, epoch] = permute(np.arange(size), size, key)
            for outdated in list(self._orders)[:-_KEPT_ORDERS]:
                del self._orders[outdated]
        return self._orders[seed, epoch]

    def _sizes_of_lanes(self, seed: int, epoch: int) -> Ints:
        """Return the number of batches that each lane takes in a pass, (num_lanes,)."""
        if (seed, epoch) not in self._lane_sizes:
            sizes = self._sizes[self._order(seed, epoch)]
            starts = np.arange(len(sizes)) % self._num_lanes
            self._lane_sizes[seed, epoch] = np.bincount(starts, sizes, self._num_lanes).astype(np.int64)
        return self._lane_sizes[seed, epoch]


class LanguageDraws:
    """Draws of a language for each update, with probability proportional to seconds^(1/temperature).

    Args:
      seconds: Seconds of audio by language code.
      temperature: More than 0: 1 draws languages in proportion to their data; large values draw them uniformly.
      seed: Seed of the draws.
    """

    def __init__(self, seconds: Mapping[str, float], temperature: float, seed: int) -> None:
        self._codes = list(seconds)
        weights = (np.array(list(seconds.values())) / max(seconds.values())) ** (1 / temperature)
        self._thresholds = np.cumsum(weights)[:-1] / weights.sum()
        self._seed = seed

    def of_updates(self, start: int, end: int) -> Ints:
        """Return the index of the language of the updates from `start` to `end`, exclusive, (end - start,)."""
        draws = uniform(stable_hash(self._seed, _LANGUAGE, np.arange(start, end)))
        return np.searchsorted(self._thresholds, draws, side="right")

    def count(self, update: int) -> dict[str, int]:
        """Return how many of the updates 1 to `update` each language has."""
        counts = np.zeros(len(self._codes), np.int64)
        for start in range(1, update + 1, _CHUNK):
            drawn = self.of_updates(start, min(start + _CHUNK, update + 1))
            counts += np.bincount(drawn, minlength=len(self._codes))
        return dict(zip(self._codes, counts.tolist(), strict=True))


class MonolingualSampler(Sampler[BatchDraw]):
    """Yield the batches of one rank: of each update, `accum_grad` batches of one language.

    Args:
      streams: The batches of each language.
      languages: The languages of the updates.
      seed: Seed of the order and of the augmentation.
      rank: Rank of this process.
      world_size: Number of processes; in each update they get different batches.
      start_update: Number of completed updates.
      num_updates: Number of updates to sample for.
      accum_grad: Batches per update and rank.
      offsets: Position in the stream of each language before the first update; None: 0.
    """

    def __init__(
        self,
        streams: Mapping[str, BatchStream | ShardedBatchStream],
        languages: LanguageDraws,
        seed: int,
        rank: int,
        world_size: int,
        start_update: int,
        num_updates: int,
        accum_grad: int = 1,
        offsets: Mapping[str, int] | None = None,
    ) -> None:
        self._streams = dict(streams)
        self._languages = languages
        self._seed = seed
        self._world_size = world_size
        self._start_update = start_update
        self._num_updates = num_updates
        # A batch is the same whichever rank and accumulation step it falls on.
        self._batches = np.arange(accum_grad) * world_size + rank
        self._batches_per_update = world_size * accum_grad
        self._offsets = offsets or {}

    def __len__(self) -> int:
        return self._num_updates * len(self._batches)

    def __iter__(self) -> Iterator[BatchDraw]:
        codes = list(self._streams)
        counts = self._languages.count(self._start_update)
        for update in range(self._start_update + 1, self._start_update + self._num_updates + 1):
            code = codes[self._languages.of_updates(update, update + 1)[0]]
            first = self._offsets.get(code, 0) + counts[code] * self._batches_per_update
            counts[code] += 1
            seeds = stable_hash(self._seed, _AUGMENTATION, update, self._batches) >> np.uint64(32)
            batches = self._streams[code].cuts(first + self._batches, self._seed)
            for numbers, seed in zip(batches, seeds.tolist(), strict=True):
                yield BatchDraw(update, code, numbers, seed)


def consecutive_batches(durations: Sequence[float], max_duration: float) -> list[slice]:
    """Divide cuts into batches in their order.

    Args:
      durations: Durations of the cuts in seconds.
      max_duration: Maximum seconds of a batch, padded to its longest cut; a longer cut is a batch of its own.
    """
    batches, start, longest = [], 0, 0.0
    for i, duration in enumerate(durations):
        longest = max(longest, duration)
        if i > start and (i - start + 1) * longest > max_duration:
            batches.append(slice(start, i))
            start, longest = i, duration
    return [*batches, slice(start, len(durations))] if durations else []


def draw_cuts(cuts: Sequence[Cut], max_seconds: float, seed: int) -> list[Cut]:
    """Return a random selection of at most `max_seconds`, but at least one cut, in the order of `cuts`."""
    order = permute(np.arange(len(cuts)), len(cuts), seed)
    totals = np.cumsum([cuts[i].duration for i in order])
    count = max(1, int(np.searchsorted(totals, max_seconds, side="right")))
    return [cuts[i] for i in sorted(order[:count])]


def updates_per_epoch(seconds: float, max_duration: float, batches_per_update: int) -> int:
    """Return the number of updates that process `seconds` of audio."""
    return max(1, math.ceil(seconds / (max_duration * batches_per_update)))
