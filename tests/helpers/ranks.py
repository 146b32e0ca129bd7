"""Ranks for tests: forked, so that they need not import everything anew; and some that fail."""

import os
import signal
import sys
import traceback
from pathlib import Path

import torch.distributed as dist

from icefall_pathways.training.launch.ranks import Rank


def fork_ranks(worker, world_size: int, folder: Path, *args) -> None:
    """Run `worker(rank, *args)` in `world_size` forked processes that talk through gloo, and wait for them."""
    folder.mkdir(parents=True, exist_ok=True)
    children = []
    for index in range(world_size):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                dist.init_process_group("gloo", f"file://{folder / 'rendezvous'}", rank=index, world_size=world_size)
                worker(Rank(index, world_size), *args)
                dist.barrier()
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(status)
        children.append(child)
    statuses = [os.waitpid(child, 0)[1] for child in children]
    assert not any(statuses), f"statuses of the ranks: {statuses}"


def fail(rank: Rank, how: str) -> None:
    """Rank 1 fails, rank 0 waits for it."""
    if rank.index == 1:
        if how == "exception":
            _ = 1 / 0
        elif how == "error":
            raise ValueError("use another option")
        os.kill(os.getpid(), signal.SIGKILL)
    rank.barrier()
