"""Start the ranks of a distributed run; communication between them."""

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

from icefall_pathways.launch.failures import FailureWatch, RankError, raise_failure, read_failure
from icefall_pathways.launch.signals import EXIT_CODES, Stopped, stop_requests

_launch_ids = count()  # a mask search launches once per language; an id keeps the keys of launches apart
_FAILURES_PREFIX = "watch"  # prefix of the keys of `FailureWatch` in the store


@dataclass(frozen=True)
class Rank:
    """One process of a distributed run.

    Attributes:
      index: 0 to world_size - 1; rank 0 writes the files.
      world_size: Number of ranks.
      device: Device of its model and batches.
      store: Key-value store that all ranks share; see `count`.
    """

    index: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    store: dist.Store = field(default_factory=dist.HashStore, repr=False, compare=False)

    @property
    def is_main(self) -> bool:
        """True for the rank that writes the files."""
        return self.index == 0

    def sum(self, values: Tensor) -> Tensor:
        """Sum `values` over all ranks, in place, and return them."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all ranks, in the order of the ranks. They are pickled: use it for small values only."""
        values = [value]
        if self.world_size > 1:
            values = [None] * self.world_size
            dist.all_gather_object(values, value)
        return values

    def count(self, name: str, amount: int = 1) -> int:
        """Add `amount` to the counter `name`, which all ranks share and which starts at 0, and return its new value."""
        return self.store.add(name, amount)

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.world_size > 1:
            dist.barrier()


def launch(worker: Callable[..., None], world_size: int, master_port: int, *args: Any) -> None:
    """Run `worker(rank, *args)` on every rank and wait for all of them.

    Under torchrun (RANK in the environment) this process is one of the ranks, and torchrun defines the world size.
    Otherwise a single rank runs in this process, and several ranks are spawned. When one rank fails, all are stopped.

    Raises:
      ValueError: There are more ranks than CUDA devices, the port is in use, or a rank raised a user-actionable error.
      RankError: A spawned rank failed for another reason; the message contains its traceback.
      ChildProcessError: A spawned rank was killed.
      Stopped: The ranks saved their state and stopped because of a signal.
    """
    if "RANK" in os.environ:
        _run_rank(int(os.environ.get("LOCAL_RANK", 0)), worker, None, args)
    elif world_size == 1:
        worker(Rank(device=_device(0)), *args)
    else:
        if torch.cuda.is_available() and torch.cuda.device_count() < world_size:
            raise ValueError(
                f"--world-size {world_size} with {torch.cuda.device_count()} CUDA devices: use at most one per device"
            )
        _spawn(worker, world_size, master_port, args)


def _device(local_rank: int) -> torch.device:
    return torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")


def _spawn(worker: Callable[..., None], world_size: int, port: int, args: tuple[Any, ...]) -> None:
    try:
        store = dist.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
    except RuntimeError as error:
        raise ValueError(f"cannot listen on port {port} ({error}): choose another port with --master-port") from error
    spawn = get_context("spawn")
    spawned = (world_size, port)
    ranks = [spawn.Process(target=_run_rank, args=(i, worker, spawned, args)) for i in range(world_size)]

    def forward(_signum: int) -> None:
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
            _join(ranks)
    codes = [rank.exitcode for rank in ranks]
    if request.signum and set(codes) <= {0, *EXIT_CODES}:
        raise Stopped(request.signum)
    if any(codes):
        _raise_first_failure(codes, store)


def _join(ranks: Sequence[SpawnProcess], grace: float = 8.0) -> None:
    """Wait up to `grace` seconds for all ranks to exit, then kill the others."""
    deadline = time.monotonic() + grace
    for rank in ranks:
        rank.join(max(0.0, deadline - time.monotonic()))
    for rank in ranks:
        if rank.is_alive():
            rank.kill()
            rank.join()
            # Positive, because this kill is a consequence of the first failure and must not be reported as one.
            rank._popen.returncode = 1  # type: ignore[attr-defined]


def _raise_first_failure(codes: Sequence[int | None], store: dist.Store) -> None:
    """Raise the failure of the rank that failed first.

    A rank killed by a signal cannot report its failure, and causes the failures of others, so it comes first.
    """
    for rank, code in enumerate(codes):
        if code is not None and code < 0:
            name = signal.Signals(-code).name
            hint = ", as the kernel does when memory runs out: check dmesg" if name == "SIGKILL" else ""
            raise ChildProcessError(f"rank {rank} was killed by {name}{hint}. Run the same command again to resume")
    failure = read_failure(dist.PrefixStore(_FAILURES_PREFIX, store))
    if failure is not None:
        raise_failure(failure)
    raise RankError(f"the ranks exited with statuses {list(codes)}")


@cache
def _torchrun_store() -> tuple[dist.Store, int, int]:
    """Return the store shared by the ranks of torchrun, the index of this rank and the world size; once per process."""
    return next(dist.rendezvous("env://"))


def _run_rank(
    local_rank: int, worker: Callable[..., None], spawned: tuple[int, int] | None, args: tuple[Any, ...]
) -> None:
    device = _device(local_rank)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if spawned is None:
        store, index, world_size = _torchrun_store()
        store = dist.PrefixStore(f"launch-{next(_launch_ids)}", store)
    else:
        world_size, port = spawned
        index = local_rank
        store = dist.TCPStore("127.0.0.1", port, is_master=False)
        # Ranks that share the cores of a machine slow each other down severely if each uses all of them.
        torch.set_num_threads(max(1, torch.get_num_threads() // world_size))
    try:
        with FailureWatch(dist.PrefixStore(_FAILURES_PREFIX, store), index, world_size, prints=spawned is None):
            dist.init_process_group(
                "nccl" if device.type == "cuda" else "gloo",
                store=dist.PrefixStore("ranks", store),
                rank=index,
                world_size=world_size,
            )
            worker(Rank(index, world_size, device, dist.PrefixStore("counters", store)), *args)
            dist.barrier()  # the process that hosts the store may have finished
    except Stopped as stopped:
        sys.exit(stopped.exit_code)
    dist.destroy_process_group()
