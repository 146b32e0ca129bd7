"""Batches: monolingual, reproducible after a resume and with any number of workers, distributed over ranks."""

import dataclasses
import gzip
import json
import math
import random
import subprocess
import sys
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lhotse import MonoCut, Recording
from speech_cuts import SIZES, lengths, make_cuts, write_cuts

from icefall_pathways.constants import LOG_EPS
from icefall_pathways.data.batch import Batch
from icefall_pathways.data.datamodule import DataConfig, DataError, SpeechDataModule
from icefall_pathways.data.tokenizer import Tokenizer
from icefall_pathways.data.usable_cuts import drop_report


def data_module(corpus: Path, tokenizer: Tokenizer | None, **options: Any) -> SpeechDataModule:
    defaults = {"languages": "en fr it", "max_duration": 12.0, "num_workers": 0, "num_buckets": 3}
    defaults |= {"volume_perturb": False, "shift_perturb": 0.0, "silence_perturb": 0.0, "join_perturb": 0.0}
    return SpeechDataModule(DataConfig(manifest_dir=corpus, **(defaults | options)), tokenizer)


def assert_same(batches: list[Batch], expected: list[Batch]) -> None:
    assert len(batches) == len(expected)
    for batch, other in zip(batches, expected, strict=True):
        assert batch.cut_ids == other.cut_ids
        assert batch.language == other.language
        assert batch.texts == other.texts
        assert torch.equal(batch.inputs, other.inputs)


def test_a_batch_is_monolingual_and_has_the_features_of_its_cuts(corpus: Path, tokenizer: Tokenizer) -> None:
    seen = set()
    for batch in data_module(corpus, tokenizer).train_batches(0, 30, seed=1):
        cuts = batch.cuts
        assert {cut.supervisions[0].language for cut in cuts} == {batch.language}
        assert sum(cut.duration for cut in cuts) <= 12.0
        assert batch.inputs.shape == (len(cuts), max(cut.num_frames for cut in cuts), 80)
        assert batch.num_frames.tolist() == [cut.num_frames for cut in cuts]
        seen.add(batch.language)
    assert seen == set(SIZES)


def test_batches_are_padded_with_log_epsilon(corpus: Path, tokenizer: Tokenizer) -> None:
    batch = next(iter(data_module(corpus, tokenizer).loader("en", "dev")))
    for features, length in zip(batch.inputs, batch.num_frames.tolist(), strict=True):
        assert torch.all((features[length:] - LOG_EPS).abs() < 1e-3)
    assert batch.num_frames.min() < batch.inputs.size(1)


@pytest.mark.parametrize("short_first", [False, True])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_resumed_run_gets_the_batches_of_an_uninterrupted_one(
    corpus: Path, tokenizer: Tokenizer, num_workers: int, short_first: bool
) -> None:
    options = {"num_workers": num_workers, "short_first": short_first}
    # 60 updates are several passes over each language.
    whole = list(data_module(corpus, tokenizer, short_first=short_first).train_batches(0, 60, seed=7))
    for start in (0, 1, 23, 59):
        resumed = data_module(corpus, tokenizer, **options).train_batches(start, 60 - start, seed=7)
        assert_same(list(resumed), whole[start:])


def test_length_of_the_run_does_not_change_its_batches(corpus: Path, tokenizer: Tokenizer) -> None:
    data = data_module(corpus, tokenizer)
    assert_same(list(data.train_batches(0, 5, seed=7)), list(data.train_batches(0, 60, seed=7))[:5])


def test_seeds_give_different_batches(corpus: Path, tokenizer: Tokenizer) -> None:
    first, second = ([b.cut_ids for b in data_module(corpus, tokenizer).train_batches(0, 10, seed)] for seed in (1, 2))
    assert first != second


