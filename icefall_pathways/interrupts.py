"""Ctrl-C: end a command with one line, without a traceback."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

#: Environment variable with the name of the job, in commands that the recipe runs.
JOB_VARIABLE = "ICEFALL_PATHWAYS_JOB"

#: Consequences of an interruption, for commands that can resume and those that cannot.
RESUMABLE = "; finished work is kept, run the same command again to resume"
NOT_RESUMABLE = "; what is already written is kept, and the same command starts from the beginning"


def report_interrupt(consequence: str = "") -> None:
    """Report that this command was interrupted, unless the recipe runs it: the recipe reports that once for all."""
    if not os.environ.get(JOB_VARIABLE):
        print(f"interrupted{consequence}", file=sys.stderr, flush=True)


@contextmanager
def exit_on_interrupt() -> Iterator[None]:
    """Exit at once on SIGINT inside the context, for imports: there is nothing to save yet.

    A KeyboardInterrupt would end as another exception: native code, such as that of torch, replaces it.
    """

    def exit_now(_signum: int, _frame: FrameType | None) -> None:
        report_interrupt()
        os._exit(128 + signal.SIGINT)

    # Another handler stays: SIGINT may be ignored, as in the background.
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, exit_now)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
