"""Training cuts in Lhotse Shar: shuffled shards, sequential reading, and batches that depend on the update alone."""

import errno
import pickle
import shutil
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from threading import Thread

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from lhotse import CutSet, Recording, SupervisionSegment
from lhotse.shar import SharWriter
from speech_cuts import lengths, make_cuts, write_cuts

from icefall_pathways.corpora.layout import SplitFiles
from icefall_pathways.data import shar
from icefall_pathways.data.datamodule import DataConfig, SpeechDataModule
from icefall_pathways.data.indexing import open_index
from icefall_pathways.data.manifests import DataError, check_cut
from icefall_pathways.data.sampling import SamplingConfig, ShardedBatchStream, SortedCuts
from icefall_pathways.data.shar import SharConfig, SharIndex, export_shar, shar_location
from icefall_pathways.files import read_json, write_json
from icefall_pathways.languages import get_language
from icefall_pathways.sharding.executors import Workers

NUM_CUTS, SHARD_SIZE = 50, 8
SUPERVISION = SupervisionSegment("", "", 0.0, 1.0, text="one two", language="en")


@pytest.fixture
def files(tmp_path):
    write_cuts(tmp_path, "en", "train", make_cuts(tmp_path, "en", "en", lengths(NUM_CUTS)))
    return SplitFiles(tmp_path, "mls", get_language("en"), "train")


@pytest.fixture
def index(files, tokenizer):
    return open_index([files.cuts], tokenizer, files.folder / "index", "en")


def write(index, files, seed=1):
    export_shar(index, files, SharConfig("features", SHARD_SIZE, seed), Workers())


def test_shards_hold_every_cut_once_in_random_order(index, files):
    write(index, files)
    stored = list(CutSet.from_shar(in_dir=files.shar))  # as any program that uses Lhotse reads them
    original = {cut.id: cut for cut in CutSet.from_file(files.cuts)}
    assert Counter(cut.id for cut in stored) == Counter(original.keys())
    all_cuts = CutSet.from_file(files.shar_cuts)
    assert [cut.id for cut in stored] == [cut.id for cut in all_cuts]
    for cut in all_cuts:
        check_cut(cut, files.shar_cuts)  # no exception for the manifest that the index reads
    positions = [int(cut.id.removeprefix("en-")) for cut in stored]
    shards = [positions[i : i + SHARD_SIZE] for i in range(0, NUM_CUTS, SHARD_SIZE)]
    assert [len(shard) for shard in shards] == [8] * 6 + [2]
    assert all(max(shard) - min(shard) > NUM_CUTS / 3 for shard in shards[:-1])
    for cut in stored:
        expected = original[cut.id]
        assert (cut.duration, cut.supervisions[0].text) == (expected.duration, expected.supervisions[0].text)
        np.testing.assert_allclose(cut.load_features(), expected.load_features(), atol=0.1)  # lilcom rounds again
    assert not list(files.folder.glob("*.unfinished"))


def test_shards_of_other_options_or_cuts_are_not_replaced(index, files):
    write(index, files)
    before = _contents(files)
    write(index, files)
    assert _contents(files) == before
    with pytest.raises(DataError, match=r"shards of other options or of other cuts .*remove .*_shar_train\.json"):
        write(index, files, seed=2)
    write_cuts(files.folder, "en", "train", list(CutSet.from_file(files.cuts))[:-1])
    with pytest.raises(DataError, match="other cuts"):
        write(index, files)


def _contents(files):
    paths = [path for path in files.shar.iterdir() if path.name.endswith(".jsonl.gz")]
    return {path.name: path.read_bytes() for path in [*paths, files.shar_cuts, files.shar_description]}


