"""Trainings that run side by side, each in a process of its own, and end together."""

import os
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from multiprocessing import active_children, get_context

import torch

from icefall_pathways.training.launch.signals import Stopped, stop_requests


def run_side_by_side(jobs: Sequence[Callable[[], None]], at_once: int) -> None:
    """Run jobs, so many at a time, and wait for all of them.

    When a signal asks to stop, or one of them fails, those that wait are not begun, and those that run are sent
    SIGTERM: trainings save then, and go on when they are started again.

    Args:
      jobs: What to run; it must be possible to pickle them.
      at_once: How many processes.

    Raises:
      Stopped: A signal asked to stop.
      Exception: What the job raised that failed first.
    """
    # Processes that share the cores slow each other down when each uses all of them.
    threads = max(1, torch.get_num_threads() // at_once)
    waiting, running = list(jobs), set[Future[None]]()
    with (
        stop_requests(_stop_processes) as request,
        ProcessPoolExecutor(at_once, get_context("spawn"), torch.set_num_threads, (threads,)) as pool,
    ):
        try:
            while running or (waiting and not request.number):
                while waiting and len(running) < at_once and not request.number:
                    running.add(pool.submit(waiting.pop(0)))
                done, running = wait(running, timeout=1.0, return_when=FIRST_COMPLETED)
                for job in done:
                    job.result()
        except BaseException as error:
            _stop_processes()
            if request.number and isinstance(error, Stopped | BrokenProcessPool):
                raise Stopped(request.number) from None
            raise
    if request.number:
        raise Stopped(request.number)


def _stop_processes(_number: int = 0) -> None:
    for process in active_children():
        with suppress(ProcessLookupError):
            if process.pid is not None:
                os.kill(process.pid, signal.SIGTERM)
