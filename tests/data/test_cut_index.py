"""Index of the training cuts: built once, current after every change, and as good as reading the manifest."""

import gzip
import os
import pickle
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from lhotse import CutSet
from safetensors import safe_open
from safetensors.numpy import save, save_file
from speech_cuts import TEXTS, lengths, make_cuts, write_cuts

from icefall_pathways import files
from icefall_pathways.data import indexing
from icefall_pathways.data.cut_index import CutIndex
from icefall_pathways.data.indexing import open_index
from icefall_pathways.data.manifests import DataError
from icefall_pathways.data.tokenizer import Tokenizer, train_tokenizer
from icefall_pathways.data.usable_cuts import CutFlag
from icefall_pathways.sharding import jsonl
from icefall_pathways.sharding.executors import Workers
from icefall_pathways.sharding.jsonl import read_lines, read_members, write_lines


@pytest.fixture
def manifest(tmp_path):
    """Return the manifest of 200 cuts, written by Lhotse in a single gzip member."""
    return write_cuts(tmp_path, "en", "train", make_cuts(tmp_path, "en", "en", lengths(200)))


def index_of(*manifests: Path, tokenizer: Tokenizer) -> CutIndex:
    return open_index(manifests, tokenizer, manifests[0].parent / "index", "en")


def assert_equal_cuts(index, cuts):
    assert len(index) == len(cuts)
    order = np.random.default_rng(1).permutation(len(cuts))
    assert [cut.to_dict() for cut in index.read(order)] == [cuts[i].to_dict() for i in order]
    assert index.durations.tolist() == [cut.duration for cut in cuts]


@pytest.mark.parametrize(
    ("layout", "num_copies"), [("large member", 1), ("members", 0), ("plain", 1), ("two files", 1), ("split lines", 1)]
)
def test_index_reads_the_cuts_of_any_layout(manifest, tokenizer, layout, num_copies, monkeypatch):
    cuts = list(CutSet.from_file(manifest))
    manifests = [manifest]
    monkeypatch.setattr(jsonl, "MAX_MEMBER_BYTES", 100_000)
    if layout == "members":
        write_lines(manifest, list(read_lines(manifest)))
    elif layout == "plain":
        manifests = [manifest.with_name("cuts.jsonl")]
        manifests[0].write_bytes(gzip.decompress(manifest.read_bytes()))
    elif layout == "two files":
        manifests.append(manifest.with_name("more.jsonl.gz"))
        CutSet.from_cuts(cuts[:7]).to_file(manifests[1])
        cuts += cuts[:7]
    elif layout == "split lines":
        text = gzip.decompress(manifest.read_bytes())
        manifest.write_bytes(b"".join(gzip.compress(text[i : i + 1000]) for i in range(0, len(text), 1000)))
    index = index_of(*manifests, tokenizer=tokenizer)
    assert_equal_cuts(index, cuts)
    assert_equal_cuts(pickle.loads(pickle.dumps(index)), cuts)
    assert len(list((manifest.parent / "index").glob("*.jsonl.gz"))) == num_copies
    assert set(index.num_tokens) == {len(tokenizer.encode([TEXTS["en"]])[0])}
    assert set(index.flags) == {CutFlag.NO_AUDIO}


def forbid_building(monkeypatch):
    def fail(*args):
        raise AssertionError("the index is current")

    monkeypatch.setattr(indexing, "_write_index", fail)


def test_index_is_built_once(manifest, tokenizer, monkeypatch):
    index_of(manifest, tokenizer=tokenizer)
    forbid_building(monkeypatch)
    index_of(manifest, tokenizer=tokenizer)
    os.utime(manifest, (1, 1))  # as after a copy
    index_of(manifest, tokenizer=tokenizer)


