"""SIGTERM and SIGINT: finish the update, save a checkpoint and exit."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

#: Signal by exit status, 128 + signal number as in shells, of a process that stopped on request.
EXIT_CODES = {128 + signum: signum for signum in (signal.SIGINT, signal.SIGTERM)}


class Stopped(KeyboardInterrupt):
    """A run saved its state and stopped because of a signal.

    Attributes:
      signum: The signal.
      exit_code: Exit status for the process.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.signum = signum
        self.exit_code = 128 + signum

    def __reduce__(self) -> tuple[type["Stopped"], tuple[int]]:
        return type(self), (self.signum,)


@dataclass
class StopRequest:
    """A request to stop this process.

    Attributes:
      signum: The signal; 0: no request yet.
    """

    signum: int = 0


@contextmanager
def stop_requests(forward: Callable[[int], Any] | None = None) -> Iterator[StopRequest]:
    """Record SIGTERM and SIGINT instead of exiting; a second SIGINT raises KeyboardInterrupt at once.

    Args:
      forward: Called with each signal.

    Raises:
      KeyboardInterrupt: A second SIGINT arrived.
    """
    request = StopRequest()

    def record(signum: int, _frame: FrameType | None) -> None:
        if signum == request.signum == signal.SIGINT:
            raise KeyboardInterrupt
        request.signum = signum
        if forward is not None:
            forward(signum)

    previous = {signum: signal.signal(signum, record) for signum in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield request
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)