def test_augmentation_differs_between_updates_ranks_and_seeds(corpus: Path, tokenizer: Tokenizer) -> None:
    """The same cuts have other masks in later passes."""
    by_ids: dict[tuple[str, ...], list[torch.Tensor]] = {}
    data = data_module(corpus, tokenizer, languages="it", shuffle=False)
    for batch in data.train_batches(0, 20, seed=1):
        by_ids.setdefault(tuple(batch.cut_ids), []).append(batch.inputs)
    repeated = [inputs for inputs in by_ids.values() if len(inputs) > 1]
    assert repeated
    assert all(not torch.equal(inputs[0], inputs[1]) for inputs in repeated)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_loading_does_not_change_the_global_random_state(corpus: Path, tokenizer: Tokenizer, num_workers: int) -> None:
    data = data_module(corpus, tokenizer, num_workers=num_workers)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    list(data.train_batches(0, 4, seed=1))
    list(data.loader("en", "dev"))
    assert random.getstate() == before[0]
    assert np.random.get_state()[1].tolist() == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])


def test_every_pass_has_every_cut_once_in_a_different_order(corpus: Path, tokenizer: Tokenizer) -> None:
    order: list[str] = []
    for batch in data_module(corpus, tokenizer, languages="it").train_batches(0, 40, seed=3):
        order += batch.cut_ids
    size = SIZES["it"]
    epochs = [order[i : i + size] for i in range(0, len(order) - size, size)]
    assert len(epochs) > 5
    assert all(sorted(names) == sorted(epochs[0]) for names in epochs)
    assert len({tuple(names) for names in epochs}) > len(epochs) // 2


def test_short_first_orders_the_first_pass_only(corpus: Path, tokenizer: Tokenizer) -> None:
    data = data_module(corpus, tokenizer, languages="en", short_first=True, max_duration=8.0)
    durations: list[float] = []
    for batch in data.train_batches(0, 60, seed=1):
        durations += sorted(cut.duration for cut in batch.cuts)
    size = SIZES["en"]
    assert durations[:size] == sorted(durations[:size])
    assert durations[size : 2 * size] != sorted(durations[size : 2 * size])


@pytest.mark.parametrize(("world_size", "accum_grad"), [(6, 1), (3, 2), (2, 3), (1, 6)])
def test_updates_have_the_same_batches_however_they_are_distributed(
    corpus: Path, tokenizer: Tokenizer, world_size: int, accum_grad: int
) -> None:
    """The batches are equal to the bit, augmentation included."""

    def batches_of_updates(world_size: int, accum_grad: int) -> list[list[Batch]]:
        ranks = [
            list(data_module(corpus, tokenizer, max_duration=4.0).train_batches(0, 12, 5, rank, world_size, accum_grad))
            for rank in range(world_size)
        ]
        return [
            [ranks[rank][update * accum_grad + i] for i in range(accum_grad) for rank in range(world_size)]
            for update in range(12)
        ]

    for batches, expected in zip(batches_of_updates(world_size, accum_grad), batches_of_updates(1, 6), strict=True):
        assert len({batch.language for batch in batches}) == 1
        assert_same(batches, expected)


def test_a_resumed_rank_gets_the_batches_of_an_uninterrupted_one(corpus: Path, tokenizer: Tokenizer) -> None:
    whole = list(data_module(corpus, tokenizer).train_batches(0, 30, 5, 1, 2))
    assert_same(list(data_module(corpus, tokenizer).train_batches(17, 13, 5, 1, 2)), whole[17:])


def test_closing_stops_the_workers(corpus: Path, tokenizer: Tokenizer) -> None:
    others = set(active_children())
    batches = data_module(corpus, tokenizer, num_workers=2).train_batches(0, 50, seed=1)
    next(batches)
    assert len(set(active_children()) - others) == 2
    batches.close()
    assert not set(active_children()) - others


