"""Execution of shards: options, errors, and the end of workers."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import shard_work

from icefall_pathways.sharding.executors import ArrayPart, ExecutionConfig, open_workers

POOL = """
import sys
from pathlib import Path
import shard_work
from icefall_pathways.sharding.executors import ExecutionConfig, open_workers
if __name__ == "__main__":
    with open_workers(ExecutionConfig(num_jobs=2)) as workers:
        list(workers.map(shard_work.sleep_for_hours, [Path(sys.argv[1])] * 2))
"""


def is_running(pid: int) -> bool:
    with suppress(OSError):
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")")[-1].split()[0] != "Z"  # a zombie has exited
    return False


def test_workers_end_when_their_main_process_is_killed(tmp_path):
    script = tmp_path / "pool.py"
    script.write_text(POOL)
    (tmp_path / "pids").mkdir()
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, script, tmp_path / "pids"], env=environment) as main:
        deadline = time.monotonic() + 120
        while len(pids := [int(path.name) for path in (tmp_path / "pids").iterdir()]) < 2:
            assert main.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        assert all(map(is_running, pids))
        main.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 60
    while any(map(is_running, pids)):
        assert time.monotonic() < deadline, "workers outlive their main process"
        time.sleep(0.1)


def test_a_killed_worker_is_an_error_that_says_how_to_continue():
    with (
        pytest.raises(
            OSError, match=r"a worker process was killed, .* run the same command again .* --num-jobs than 2"
        ),
        open_workers(ExecutionConfig(num_jobs=2)) as workers,
    ):
        list(workers.map(shard_work.kill_this_process, range(2)))


def test_parts_of_an_array_job_are_disjoint_and_complete():
    parts = [ArrayPart.parse(f"{index}/3") for index in (1, 2, 3)]
    assert [[part.selects(shard) for part in parts].index(True) for shard in range(7)] == [0, 1, 2, 0, 1, 2, 0]
    assert all(sum(part.selects(shard) for part in parts) == 1 for shard in range(7))
    assert ArrayPart.parse("").selects(5)


@pytest.mark.parametrize("text", ["0/3", "4/3", "3", "a/3", "1/", "-1/3"])
def test_an_invalid_part_is_an_error(text):
    with pytest.raises(ValueError, match=r"--shard .*: expected K/N with K from 1 to N"):
        ArrayPart.parse(text)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"executor": "dask"}, "needs the address of its scheduler, --dask-scheduler"),
        ({"dask_scheduler": "tcp://localhost:1"}, "has no effect with --executor local"),
    ],
)
def test_inconsistent_options_are_errors(options, message):
    with pytest.raises(ValueError, match=message), open_workers(ExecutionConfig(**options)):
        pass
