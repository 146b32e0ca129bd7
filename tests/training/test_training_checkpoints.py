"""Checkpoints that a training writes: order, averages, and damaged files."""

import os

import pytest
import tiny_run
import torch

from icefall_pathways.experiment import checkpoints, layout
from icefall_pathways.training import runs


@pytest.mark.parametrize("order", [1, -1])
def test_the_newest_checkpoint_has_the_most_updates_regardless_of_file_times(dense, tmp_path, order):
    """Copying a folder changes the times."""
    saved = sorted(dense.glob("checkpoint-*.pt")) + sorted(dense.glob("epoch-*.pt"))
    updates = {path.name: checkpoints.read(path)["update"] for path in saved}
    assert len(set(updates.values())) > 1
    for seconds, path in enumerate(saved[::order]):
        copied = tmp_path / path.name
        copied.write_bytes(path.read_bytes())
        os.utime(copied, (1e9 + seconds, 1e9 + seconds))
    assert updates[checkpoints.newest(tmp_path)[0].name] == max(updates.values())


def test_a_full_disk_raises_and_keeps_the_previous_checkpoint(dense, tmp_path, monkeypatch):
    saved = checkpoints.read(dense / "checkpoint-8.pt")
    path = tmp_path / "checkpoint-8.pt"
    path.write_bytes((dense / "checkpoint-8.pt").read_bytes())

    def full(_, file):
        file.write(b"PK")
        raise RuntimeError("[enforce fail at inline_container.cc:337] . unexpected pos 64 vs 0\nframe #0")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(checkpoints.CheckpointError, match=r"cannot write .*unexpected pos 64.*free some space"):
        checkpoints.save(saved, path)
    assert checkpoints.read(path)["update"] == 8 and [file.name for file in tmp_path.iterdir()] == [path.name]


def test_an_untrusted_pickle_is_not_executed(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "was-run"), "w"))

    torch.save({"model": Evil()}, tmp_path / "checkpoint-1.pt")
    with pytest.raises(checkpoints.CheckpointError, match="cannot read checkpoint"):
        checkpoints.read(tmp_path / "checkpoint-1.pt")
    assert not (tmp_path / "was-run").exists()


def test_averaged_weights_are_the_mean_over_the_updates(dense):
    model, options, *_ = checkpoints.load_model(dense, iteration=8, avg=1)
    raw = checkpoints.load_model(dense, iteration=8, avg=2, use_averaged_model=False).model
    weights = [checkpoints.read(dense / f"checkpoint-{u}.pt")["model"]["joiner.output_linear.weight"] for u in (6, 8)]
    torch.testing.assert_close(raw.joiner.output_linear.weight, (weights[0] + weights[1]) / 2)
    averages = [
        checkpoints.read(dense / f"checkpoint-{u}.pt")["model_avg"]["joiner.output_linear.weight"] for u in (6, 8)
    ]
    expected = (averages[1] * 8 - averages[0] * 6) / 2
    torch.testing.assert_close(model.joiner.output_linear.weight.double(), expected, rtol=1e-4, atol=1e-6)
    assert options["data"]["languages"] == ["en", "fr", "it"] and not model.training


def test_the_last_checkpoints_of_epochs_are_kept(corpus, tmp_path):
    config = tiny_run.config(corpus, tmp_path, "en", num_updates=0, num_epochs=4, keep_last_epochs=3)
    runs.train(config)
    assert [path.name for path in layout.epoch_checkpoints(tmp_path)] == ["epoch-2.pt", "epoch-3.pt", "epoch-4.pt"]
    start = checkpoints.start_of_average(layout.epoch_checkpoint(tmp_path, 4), avg=2)
    assert start == layout.epoch_checkpoint(tmp_path, 2)


def test_the_error_for_a_missing_checkpoint_lists_existing_ones(dense, tmp_path):
    with pytest.raises(
        checkpoints.CheckpointError, match=r"no checkpoint .*epoch-9\.pt: its folder holds .*checkpoint-8"
    ):
        checkpoints.load_model(dense, epoch=9)
    with pytest.raises(checkpoints.CheckpointError, match="no checkpoint in"):
        checkpoints.load_model(tmp_path)
