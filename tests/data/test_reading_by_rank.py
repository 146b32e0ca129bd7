"""A rank reads the cuts of its own batches only, whatever the number of cuts, ranks and completed updates."""

import pytest
from lhotse import Recording
from speech_cuts import lengths, make_cuts, write_cuts

from icefall_pathways.data import indexing, manifests
from icefall_pathways.data.cut_index import CutIndex
from icefall_pathways.data.datamodule import DataConfig, SpeechDataModule
from icefall_pathways.data.dataset import SpeechDataset
from icefall_pathways.data.manifests import DataError


def record(monkeypatch, owner, name, argument=lambda value: value):
    """Record the argument of all calls of a method."""
    method, arguments = getattr(owner, name), []

    def recorder(self, value):
        arguments.append(argument(value))
        return method(self, value)

    monkeypatch.setattr(owner, name, recorder)
    return arguments


@pytest.fixture
def data(corpus, tokenizer):
    options = {"languages": "en fr it", "max_duration": 12.0, "num_workers": 0, "join_perturb": 0.0}
    config = DataConfig(manifest_dir=corpus, **options)
    assert SpeechDataModule(config, tokenizer).updates_per_epoch(1)  # writes the indexes
    return SpeechDataModule(config, tokenizer)


@pytest.mark.parametrize("start", [0, 1_000_000])
@pytest.mark.parametrize("rank", [0, 3])
def test_start_and_restart_read_the_cuts_of_the_first_batch_of_the_rank_only(monkeypatch, data, start, rank):
    monkeypatch.setattr(indexing, "_write_index", lambda *_: pytest.fail("the index is current"))
    monkeypatch.setattr(manifests, "read_lines", lambda _: pytest.fail("a manifest is read from its start"))
    read = record(monkeypatch, CutIndex, "_read")
    batches = data.train_batches(start, 10, 1, rank, 4)
    batch = next(batches)
    batches.close()
    assert len(read) == len(batch.cuts) > 0


@pytest.mark.parametrize("rank", [0, 3])
def test_a_rank_reads_the_cuts_of_its_own_batches_only_in_all_updates(monkeypatch, data, rank):
    updates, world_size, accum_grad = 3, 4, 2
    whole = [batch.cut_ids for batch in data.train_batches(0, updates, 1, accum_grad=world_size * accum_grad)]
    monkeypatch.setattr(manifests, "read_lines", lambda _: pytest.fail("a manifest is read from its start"))
    read = record(monkeypatch, CutIndex, "_read")
    batches = [batch.cut_ids for batch in data.train_batches(0, updates, 1, rank, world_size, accum_grad)]
    assert batches == whole[rank::world_size]
    assert len(read) == sum(map(len, batches))


def test_the_first_of_many_unsuitable_recordings_is_reported_without_reading_the_others(
    monkeypatch, tokenizer, tmp_path
):
    cuts = make_cuts(tmp_path, "en", "en", lengths(20))
    for cut in cuts:
        cut.recording = Recording(cut.id, [], sampling_rate=8000, num_samples=80000, duration=10.0)
    write_cuts(tmp_path, "en", "train", cuts)
    read = record(monkeypatch, CutIndex, "_read")
    config = DataConfig(manifest_dir=tmp_path, languages="en", num_workers=0, on_the_fly_feats=True)
    with pytest.raises(DataError, match=f"cut {cuts[0].id} in .* 8000"):
        SpeechDataModule(config, tokenizer).updates_per_epoch(1)
    assert read == [0]


def test_ranks_load_disjoint_parts_of_the_dev_set(monkeypatch, data):
    loader = data.loader("it", "dev")
    whole = [cut.id for cut in loader.cuts]
    parts = []
    for rank in range(2):
        with monkeypatch.context() as patch:
            loaded = record(patch, SpeechDataset, "__getitem__", lambda plan: [cut.id for cut in plan.cuts])
            assert [batch.cut_ids for batch in loader.shard(rank, 2, 0)] == loaded
        parts += [name for names in loaded for name in names]
    assert sorted(parts) == whole


def test_a_large_dev_set_is_reduced_to_the_same_random_cuts_by_all_ranks(data):
    whole = data.loader("fr", "dev")
    seconds = sum(cut.duration for cut in whole.cuts)
    draws = {}
    for seed in (1, 2, 3, 4):
        cuts = data.loader("fr", "dev", seconds / 2 / 3600, seed).cuts
        assert 0 < sum(cut.duration for cut in cuts) <= seconds / 2
        assert cuts == data.loader("fr", "dev", seconds / 2 / 3600, seed).cuts
        draws[seed] = [cut.id for cut in cuts]
    assert len({tuple(ids) for ids in draws.values()}) > 1
