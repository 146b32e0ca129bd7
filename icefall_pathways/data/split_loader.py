"""Batches of a split of a language for validation and decoding."""

import math
from collections import Counter
from collections.abc import Iterator

from lhotse import MonoCut

from icefall_pathways.data.batch import Batch
from icefall_pathways.data.dataset import BatchPlan, SpeechDataset
from icefall_pathways.data.loading import load_batches


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
