"""SIGTERM and Ctrl-C: finish the update, save, and leave."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

#: Exit statuses of a process that was asked to stop and did, as shells count them.
EXIT_CODES = {128 + number: number for number in (signal.SIGINT, signal.SIGTERM)}


class Stopped(KeyboardInterrupt):
    """A run ended because a signal asked for it, after saving.

    Attributes:
      number: The signal's.
      exit_code: What the process should exit with.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number
        self.exit_code = 128 + number

    def __reduce__(self) -> tuple[type["Stopped"], tuple[int]]:
        return type(self), (self.number,)


@dataclass
class StopRequest:
    """Whether this process has been asked to stop, and by which signal (0: not yet)."""

    number: int = 0


@contextmanager
def stop_requests(forward: Callable[[int], Any] | None = None) -> Iterator[StopRequest]:
    """Inside, SIGTERM and SIGINT are noted instead of ending the process; a second SIGINT ends it at once.

    Args:
      forward: Called with the signal's number as well.
    """
    request = StopRequest()

    def note(number: int, _frame: FrameType | None) -> None:
        if number == request.number == signal.SIGINT:
            raise KeyboardInterrupt
        request.number = number
        if forward is not None:
            forward(number)

    previous = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
