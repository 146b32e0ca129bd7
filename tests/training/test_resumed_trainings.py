"""A resumed training equals an uninterrupted one, or is rejected."""

import shutil
from dataclasses import replace

import pytest
import tiny_run
from tiny_run import ZIPFORMER, assert_same_state, newest_checkpoint, save_random_masks

from icefall_pathways.experiment import checkpoints
from icefall_pathways.models.transducer import build_model
from icefall_pathways.training import runs
from icefall_pathways.training.metrics import read_metrics


def test_a_resumed_zipformer_training_equals_an_uninterrupted_one(corpus, tmp_path):
    """This includes schedules, random chunks, whitener probabilities and optimizer statistics."""
    save_random_masks(build_model(ZIPFORMER, 20), tmp_path / "masks.safetensors")
    options = {"ref_duration": 0.01, "masks": tmp_path / "masks.safetensors", "valid_interval": 8}
    uninterrupted = replace(tiny_run.config(corpus, tmp_path / "uninterrupted", "en fr", **options), model=ZIPFORMER)
    runs.train(uninterrupted)
    killed = replace(uninterrupted, training=replace(uninterrupted.training, exp_dir=tmp_path / "killed"))
    tiny_run.train_until(killed, 6)
    runs.train(killed)
    assert_same_state(newest_checkpoint(tmp_path / "uninterrupted"), newest_checkpoint(tmp_path / "killed"))
    (probabilities,) = newest_checkpoint(tmp_path / "uninterrupted")["regularizers"]
    assert [probabilities] == newest_checkpoint(tmp_path / "killed")["regularizers"]
    assert set(probabilities.values()) == {0.25, 0.025}
    state = newest_checkpoint(tmp_path / "uninterrupted")["optimizer"]
    steps = {code: int(state[code]["step"]) for code in ("en", "fr")}
    assert max(steps.values()) >= 4 and sum(steps.values()) == 8  # the scales of a language have changed


def test_resuming_with_another_optimizer_raises(corpus, tmp_path):
    config = tiny_run.config(corpus, tmp_path / "exp", num_updates=2)
    runs.train(config)
    other = replace(config, training=replace(config.training, optimizer="scaled-adam"))
    with pytest.raises(checkpoints.CheckpointError, match="optimizer=adamw, this one has optimizer=scaled-adam"):
        runs.train(other)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_resumed_training_equals_an_uninterrupted_one(corpus, dense, masks_file, tmp_path, masked, num_workers):
    training = {"init_from": dense, "masks": masks_file} if masked else {}
    uninterrupted = tiny_run.config(corpus, tmp_path / "uninterrupted", **training)
    uninterrupted = replace(uninterrupted, data=replace(uninterrupted.data, num_workers=num_workers))
    runs.train(uninterrupted)
    killed = replace(uninterrupted, training=replace(uninterrupted.training, exp_dir=tmp_path / "killed"))
    for update in (2, 4, 8):
        tiny_run.train_until(killed, update)
    runs.train(killed)
    assert_same_state(newest_checkpoint(tmp_path / "uninterrupted"), newest_checkpoint(tmp_path / "killed"))
    records = [
        [{k: v for k, v in r.items() if k != "time"} for r in read_metrics(tmp_path / run / "metrics.jsonl")]
        for run in ("uninterrupted", "killed")
    ]
    assert [r["update"] for r in records[0]] == [r["update"] for r in records[1]]


def test_checkpoints_with_the_british_key_of_regularizers_resume(corpus, tmp_path):
    config = replace(tiny_run.config(corpus, tmp_path / "exp", "en", num_updates=4, ref_duration=0.01), model=ZIPFORMER)
    tiny_run.train_until(config, 3)
    old = shutil.copytree(tmp_path / "exp", tmp_path / "old")
    saved = checkpoints.read(old / "checkpoint-2.pt")
    saved["regularizers".replace("z", "s")] = saved.pop("regularizers")
    saved.pop("plain")
    checkpoints.save(saved, old / "checkpoint-2.pt")
    runs.train(config)
    runs.train(replace(config, training=replace(config.training, exp_dir=old)))
    assert_same_state(newest_checkpoint(tmp_path / "exp"), newest_checkpoint(old))
    assert newest_checkpoint(tmp_path / "exp")["regularizers"] == newest_checkpoint(old)["regularizers"]


def test_a_damaged_newest_checkpoint_is_reported_and_the_previous_one_used(corpus, tmp_path, capsys):
    config = tiny_run.config(corpus, tmp_path / "exp")
    runs.train(config)
    uninterrupted = newest_checkpoint(tmp_path / "exp")
    newest = tmp_path / "exp" / "checkpoint-8.pt"
    newest.write_bytes(newest.read_bytes()[:1000])
    runs.train(config)
    assert "checkpoint-8.pt (1000 bytes)" in capsys.readouterr().out
    assert_same_state(uninterrupted, newest_checkpoint(tmp_path / "exp"))


def test_resuming_raises_and_keeps_all_files_if_every_checkpoint_is_damaged(corpus, tmp_path):
    config = tiny_run.config(corpus, tmp_path / "exp", num_updates=2)
    runs.train(config)
    metrics = (tmp_path / "exp" / "metrics.jsonl").read_text()
    for path in (tmp_path / "exp").glob("*.pt"):
        path.write_bytes(b"PK" + bytes(100))
    with pytest.raises(checkpoints.CheckpointError, match=r"no checkpoint in .* is readable"):
        runs.train(config)
    assert (tmp_path / "exp" / "metrics.jsonl").read_text() == metrics


def test_resuming_another_run_raises(corpus, dense, masks_file, tmp_path):
    config = tiny_run.config(corpus, tmp_path / "exp", num_updates=2)
    runs.train(config)
    masked = replace(config, training=replace(config.training, init_from=dense, masks=masks_file))
    with pytest.raises(ValueError, match=r"did not start with these masks \(masks\.safetensors\)"):
        runs.train(masked)
    assert not (tmp_path / "exp" / "masks.safetensors").exists()  # or decoding would use them


def test_a_training_that_returns_to_an_earlier_checkpoint_keeps_what_it_writes(corpus, tmp_path):
    runs.train(tiny_run.config(corpus, tmp_path))
    runs.train(tiny_run.config(corpus, tmp_path, start_batch=2, num_updates=4, keep_last_k=2))
    assert checkpoints.read(tmp_path / "checkpoint-4.pt")["config"]["training"]["num_updates"] == 4
