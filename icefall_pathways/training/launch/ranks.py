"""Ranks: starting them, and what they do together."""

import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import count
from multiprocessing import connection, get_context
from multiprocessing.context import SpawnProcess
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from icefall_pathways.training.launch.failures import FailureWatch, RankError, raise_again, read_failure
from icefall_pathways.training.launch.signals import EXIT_CODES, Stopped, stop_requests

_launches = count()  # of this process: a mask search is one for each language, and none may meet another's keys
_WATCH = "watch"  # the part of the store in which ranks tell of their failures


@dataclass(frozen=True)
class Rank:
    """One process of a training run.

    Attributes:
      index: Its number, 0 to world_size - 1; rank 0 writes the files.
      world_size: How many there are.
      device: Where its model and batches live.
    """

    index: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_main(self) -> bool:
        """Whether this rank writes the files."""
        return self.index == 0

    def sum(self, values: Tensor) -> Tensor:
        """The sum of `values` over all ranks, in place."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    def gather(self, value: Any) -> list[Any]:
        """What every rank gives, in the order of the ranks: plain data, small, and seldom."""
        values = [value]
        if self.world_size > 1:
            values = [None] * self.world_size
            dist.all_gather_object(values, value)
        return values

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.world_size > 1:
            dist.barrier()


def launch(worker: Callable[..., None], world_size: int, master_port: int, *args: Any) -> None:
    """Run `worker(rank, *args)` on every rank and wait for all of them.

    Under torchrun (RANK in the environment) this process is one rank of many and `world_size` is torchrun's; otherwise
    one rank runs in this process, and several are spawned. When one fails, all end.

    Raises:
      ValueError: More ranks than CUDA devices, a port in use, or what a rank raised of errors that its user can act on.
      RankError: Any other failure of a spawned rank, with its trace.
      Stopped: The ranks saved and ended because a signal asked for it.
    """
    if "RANK" in os.environ:
        _run_rank(int(os.environ.get("LOCAL_RANK", 0)), worker, None, args)
    elif world_size == 1:
        worker(Rank(device=_device(0)), *args)
    else:
        if torch.cuda.is_available() and torch.cuda.device_count() < world_size:
            raise ValueError(
                f"--world-size {world_size} with {torch.cuda.device_count()} CUDA devices: give at most so many"
            )
        _spawn(worker, world_size, master_port, args)


def _device(local_rank: int) -> torch.device:
    return torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")


def _spawn(worker: Callable[..., None], world_size: int, port: int, args: tuple[Any, ...]) -> None:
    try:
        store = dist.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
    except RuntimeError as error:
        raise ValueError(f"cannot listen on port {port} ({error}): choose another one with --master-port") from error
    spawn = get_context("spawn")
    spawned = (world_size, port)
    ranks = [spawn.Process(target=_run_rank, args=(i, worker, spawned, args)) for i in range(world_size)]

    def forward(_number: int) -> None:
        for rank in ranks:
            if rank.is_alive() and rank.pid is not None:
                os.kill(rank.pid, signal.SIGTERM)

    with stop_requests(forward) as request:
        for rank in ranks:
            rank.start()
        try:
            while all(rank.exitcode in (None, 0) for rank in ranks) and any(rank.is_alive() for rank in ranks):
                connection.wait([rank.sentinel for rank in ranks if rank.is_alive()], timeout=1)
        finally:
            _end(ranks)
    codes = [rank.exitcode for rank in ranks]
    if request.number and set(codes) <= {0, *EXIT_CODES}:
        raise Stopped(request.number)
    if any(codes):
        _explain(codes, store)


def _end(ranks: Sequence[SpawnProcess], grace: float = 8.0) -> None:
    """Wait for ranks that end by themselves after another one has, then end the others."""
    deadline = time.monotonic() + grace
    for rank in ranks:
        rank.join(max(0.0, deadline - time.monotonic()))
    for rank in ranks:
        if rank.is_alive():
            rank.kill()
            rank.join()
            rank._popen.returncode = 1  # type: ignore[attr-defined]


def _explain(codes: Sequence[int | None], store: dist.Store) -> None:
    """Raise for the rank that failed first: one that a signal killed could not tell, and made others fail."""
    for rank, code in enumerate(codes):
        if code is not None and code < 0:
            name = signal.Signals(-code).name
            hint = ", as the kernel does when memory runs out: look at dmesg" if name == "SIGKILL" else ""
            raise RankError(f"rank {rank} was killed by {name}{hint}. Run the same command again to go on")
    failure = read_failure(dist.PrefixStore(_WATCH, store))
    if failure is not None:
        raise_again(failure)
    raise RankError(f"the ranks ended with exit statuses {list(codes)}")


@cache
def _torchruns_store() -> tuple[dist.Store, int, int]:
    """What the ranks that torchrun has started share, this one's number and theirs; made once in a process."""
    return next(dist.rendezvous("env://"))


def _run_rank(
    local_rank: int, worker: Callable[..., None], spawned: tuple[int, int] | None, args: tuple[Any, ...]
) -> None:
    device = _device(local_rank)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if spawned is None:
        store, index, world_size = _torchruns_store()
        store = dist.PrefixStore(f"launch-{next(_launches)}", store)
    else:
        world_size, port = spawned
        index = local_rank
        store = dist.TCPStore("127.0.0.1", port, is_master=False)
        # Ranks that share the cores of one machine slow each other down many times over when each uses all of them.
        torch.set_num_threads(max(1, torch.get_num_threads() // world_size))
    try:
        with FailureWatch(dist.PrefixStore(_WATCH, store), index, world_size):
            dist.init_process_group(
                "nccl" if device.type == "cuda" else "gloo",
                store=dist.PrefixStore("ranks", store),
                rank=index,
                world_size=world_size,
            )
            worker(Rank(index, world_size, device), *args)
            dist.barrier()  # the store may live in a rank that is done
    except Stopped as stopped:
        sys.exit(stopped.exit_code)
    dist.destroy_process_group()
