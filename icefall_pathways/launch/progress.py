"""Progress of work that is shared by all ranks."""

import time

from tqdm import tqdm

from icefall_pathways.launch.ranks import Rank

_COUNTER = "progress"
_POLL_SECONDS = 0.2


class SharedProgress:
    """The amount of work that all ranks have done; the main rank shows it as a progress bar.

    Args:
      rank: This rank.
      total: Amount of work of all ranks.
      description: Text before the bar.
      unit: Unit of the amounts.
    """

    def __init__(self, rank: Rank, total: int, description: str, unit: str) -> None:
        self._rank = rank
        self._total = total
        self._bar = tqdm(total=total, desc=description, unit=unit, disable=not rank.is_main)

    def update(self, amount: int = 1) -> None:
        """Add work that this rank has done."""
        self._show(self._rank.count(_COUNTER, amount))

    def wait(self) -> None:
        """Wait until all work is done, and close the bar."""
        while (done := self._rank.count(_COUNTER, 0)) < self._total:
            self._show(done)
            time.sleep(_POLL_SECONDS)
        self._show(done)
        self._bar.close()

    def _show(self, done: int) -> None:
        self._bar.update(done - self._bar.n)