def test_script_that_does_not_close_the_batches_ends(corpus: Path, tokenizer: Tokenizer) -> None:
    """The workers ignore SIGTERM, which `multiprocessing` sends them at exit."""
    script = f"""
from pathlib import Path
from icefall_pathways.data.datamodule import DataConfig, SpeechDataModule
from icefall_pathways.data.tokenizer import Tokenizer
config = DataConfig(manifest_dir=Path("{corpus}"), languages="en", max_duration=12.0, num_workers=1)
batches = SpeechDataModule(config, Tokenizer("{tokenizer.model_path}")).train_batches(0, 50, seed=1)
print(len(next(batches)), flush=True)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    assert int(done.stdout) > 0 and not done.stderr


def test_an_epoch_covers_the_audio_of_all_languages(corpus: Path, tokenizer: Tokenizer) -> None:
    seconds = sum(sum(lengths(size)) for size in SIZES.values()) / 100
    data = data_module(corpus, tokenizer)
    assert data.updates_per_epoch(1) == math.ceil(seconds / 12)
    assert data.updates_per_epoch(4) == math.ceil(seconds / 48)


@pytest.mark.parametrize("num_cuts", [1, 2, 3])
@pytest.mark.parametrize("rank, world_size", [(0, 1), (1, 2)])
def test_cuts_longer_than_a_batch_and_fewer_cuts_than_buckets_are_sampled(
    tmp_path: Path, tokenizer: Tokenizer, num_cuts: int, rank: int, world_size: int
) -> None:
    cuts = make_cuts(tmp_path, "en", "en", [1900, 300, 1700][:num_cuts])
    write_cuts(tmp_path, "en", "train", cuts)
    data = data_module(tmp_path, tokenizer, languages="en", max_duration=15.0, num_buckets=10)
    batches = list(data.train_batches(0, 6, 1, rank, world_size))
    assert len(batches) == 6
    if world_size == 1:
        assert {name for batch in batches for name in batch.cut_ids} == {cut.id for cut in cuts}


def test_unusable_cuts_are_dropped_and_counted(tmp_path: Path, tokenizer: Tokenizer) -> None:
    tokens = len(tokenizer.encode(["one two three"])[0])
    frames = 4 * (tokens + 1) + 1  # the minimum that subsampling by 4 turns into tokens + 2
    cuts = make_cuts(tmp_path, "en", "en", [frames, frames - 1, 10, 700, 200])
    foreign = [dataclasses.replace(cuts[4].supervisions[0], text="one два")]
    others = [dataclasses.replace(cuts[4], id=name, supervisions=s) for name, s in (("mute", []), ("foreign", foreign))]
    write_cuts(tmp_path, "en", "train", [*cuts, *others])
    data = data_module(tmp_path, tokenizer, languages="en", min_cut_duration=0.2, max_cut_duration=5.0)
    used = {name for batch in data.train_batches(0, 4, seed=1) for name in batch.cut_ids}
    assert used == {"en-0", "en-4"}
    report = drop_report(data.training_cuts)
    for reason, count in {
        "used": 2,
        "too many tokens for its length": 1,
        "shorter than 0.2 s": 1,
        "longer than 5.0 s": 1,
        "zero or several transcripts": 1,
        "characters without a token": 1,
    }.items():
        assert [line for line in report.splitlines() if reason in line and f" {count} " in line], report


def unusable_cuts(folder: Path) -> list[MonoCut]:
    """Return a usable cut, and one for each reason to drop cuts of dev and test sets."""
    cuts = make_cuts(folder, "en", "en", [200, 10, 200])
    supervision = cuts[0].supervisions[0]
    supervisions = {
        "none": [],
        "two": [supervision, dataclasses.replace(supervision, id="second")],
        "mute": [dataclasses.replace(supervision, text=None)],
        "blank": [dataclasses.replace(supervision, text=" ")],
        "outside": [dataclasses.replace(supervision, start=-1.5)],
        "foreign": [dataclasses.replace(supervision, text="one два")],
    }
    others = [dataclasses.replace(cuts[0], id=name, supervisions=values) for name, values in supervisions.items()]
    return [*cuts[:2], dataclasses.replace(cuts[2], id="bare", features=None), *others]


def test_dev_cuts_that_training_drops_are_dropped_from_validation(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """A cut with more tokens than frames ended the training at the first validation."""
    write_cuts(tmp_path, "en", "dev", unusable_cuts(tmp_path))
    loader = data_module(tmp_path, tokenizer, languages="en").loader("en", "dev")
    assert [name for batch in loader for name in batch.cut_ids] == ["en-0"] == [cut.id for cut in loader.cuts]
    assert loader.counts == {
        "used": 1,
        "too many tokens for its length": 1,
        "no features": 1,
        "zero or several transcripts": 4,
        "speech outside of the cut": 1,
        "characters without a token": 1,
    }
    assert "dev cuts" in drop_report({"en": loader}, "dev")


def test_cuts_without_a_loss_need_one_transcript_only(tmp_path: Path) -> None:
    write_cuts(tmp_path, "en", "test", unusable_cuts(tmp_path))
    loader = data_module(tmp_path, None, languages="en").loader("en", "test")
    assert [cut.id for cut in loader.cuts] == ["bare", "en-0", "en-1", "foreign"]
    assert loader.counts == {"used": 4, "zero or several transcripts": 4, "speech outside of the cut": 1}


@pytest.mark.parametrize("split", ["train", "dev"])
def test_a_cut_is_encoded_to_its_end_wherever_its_supervision_is(
    tmp_path: Path, tokenizer: Tokenizer, split: str
) -> None:
    (cut,) = make_cuts(tmp_path, "en", "en", [200])
    supervision = dataclasses.replace(cut.supervisions[0], start=0.5, duration=1.5)
    write_cuts(tmp_path, "en", split, [dataclasses.replace(cut, supervisions=[supervision])])
    data = data_module(tmp_path, tokenizer, languages="en", enable_spec_aug=False)
    batch = next(data.train_batches(0, 1, seed=1) if split == "train" else iter(data.loader("en", "dev")))
    assert batch.num_frames.tolist() == [200]
    np.testing.assert_array_equal(batch.inputs[0].numpy(), cut.load_features())


def test_a_dev_set_without_usable_cuts_is_an_error(tmp_path: Path, tokenizer: Tokenizer) -> None:
    write_cuts(tmp_path, "fr", "dev", make_cuts(tmp_path, "fr", "fr", [10, 12]))
    with pytest.raises(DataError, match=r"(?s)no cut of .*mls-french_cuts_dev.* is usable.*too many tokens.* 2 "):
        data_module(tmp_path, tokenizer, languages="fr").loader("fr", "dev")


def test_a_language_without_usable_cuts_is_an_error(tmp_path: Path, tokenizer: Tokenizer) -> None:
    write_cuts(tmp_path, "fr", "train", make_cuts(tmp_path, "fr", "fr", [10, 12]))
    with pytest.raises(DataError, match=r"(?s)no training cut of french is usable.*too many tokens.* 2 "):
        data_module(tmp_path, tokenizer, languages="fr").updates_per_epoch(1)


def test_training_without_a_tokenizer_is_an_error(corpus: Path) -> None:
    with pytest.raises(DataError, match="requires a tokenizer"):
        data_module(corpus, None).updates_per_epoch(1)


def test_split_loader_orders_by_decreasing_duration_and_needs_no_tokenizer(corpus: Path) -> None:
    loader = data_module(corpus, None).loader("fr", "dev")
    batches = list(loader)
    assert len(batches) == len(loader) > 1
    frames = [n for batch in batches for n in batch.num_frames.tolist()]
    assert frames == sorted(lengths(9), reverse=True)
    assert {batch.language for batch in batches} == {"fr"}
    assert_same(list(data_module(corpus, None).loader("french", "dev")), batches)


def test_error_of_a_missing_manifest_names_existing_ones_and_the_command(corpus: Path, tokenizer: Tokenizer) -> None:
    match = (
        r"no .*mls-polish_cuts_dev.jsonl.gz .*holds .*mls-english_cuts_train.jsonl.gz.*"
        "the dev cuts of polish to --manifest-dir.*prepare.sh --languages pl"
    )
    with pytest.raises(DataError, match=match):
        data_module(corpus, tokenizer).loader("pl", "dev")
    with pytest.raises(DataError, match="mls-polish_cuts_train"):
        data_module(corpus, tokenizer, languages="en pl").updates_per_epoch(1)


def test_a_damaged_manifest_is_an_error(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = write_cuts(tmp_path, "en", "train", make_cuts(tmp_path, "en", "en", lengths(40)))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"mls-english_cuts_train.jsonl.gz is damaged .*--stage 3"):
        data_module(tmp_path, tokenizer, languages="en").updates_per_epoch(1)
    path.write_bytes(gzip.compress(b'{"id": "half'))
    with pytest.raises(DataError, match="is damaged"):
        data_module(tmp_path, tokenizer, languages="en").updates_per_epoch(1)
    path.write_bytes(gzip.compress(b""))
    with pytest.raises(DataError, match="no training cut of english"):
        data_module(tmp_path, tokenizer, languages="en").updates_per_epoch(1)


@pytest.mark.parametrize("value", ["x", [], math.nan, math.inf])
@pytest.mark.parametrize(
    ("owner", "field"),
    [
        *(("cut", "start"), ("cut", "duration"), ("supervision", "start"), ("supervision", "duration")),
        *(("features", "start"), ("features", "duration"), ("features", "frame_shift"), ("features", "sampling_rate")),
    ],
)
def test_values_that_are_not_numbers_are_errors(
    tmp_path: Path, tokenizer: Tokenizer, value: Any, owner: str, field: str
) -> None:
    (cut,) = make_cuts(tmp_path, "en", "en", [200])
    setattr({"cut": cut, "supervision": cut.supervisions[0], "features": cut.features}[owner], field, value)
    path = tmp_path / "mls-english_cuts_dev.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps(cut.to_dict()).encode()))
    with pytest.raises(DataError, match=r"mls-english_cuts_dev.jsonl.gz (has the value|has a duration|is damaged)"):
        data_module(tmp_path, tokenizer, languages="en").loader("en", "dev")


def test_audio_of_another_sampling_rate_is_an_error_if_features_are_computed(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    cuts = make_cuts(tmp_path, "en", "en", [200] * 3)
    for cut in cuts:
        cut.recording = Recording(cut.id, [], 8000, 16000, 2.0, [0])
    write_cuts(tmp_path, "en", "train", cuts)
    data = data_module(tmp_path, tokenizer, languages="en", on_the_fly_feats=True)
    with pytest.raises(DataError, match=r"^cut en-0 in .* has a sampling rate of 8000 Hz: expected 16000 Hz"):
        data.updates_per_epoch(1)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_error_of_unreadable_features_names_the_cut_and_the_file(
    tmp_path: Path, tokenizer: Tokenizer, num_workers: int, damage: str
) -> None:
    cuts = make_cuts(tmp_path, "good", "en", [200] * 5) + make_cuts(tmp_path, "bad", "en", [210])
    write_cuts(tmp_path, "en", "train", cuts)
    file = tmp_path / "feats-bad.lca"
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:100])
    data = data_module(tmp_path, tokenizer, languages="en", num_workers=num_workers)
    with pytest.raises(DataError, match=r"^cannot read the features of cut bad-0 in .*feats-bad.lca .*--stage 3"):
        list(data.train_batches(0, 3, seed=1))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_error_of_a_multilingual_batch_names_the_cuts(tmp_path: Path, tokenizer: Tokenizer, num_workers: int) -> None:
    cuts = make_cuts(tmp_path, "en", "en", [200] * 3) + make_cuts(tmp_path, "stray", "fr", [200])
    write_cuts(tmp_path, "en", "train", cuts)
    data = data_module(tmp_path, tokenizer, languages="en", num_workers=num_workers)
    with pytest.raises(DataError, match=r"^a batch of en contains cuts of another language: stray-0; expected"):
        list(data.train_batches(0, 1, seed=1))
