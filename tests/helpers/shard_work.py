"""Work for the tests of sharding, in a module that worker processes can import."""

import os
import time
from pathlib import Path

from icefall_pathways.sharding.shards import Shard


def write_squares(shard: Shard[int]) -> int:
    """Write the squares of the items and return their sum."""
    squares = [item**2 for item in shard.items]
    shard.write("squares", ({"square": square} for square in squares))
    return sum(squares)


def fail(shard: Shard[int]) -> None:
    """Raise an error after writing the output."""
    write_squares(shard)
    raise RuntimeError("broken")


def square(item: int) -> int:
    """Return the square."""
    return item**2


def sleep_for_hours(folder: Path) -> None:
    """Leave the id of this process in a folder, and sleep."""
    (folder / str(os.getpid())).touch()
    time.sleep(10_000)


def kill_this_process(_item: int) -> None:
    """End this process as the kernel does when memory runs out."""
    os.kill(os.getpid(), 9)
