"""Ranks for tests: forked ranks, which start without importing modules again, and failing ranks."""

import os
import signal
import sys
import traceback
from pathlib import Path

import torch
import torch.distributed as dist

from icefall_pathways.launch.ranks import Rank


def fork_ranks(worker, world_size: int, folder: Path, *args) -> None:
    """Run `worker(rank, *args)` in `world_size` forked processes with a gloo process group, and wait for them."""
    folder.mkdir(parents=True, exist_ok=True)
    children = []
    for index in range(world_size):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                torch.set_num_threads(1)  # the threads of the parent do not exist here, and OpenMP would wait for them
                dist.init_process_group("gloo", f"file://{folder / 'rendezvous'}", rank=index, world_size=world_size)
                worker(Rank(index, world_size, store=dist.FileStore(str(folder / "counters"), world_size)), *args)
                dist.barrier()
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(status)
        children.append(child)
    statuses = [os.waitpid(child, 0)[1] for child in children]
    assert not any(statuses), f"exit statuses of the ranks: {statuses}"


def fail(rank: Rank, kind: str) -> None:
    """Fail on rank 1 with an "exception", a user-actionable "error" or a kill; rank 0 waits in a barrier."""
    if rank.index == 1:
        if kind == "exception":
            _ = 1 / 0
        elif kind == "error":
            raise ValueError("use another option")
        os.kill(os.getpid(), signal.SIGKILL)
    rank.barrier()