def test_interrupted_writing_resumes_with_the_finished_shards(index, files, monkeypatch):
    write(index, files)
    expected = _contents(files)
    shutil.rmtree(files.shar)
    files.shar_description.unlink()
    written = []
    write_shard = shar._write_shard

    def interrupted(index, folder, field, shard):
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(shard.index)
        write_shard(index, folder, field, shard)

    monkeypatch.setattr(shar, "_write_shard", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(index, files)
    with pytest.raises(DataError, match=r"no .*mls-english_shar_train.json.*--store shar --languages en"):
        shar.read_config(files, files.folder / "hash.json")
    monkeypatch.setattr(shar, "_write_shard", lambda *args: (written.append(args[-1].index), write_shard(*args)))
    write(index, files)
    assert written == list(range(7))
    assert _contents(files) == expected


def data_module(folder, tokenizer, **options):
    defaults = {"manifest_dir": folder, "languages": "en", "num_workers": 0, "max_duration": 8.0, "from_shar": True}
    defaults |= {"enable_spec_aug": False, "volume_perturb": False}
    defaults |= {"shift_perturb": 0.0, "silence_perturb": 0.0, "join_perturb": 0.0}
    return SpeechDataModule(DataConfig(**defaults | options), tokenizer)


def batches(data, world_size=1, num_updates=6, start_update=0, accum_grad=1):
    """Return the batches of each update, in the order of their numbers."""
    ranks = [
        list(data.train_batches(start_update, num_updates, 3, rank, world_size, accum_grad))
        for rank in range(world_size)
    ]
    return [
        [ranks[rank][update * accum_grad + i] for i in range(accum_grad) for rank in range(world_size)]
        for update in range(num_updates)
    ]


def ids(updates):
    return [[batch.cut_ids for batch in update] for update in updates]


def test_batches_have_the_features_of_the_manifest(index, files, tokenizer):
    write(index, files)
    shutil.rmtree(files.folder / "index")
    cuts = {cut.id: cut for cut in CutSet.from_file(files.cuts)}
    data = data_module(files.folder, tokenizer)
    (stream,) = data._batch_streams(1).values()
    seen = Counter()
    for (batch,) in batches(data, num_updates=stream.num_batches):
        seen.update(batch.cut_ids)
        for features, length, cut_id in zip(batch.inputs, batch.num_frames, batch.cut_ids, strict=True):
            np.testing.assert_allclose(features[:length], cuts[cut_id].load_features(), atol=0.1)
    assert set(seen.values()) == {1} and len(seen) == NUM_CUTS


def test_a_resumed_and_an_elastic_run_get_the_same_batches(index, files, tokenizer):
    write(index, files)
    data = data_module(files.folder, tokenizer)
    expected = ids(batches(data, world_size=4, num_updates=10))
    assert ids(batches(data, world_size=2, num_updates=10, accum_grad=2)) == expected
    assert ids(batches(data_module(files.folder, tokenizer), 4, 3, start_update=7)) == expected[7:]
    in_workers = data_module(files.folder, tokenizer, num_workers=2)
    assert ids(batches(in_workers, 2, 3, start_update=7, accum_grad=2)) == expected[7:]


@pytest.mark.parametrize(("world_size", "accum_grad"), [(1, 1), (2, 1), (2, 2)])
def test_a_rank_reads_one_shard_after_another(index, files, tokenizer, world_size, accum_grad, monkeypatch):
    write(index, files)
    read = []
    read_shard = SharIndex._read_shard
    monkeypatch.setattr(SharIndex, "_read_shard", lambda self, shard: read.append(shard) or read_shard(self, shard))
    data = data_module(files.folder, tokenizer, max_duration=4.0)
    (stream,) = data._batch_streams(world_size * accum_grad).values()
    num_updates = 3 * stream.num_batches // (world_size * accum_grad)
    for rank in range(world_size):
        read.clear()
        for _ in data.train_batches(0, num_updates, 3, rank, world_size, accum_grad):
            pass
        # Three passes over all shards, divided among the ranks; two are read in part, at the end of each lane.
        assert len(read) <= 3 * 7 / world_size + 2 * accum_grad


@contextmanager
def serve(folder):
    """Serve the files of a folder at a URL."""
    handler = partial(SimpleHTTPRequestHandler, directory=folder)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


def test_moved_tar_files_are_read_from_their_new_location(index, files, tokenizer, tmp_path_factory):
    write(index, files)
    expected = ids(batches(data_module(files.folder, tokenizer)))
    moved = tmp_path_factory.mktemp("elsewhere")
    shutil.move(files.shar, moved / files.shar.name)
    assert ids(batches(data_module(files.folder, tokenizer, shar_dir=f"{moved}/"))) == expected
    with serve(moved) as url:
        assert ids(batches(data_module(files.folder, tokenizer, shar_dir=url))) == expected
    with pytest.raises(DataError, match=r"cannot read .*features\.00000\d\.tar .*--shar-dir"):
        batches(data_module(files.folder, tokenizer))


def test_location_of_moved_tar_files_is_a_folder_or_any_url(files, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    name = files.shar.name
    for location, folder in {
        "/a b/": "/a b",
        "~/a b": "/home/me/a b",
        "file:///a%20b": "/a b",
        "file:///a b/": "/a b",
        "file://localhost/a%20b": "/a b",
        "file://~/a": "/home/me/a",
        "s3://bucket/a%20b": "s3://bucket/a%20b",
    }.items():
        assert shar_location(files, location) == f"{folder}/{name}"
    assert shar_location(files, "") == str(files.shar)


@pytest.mark.parametrize("status", [404, 500])
def test_error_of_an_object_store_is_reported_with_its_cause(index, files, tokenizer, status, monkeypatch):
    write(index, files)
    with serve(files.folder) as url:
        monkeypatch.setattr(SimpleHTTPRequestHandler, "do_GET", lambda self: self.send_error(status))
        with pytest.raises(DataError, match=rf"cannot read http://.*features\.00000\d\.tar \(.*{status}.*--shar-dir"):
            batches(data_module(files.folder, tokenizer, shar_dir=url))


def test_shards_of_other_cuts_are_rejected(index, files, tokenizer, tmp_path_factory):
    write(index, files)
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    shutil.move(files.shar, elsewhere / files.shar.name)
    files.shar_description.unlink()
    write(index, files, seed=2)
    with pytest.raises(DataError, match=r"has a duration of .*, expected .*: the shard is of another export"):
        batches(data_module(files.folder, tokenizer, shar_dir=str(elsewhere)))
    write_cuts(files.folder, "en", "train", make_cuts(files.folder, "en", "en", lengths(NUM_CUTS - 1)))
    with pytest.raises(DataError, match=r"has been changed since the shards in .* were written: remove .*\.json"):
        batches(data_module(files.folder, tokenizer))


@pytest.mark.parametrize("change", [{"shard_size": 0}, {"shard_size": "x"}, {"field": "text"}, {"cuts": None}])
def test_damaged_description_of_shards_is_rejected(index, files, tokenizer, change):
    write(index, files)
    write_json(files.shar_description, read_json(files.shar_description) | change)
    with pytest.raises(DataError, match=r"en.*_shar_train.*: remove .*write them with"):
        batches(data_module(files.folder, tokenizer))


def test_missing_manifest_of_shards_is_reported(index, files, tokenizer):
    write(index, files)
    files.shar_cuts.unlink()
    with pytest.raises(DataError, match=r"no .*_shar_train\.jsonl\.gz, .*write them with"):
        batches(data_module(files.folder, tokenizer))


def test_incomplete_and_untrusted_shards_are_rejected(index, files, tokenizer):
    write(index, files)
    manifest = files.shar / "cuts.000000.jsonl.gz"
    cuts = CutSet.from_file(manifest).to_eager()
    cuts.subset(first=3).to_file(manifest)
    everything = {"num_updates": 40, "world_size": 1}
    with pytest.raises(DataError, match=r"features\.000000\.tar has 3 cuts, expected 8"):
        batches(data_module(files.folder, tokenizer), **everything)
    CutSet.from_cuts(replace(cut, duration=1e9) for cut in cuts).to_file(manifest)
    with pytest.raises(DataError, match=r"has a duration of 1e\+09 s"):
        batches(data_module(files.folder, tokenizer), **everything)


def test_audio_is_stored_without_loss(files, tokenizer):
    rng = np.random.default_rng(1)
    cuts = []
    for i in range(3):
        path = files.folder / f"{i}.flac"
        soundfile.write(path, rng.integers(-9000, 9000, 16000 + i, dtype=np.int16), 16000)
        cut = Recording.from_file(path).to_cut()
        cuts.append(replace(cut, supervisions=[replace(SUPERVISION, id=cut.id, recording_id=cut.id)]))
    write_cuts(files.folder, "en", "train", cuts)
    index = open_index([files.cuts], tokenizer, files.folder / "index", "en")
    export_shar(index, files, SharConfig("recording", SHARD_SIZE), Workers())
    stored = data_module(files.folder, tokenizer, on_the_fly_feats=True).corpus_cuts.open_index(get_language("en"))
    loaded = {cut.id: cut for cut in stored.load(range(3))}
    assert stored.flags.tolist() == index.flags.tolist()
    for cut in cuts:
        np.testing.assert_array_equal(loaded[cut.id].load_audio(), cut.load_audio())
    (batch,) = data_module(files.folder, tokenizer, on_the_fly_feats=True).train_batches(0, 1, 3)
    assert sorted(batch.cut_ids) == ["0", "1", "2"]


def test_cuts_without_features_are_rejected(files, tokenizer):
    cuts = [replace(cut, features=None) for cut in CutSet.from_file(files.cuts)]
    write_cuts(files.folder, "en", "train", cuts)
    index = open_index([files.cuts], tokenizer, files.folder / "index", "en")
    with pytest.raises(DataError, match="has no features: run stage 3"):
        write(index, files)


def test_index_of_shards_can_be_sent_to_a_worker(index, files, tokenizer):
    write(index, files)
    data = data_module(files.folder, tokenizer)
    original = data.corpus_cuts.open_index(get_language("en"))
    original.num_kept = 3
    copy = pickle.loads(pickle.dumps(original))
    assert copy.num_kept == 3
    assert [cut.id for cut in copy.load([30, 2])] == [cut.id for cut in original.read([30, 2])]


@st.composite
def sharded_streams(draw):
    durations = np.sort(draw(st.lists(st.floats(0.5, 20.0), min_size=1, max_size=60)))
    shards = np.array(draw(st.lists(st.integers(0, 6), min_size=len(durations), max_size=len(durations))))
    config = SamplingConfig(max_duration=draw(st.floats(5.0, 60.0)), num_buckets=3, shuffle=draw(st.booleans()))
    lanes = draw(st.integers(1, 9))
    cuts = SortedCuts("en", np.arange(len(durations)), durations)
    return ShardedBatchStream(cuts, shards, config, lanes), shards, lanes


@settings(deadline=None, max_examples=40)
@given(sharded_streams(), st.integers(0, 2**63 - 1))
def test_lanes_take_whole_shards_and_each_pass_every_cut(case, seed):
    stream, shards, lanes = case
    lanes = min(lanes, len(set(shards.tolist())))
    seen = Counter()
    for lane in range(lanes):
        size = int(stream._sizes_of_lanes(seed, 0)[lane])
        rows = [stream.cuts([row * lanes + lane], seed)[0] for row in range(size)]
        seen.update(i for numbers in rows for i in numbers)
        visited = [shards[numbers[0]] for numbers in rows]
        assert all(len(set(shards[numbers].tolist())) == 1 for numbers in rows)
        changes = sum(a != b for a, b in pairwise(visited))
        assert changes == len(set(visited)) - 1
    assert seen == Counter(range(len(shards)))


@settings(deadline=None, max_examples=20)
@given(sharded_streams(), st.lists(st.integers(0, 300), min_size=1, max_size=8), st.integers(0, 2**63 - 1))
def test_any_batch_can_be_computed_on_its_own(case, positions, seed):
    stream, _, _ = case
    together = stream.cuts(positions, seed)
    assert together == [pickle.loads(pickle.dumps(stream)).cuts([position], seed)[0] for position in positions]


def test_full_disk_is_reported_with_the_tar_file(index, files, monkeypatch):
    def fail(_self, _cut):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(SharWriter, "write", fail)
    with pytest.raises(OSError, match=r"cannot write .*features\.000000\.tar \(No space left on device\): .* are free"):
        write(index, files)
