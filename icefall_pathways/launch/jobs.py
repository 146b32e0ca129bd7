"""Run jobs in parallel processes, and stop all of them together."""

import os
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from multiprocessing import active_children, get_context

import torch

from icefall_pathways.launch.parent import exit_with_parent
from icefall_pathways.launch.signals import Stopped, stop_requests


def run_in_parallel(jobs: Sequence[Callable[[], None]], num_processes: int) -> None:
    """Run jobs in up to `num_processes` processes at a time, and wait for all of them.

    After a signal, or when a job fails, no further job is started, and the running ones receive SIGTERM: trainings
    then save a checkpoint, from which the next run resumes.

    Args:
      jobs: The jobs; they must be picklable.
      num_processes: Maximum number of jobs that run at the same time.

    Raises:
      Stopped: A signal requested to stop.
      Exception: The exception of the job that failed first.
    """
    # Processes that share the cores slow each other down if each uses all of them.
    num_threads = max(1, torch.get_num_threads() // num_processes)
    waiting, running = list(jobs), set[Future[None]]()
    with (
        stop_requests(_terminate_processes) as request,
        ProcessPoolExecutor(num_processes, get_context("spawn"), _start_process, (num_threads,)) as pool,
    ):
        try:
            while running or (waiting and not request.signum):
                while waiting and len(running) < num_processes and not request.signum:
                    running.add(pool.submit(waiting.pop(0)))
                done, running = wait(running, timeout=1.0, return_when=FIRST_COMPLETED)
                for job in done:
                    job.result()
        except BaseException as error:
            _terminate_processes()
            if request.signum and isinstance(error, Stopped | BrokenProcessPool):
                raise Stopped(request.signum) from None
            raise
    if request.signum:
        raise Stopped(request.signum)


def _start_process(num_threads: int) -> None:
    exit_with_parent()
    torch.set_num_threads(num_threads)


def _terminate_processes(_signum: int = 0) -> None:
    for process in active_children():
        with suppress(ProcessLookupError):
            if process.pid is not None:
                os.kill(process.pid, signal.SIGTERM)
