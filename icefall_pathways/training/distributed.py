"""Ranks: starting them, and what they do together."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor


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

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.world_size > 1:
            dist.barrier()


def launch(worker: Callable[..., None], world_size: int, master_port: int, *args: Any) -> None:
    """Run `worker(rank, *args)` on every rank and wait for all of them.

    Under torchrun (RANK in the environment) this process is one rank of many and `world_size` is torchrun's; otherwise
    one rank runs in this process, and several are spawned.

    Raises:
      ValueError: More ranks than CUDA devices.
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
        mp.spawn(_run_rank, (worker, (world_size, master_port), args), nprocs=world_size)


def _device(local_rank: int) -> torch.device:
    return torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")


def _run_rank(
    local_rank: int, worker: Callable[..., None], spawned: tuple[int, int] | None, args: tuple[Any, ...]
) -> None:
    device = _device(local_rank)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    if spawned is None:
        dist.init_process_group(backend)
    else:
        world_size, port = spawned
        # Ranks that share the cores of one machine slow each other down many times over when each uses all of them.
        torch.set_num_threads(max(1, torch.get_num_threads() // world_size))
        dist.init_process_group(backend, f"tcp://127.0.0.1:{port}", rank=local_rank, world_size=world_size)
    try:
        worker(Rank(dist.get_rank(), dist.get_world_size(), device), *args)
    finally:
        dist.destroy_process_group()
