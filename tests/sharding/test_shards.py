"""Sharded outputs: the same files whatever the order, the workers, or the interruptions."""

import io
from pathlib import Path

import pytest
import shard_work
from tqdm import tqdm

from icefall_pathways.sharding.executors import ArrayPart, ExecutionConfig, Workers, open_workers
from icefall_pathways.sharding.jsonl import read_lines
from icefall_pathways.sharding.shards import ShardedOutput

ITEMS = range(10)


def compute(folder: Path, workers: Workers | None = None, function=shard_work.write_squares, items=ITEMS, **options):
    output = ShardedOutput(folder, options, shard_size=3)
    with tqdm(total=len(items), file=io.StringIO()) as bar:
        num_shards = output.compute(items, function, workers or Workers(), bar)
        assert bar.n == len(items)
    return output, num_shards


def joined(folder: Path, output: ShardedOutput, num_shards: int) -> bytes:
    output.join(num_shards, {"squares": folder / "squares.jsonl.gz"})
    output.clean()
    assert not output.folder.exists()
    return (folder / "squares.jsonl.gz").read_bytes()


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    folder = tmp_path_factory.mktemp("expected")
    output, num_shards = compute(folder / "shards")
    assert output.results(num_shards) == [5, 50, 149, 81]
    content = joined(folder, output, num_shards)
    assert list(read_lines(folder / "squares.jsonl.gz")) == [f'{{"square": {item**2}}}'.encode() for item in ITEMS]
    return content


def test_processes_give_the_same_file(tmp_path, expected):
    with open_workers(ExecutionConfig(num_jobs=2)) as workers:
        output, num_shards = compute(tmp_path / "shards", workers)
    assert joined(tmp_path, output, num_shards) == expected


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_parts_of_an_array_job_give_the_same_file(tmp_path, expected, order):
    for remainder in order:
        assert compute(tmp_path / "shards", Workers(part=ArrayPart(remainder, 3)))[1] is None
    output, num_shards = compute(tmp_path / "shards", function=shard_work.fail)  # everything is there
    assert joined(tmp_path, output, num_shards) == expected


def test_a_failure_keeps_finished_shards(tmp_path, expected):
    compute(tmp_path / "shards", Workers(part=ArrayPart(0, 2)))
    with pytest.raises(RuntimeError, match="broken"):
        compute(tmp_path / "shards", function=shard_work.fail)
    assert [path.name for path in sorted((tmp_path / "shards").glob("part-*"))] == ["part-0.json", "part-2.json"]
    output, num_shards = compute(tmp_path / "shards")
    assert joined(tmp_path, output, num_shards) == expected


def test_shards_of_changed_items_are_computed_again_and_reported(tmp_path, expected, capsys):
    compute(tmp_path / "shards", items=[0, 1, 2, 3, 44, 5, 6, 7, 8, 9])
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "shards").glob("squares-*")}
    output, num_shards = compute(tmp_path / "shards")
    assert "computed 1 shards again, whose inputs have changed" in capsys.readouterr().err
    assert [path.name for path, time in stamps.items() if path.stat().st_mtime_ns != time] == ["squares-1.jsonl.gz"]
    assert joined(tmp_path, output, num_shards) == expected


def test_unfinished_shards_of_other_options_are_kept(tmp_path):
    compute(tmp_path / "shards", Workers(part=ArrayPart(0, 2)), speed=1)
    before = sorted((tmp_path / "shards").iterdir())
    with pytest.raises(ValueError, match=r"shards holds unfinished work of other options \(speed 1, now 2\): use"):
        compute(tmp_path / "shards", speed=2)
    assert sorted((tmp_path / "shards").iterdir()) == before


def test_an_interrupted_removal_is_completed(tmp_path):
    output, _ = compute(tmp_path / "shards")
    (tmp_path / "shards" / "part-0.json").unlink()
    assert output.is_unfinished
    output.clean(keep="squares-*")
    assert not output.is_unfinished
    assert {path.name for path in (tmp_path / "shards").iterdir()} == {f"squares-{i}.jsonl.gz" for i in range(4)}
