"""Which cuts make up which update: one language per batch, and every position a function of the update number."""

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
    """What a data loader's worker makes a batch of.

    Attributes:
      update: The update that the batch is for, from 1.
      language: Its one language.
      cuts: Its cuts.
      seed: Seed of its augmentation.
    """

    update: int
    language: str
    cuts: CutSet
    seed: int


@dataclass(frozen=True)
class LanguageCuts:
    """The training cuts of one language, how many they are and how much audio."""

    cuts: CutSet
    num_cuts: int
    total_seconds: float


class MonolingualSampler(Sampler[BatchPlan]):
    """Draws a language for every update, then the next batch of that language.

    A language is drawn with probability proportional to hours^(1/temperature), from the seed and the update alone: all
    ranks draw the same. A language's cuts are gone through pass after pass, each in an order of its own. Starting at a
    later update repeats the draws, and the pass that each language was in, without reading any audio, so that a resumed
    run gets the batches of the uninterrupted one, whatever loaded them ahead of time.

    Args:
      languages: Training cuts by language code.
      max_duration: Seconds of audio per batch and rank.
      temperature: 1 draws languages as often as they have data, a large one evenly.
      num_buckets: Buckets of cuts of similar duration.
      shuffle: Whether passes are in random order.
      short_first: Whether the first pass over each language goes from short to long cuts.
      seed: Seed of all orders and draws.
      rank: This process.
      world_size: All processes; each gets cuts of its own in every update.
      start_update: Updates that are done.
      num_updates: Updates to come.
      accum_grad: Batches per update and rank, all of the update's language.
      pass_lengths: How many batches each finished pass over a language had, which is added to: with those of an earlier
        start, its passes need not be gone through again.

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
            raise ValueError(f"--sampling-temperature {temperature} is not above 0: 1 draws languages as the data is")
        most = max(part.total_seconds for part in languages.values())
        self.weights = [(part.total_seconds / most) ** (1 / temperature) for part in languages.values()]
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
        done = Counter(self.language_of(update) for update in range(1, self.start_update + 1))
        batches = {code: self._batches(code, after=done[code] * self.accum_grad) for code in self.languages}
        for update in range(self.start_update + 1, self.start_update + self.num_updates + 1):
            language = self.language_of(update)
            for i in range(self.accum_grad):
                # Numbered through the ranks, as lhotse deals out batches: it does not matter who has one.
                place = i * self.world_size + self.rank
                seed = random.Random(f"{self.seed}/{place}/{update}/augmentation").getrandbits(32)
                yield BatchPlan(update, language, next(batches[language]), seed)

    def language_of(self, update: int) -> str:
        """The language of an update, the same on every rank."""
        draw = random.Random(f"{self.seed}/{update}/language")
        return draw.choices(list(self.languages), self.weights)[0]

    def _batches(self, language: str, after: int) -> Iterator[CutSet]:
        """The batches of one language that come after so many, without end."""
        lengths = self.pass_lengths.setdefault(language, [])
        for number in count():
            if number < len(lengths) and lengths[number] <= after:
                after -= lengths[number]
                continue
            length = 0
            for cuts in self._pass(language, number):
                length += 1
                if length > after:
                    yield cuts
            after = max(0, after - length)
            if number == len(lengths):
                lengths.append(length)

    def _pass(self, language: str, number: int) -> CutSampler:
        cuts = self.languages[language].cuts
        buckets = max(1, min(self.num_buckets, self.languages[language].num_cuts))
        ranks = {"world_size": self.world_size, "rank": self.rank}
        if number == 0 and self.short_first:
            return sequential_batches(cuts.to_eager().sort_by_duration(ascending=True), self.max_duration, **ranks)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*eagerly read CutSet.*")  # small corpora are, on purpose
            sampler = _BucketingSampler(
                cuts,
                max_duration=self.max_duration,
                shuffle=self.shuffle,
                num_buckets=buckets,
                duration_bins=[] if buckets == 1 else None,  # lhotse finds no limits for a single bucket
                seed=self.seed,
                drop_last=False,
                **ranks,
            )
        sampler.set_epoch(number)
        return sampler


class _TorchSamplerAdapter(Sampler[CutSet]):
    """Stands between lhotse's samplers and torch's, whose __init__ asks for an argument in old versions only."""

    def __init__(self, *_args: Any, **_kwargs: Any) -> None:
        pass


class _BucketingSampler(DynamicBucketingSampler, _TorchSamplerAdapter):
    pass


class _SequentialSampler(SimpleCutSampler, _TorchSamplerAdapter):
    pass


def sequential_batches(cuts: CutSet, max_duration: float, rank: int = 0, world_size: int = 1) -> CutSampler:
    """Batches of at most `max_duration` seconds of `cuts` as they come; ranks get cuts of their own."""
    return _SequentialSampler(cuts, max_duration=max_duration, shuffle=False, rank=rank, world_size=world_size)


def updates_per_epoch(languages: dict[str, LanguageCuts], max_duration: float, batches_per_update: int) -> int:
    """Updates that take as much audio as all languages have together."""
    return max(
        1, math.ceil(sum(part.total_seconds for part in languages.values()) / (max_duration * batches_per_update))
    )
