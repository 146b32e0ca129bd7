"""Manifests and features are the same files, whether one process, an array job or dask computes them."""

import os
import signal
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from mls_folder import make_language

from icefall_pathways.commands import compute_fbank, prepare_manifests
from icefall_pathways.corpora import layout
from icefall_pathways.corpora.description import DESCRIPTION_FILE
from icefall_pathways.data import fbank
from icefall_pathways.sharding import executors, shards

pytest.importorskip("distributed", reason="the extra dask is not installed")


@pytest.fixture(scope="module", autouse=True)
def small_shards():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "_SHARD_SIZE", 2)
        patch.setattr(fbank, "SHARD_SIZE", 1)
        yield


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus")
    make_language(path, "pl", num_utterances=6)
    return path


@contextmanager
def folder(path: Path):
    """Work in a folder, with relative paths, so that the files of different folders can be equal."""
    path.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        yield


def prepare(path: Path, corpus: Path, stages=(1, 3), **options) -> None:
    options = {"num_jobs": 1} | options
    with folder(path):
        if 1 in stages:
            prepare_manifests.run(prepare_manifests.Config("mls", corpus, Path("manifests"), "pl", **options))
        if 3 in stages:
            config = compute_fbank.Config(Path("manifests"), Path("fbank"), "pl", perturb_speed=True, **options)
            compute_fbank.run(config)


def contents(path: Path) -> dict[str, bytes]:
    """Return all files but the descriptions, which contain the working directory."""
    files = [file for file in sorted(path.rglob("*")) if file.is_file() and file.name != DESCRIPTION_FILE]
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


@pytest.fixture(scope="module")
def expected(corpus, tmp_path_factory):
    path = tmp_path_factory.mktemp("expected")
    prepare(path, corpus)
    files = contents(path)
    assert "fbank/mls-polish_cuts_train.jsonl.gz" in files and "fbank/mls-polish_feats_train/feats-17.lca" in files
    assert not any("part-" in name for name in files)
    return files


def test_a_second_preparation_gives_the_same_files(corpus, expected, tmp_path):
    prepare(tmp_path, corpus)
    assert contents(tmp_path) == expected


def test_an_array_job_gives_the_same_files(corpus, expected, tmp_path):
    for stage in (1, 3):
        for shard in ("2/2", "1/2"):
            prepare(tmp_path, corpus, (stage,), shard=shard)
        assert contents(tmp_path).keys() != expected.keys()
        prepare(tmp_path, corpus, (stage,))  # joins the shards
    assert contents(tmp_path) == expected


def test_killed_manifests_continue_with_the_missing_shards(corpus, expected, tmp_path, monkeypatch):
    """SIGKILL while the second shard is being written; the first is not computed again."""
    written, compute = [], shards._compute_shard

    def record(function, task):
        if os.getpid() != parent and written:
            task[0].path("supervisions").write_bytes(b"incomplete")
            os.kill(os.getpid(), signal.SIGKILL)
        written.append(task[0].folder / f"part-{task[0].index}.json")
        return compute(function, task)

    monkeypatch.setattr(shards, "_compute_shard", record)
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        try:
            prepare(tmp_path, corpus, (1,))
        finally:
            os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    marks = list(tmp_path.rglob("part-*.json"))
    prepare(tmp_path, corpus)
    assert len(marks) == 1 and written and marks[0] not in written
    assert contents(tmp_path) == expected


def test_dask_gives_the_same_files_even_if_a_worker_is_killed(corpus, expected, tmp_path):
    from distributed import LocalCluster

    killed = []

    def kill_a_worker() -> None:
        while not list(tmp_path.glob("fbank/mls-polish_feats_train/part-*.json")):
            time.sleep(0.01)
        worker = cluster.workers[2]
        killed.append(worker.pid)
        os.kill(worker.pid, signal.SIGKILL)

    with LocalCluster(n_workers=4, threads_per_worker=1, dashboard_address=None) as cluster:
        killer = threading.Thread(target=kill_a_worker)
        killer.start()
        prepare(tmp_path, corpus, executor="dask", dask_scheduler=cluster.scheduler_address)
        killer.join()
        assert killed and not any(worker.pid in killed for worker in cluster.workers.values())
    assert contents(tmp_path) == expected


def test_an_unreachable_scheduler_is_an_error(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(executors, "_DASK_TIMEOUT", 1.0)
    with pytest.raises(ValueError, match=r"cannot reach the scheduler of dask at tcp://localhost:1 .*dask scheduler"):
        prepare(tmp_path, corpus, executor="dask", dask_scheduler="tcp://localhost:1")