def test_changed_manifest_is_indexed_again_even_if_size_and_time_are_the_same(manifest, tokenizer):
    cuts = list(CutSet.from_file(manifest))
    write_lines(manifest, list(read_lines(manifest)))
    index_of(manifest, tokenizer=tokenizer)
    before = manifest.stat()
    content = manifest.read_bytes()
    members = [member for _, member in read_members(manifest)]
    manifest.write_bytes(b"".join([*members[1:], members[0]]))
    os.utime(manifest, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert manifest.stat().st_size == before.st_size and manifest.read_bytes() != content
    assert_equal_cuts(index_of(manifest, tokenizer=tokenizer), cuts[100:] + cuts[:100])


def test_each_tokenizer_has_its_index(manifest, tokenizer, tmp_path, monkeypatch):
    other = Tokenizer(train_tokenizer([TEXTS["fr"]], 14, tmp_path / "fr"))
    assert set(index_of(manifest, tokenizer=tokenizer).flags) == {CutFlag.NO_AUDIO}
    assert all(index_of(manifest, tokenizer=other).flags & CutFlag.UNCOVERED_CHARACTERS)
    forbid_building(monkeypatch)
    assert set(index_of(manifest, tokenizer=tokenizer).flags) == {CutFlag.NO_AUDIO}


def test_several_processes_write_the_same_index(manifest, tokenizer, monkeypatch):
    cuts = list(CutSet.from_file(manifest))
    write_lines(manifest, list(read_lines(manifest)))
    path = index_of(manifest, tokenizer=tokenizer).path
    content = path.read_bytes()
    path.unlink()
    monkeypatch.setattr(indexing, "_MIN_PARALLEL_BYTES", 0)
    monkeypatch.setattr(indexing, "_TASK_MEMBERS", 1)
    monkeypatch.setattr(indexing, "open_workers", reversed_workers)
    assert_equal_cuts(index_of(manifest, tokenizer=tokenizer), cuts)
    assert path.read_bytes() == content


@contextmanager
def reversed_workers(config):
    """Start two threads instead of processes, which complete tasks in reverse order."""
    with ThreadPoolExecutor(2) as pool:

        class Reversed(Workers):
            def map(self, function, tasks):
                return reversed(list(super().map(function, tasks)))

        yield Reversed(pool, 4)


def test_damaged_index_is_built_again(manifest, tokenizer, monkeypatch):
    monkeypatch.setattr(jsonl, "MAX_MEMBER_BYTES", 100_000)
    cuts = list(CutSet.from_file(manifest))
    index_of(manifest, tokenizer=tokenizer).path.write_bytes(b"{}")
    assert_equal_cuts(index_of(manifest, tokenizer=tokenizer), cuts)
    (copy,) = (manifest.parent / "index").glob("*.jsonl.gz")
    copy.unlink()
    assert_equal_cuts(index_of(manifest, tokenizer=tokenizer), cuts)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:-1],
        lambda data: data + b"\0",
        lambda data: data.replace(b'"flags"', b'"other"'),
        lambda data: b"\2" + bytes(7) + b"[]",
        lambda data: save({}, {"index": "null"}),
        lambda data: save({}),
    ],
    ids=["empty", "truncated", "extended", "another column", "no header", "another value", "no metadata"],
)
def test_index_of_any_damage_is_built_again(manifest, tokenizer, damage):
    path = index_of(manifest, tokenizer=tokenizer).path
    expected = path.read_bytes()
    path.write_bytes(damage(expected))
    index_of(manifest, tokenizer=tokenizer)
    assert path.read_bytes() == expected


def test_row_of_a_damaged_index_is_reported_with_the_file_to_remove(manifest, tokenizer):
    index = index_of(manifest, tokenizer=tokenizer)
    with safe_open(index.path, "np") as file:
        columns = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    save_file(columns | {"file": columns["file"] + 1}, index.path, metadata)
    with pytest.raises(DataError, match=r"cannot read cut 0 .*remove this index") as error:
        index_of(manifest, tokenizer=tokenizer).read([0])
    assert str(index.path) in str(error.value)


def test_one_process_builds_and_the_others_wait(manifest, tokenizer, monkeypatch):
    write_index = indexing._write_index

    def slowly(*args):
        time.sleep(0.3)
        write_index(*args)
        (manifest.parent / f"built-{os.getpid()}").touch()

    monkeypatch.setattr(indexing, "_write_index", slowly)
    children = []
    for _ in range(3):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                status = len(index_of(manifest, tokenizer=tokenizer)) != 200
            finally:
                os._exit(status)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
    assert len(list(manifest.parent.glob("built-*"))) == 1


def test_folder_that_cannot_be_written_is_reported(manifest, tokenizer, monkeypatch):
    def fail(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(indexing, "exclusive_lock", fail)
    with pytest.raises(DataError, match=r"cannot write the index of .*train.jsonl.gz.*--index-dir"):
        index_of(manifest, tokenizer=tokenizer)


def test_hash_is_remembered_until_the_file_changes(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_COARSEST_TIME_STAMP", -1)
    path, memory = tmp_path / "x", tmp_path / "x.sha256.json"
    path.write_bytes(b"a")
    first = files.remembered_sha256(path, memory)
    monkeypatch.setattr(files, "sha256", lambda path: "computed again")
    assert files.remembered_sha256(path, memory) == first
    time.sleep(0.02)
    path.write_bytes(b"b")
    assert files.remembered_sha256(path, memory) == "computed again"


def test_hash_of_a_file_that_has_just_been_written_is_not_remembered(tmp_path):
    (tmp_path / "x").write_bytes(b"a")
    files.remembered_sha256(tmp_path / "x", tmp_path / "memory.json")
    assert not (tmp_path / "memory.json").exists()
