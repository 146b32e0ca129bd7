"""Checkpoints are found, averaged and loaded with as few reads as possible."""

import json
import zipfile

import pytest
import torch
from tiny_experiment import MODEL, VOCAB_SIZE

from icefall_pathways.experiment import checkpoints, layout
from icefall_pathways.models.transducer import build_model
from icefall_pathways.optim.averaging import ModelAverage
from icefall_pathways.options import to_dict
from icefall_pathways.pathways.masks import PathwayMasks


@pytest.fixture
def reads(monkeypatch):
    """Record the names of the checkpoints whose tensors are read."""
    names = []
    read = checkpoints.read

    def counting_read(path):
        names.append(path.name)
        return read(path)

    monkeypatch.setattr(checkpoints, "read", counting_read)
    return names


def write(path, update, masks=None):
    model = build_model(MODEL, VOCAB_SIZE)
    tensors = {"model": model.state_dict(), "model_avg": model.state_dict(), "optimizer": {}, "masks": {}}
    config = {"model": to_dict(MODEL), "training": {"average_period": 1}}
    plain = {"update": update, "epoch": 1, "vocab_size": VOCAB_SIZE, "config": config}
    checkpoints.save(tensors | plain, path)


def test_newest_reads_only_the_checkpoint_with_the_most_updates(tmp_path, reads):
    write(layout.epoch_checkpoint(tmp_path, 3), 30)
    for update in (8, 10, 40):
        write(layout.batch_checkpoint(tmp_path, update), update)
    path, checkpoint = checkpoints.newest(tmp_path)
    assert (path.name, checkpoint["update"]) == ("checkpoint-40.pt", 40)
    assert reads == ["checkpoint-40.pt"]


def test_newest_prefers_the_epoch_checkpoint_after_the_same_number_of_updates(tmp_path):
    write(layout.epoch_checkpoint(tmp_path, 2), 20)
    write(layout.batch_checkpoint(tmp_path, 20), 20)
    assert checkpoints.newest(tmp_path)[0].name == "epoch-2.pt"


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04", b"\x86", "truncated", "incomplete"])
def test_newest_skips_damaged_checkpoints_with_a_warning(tmp_path, damage, capsys):
    write(layout.epoch_checkpoint(tmp_path, 1), 10)
    write(layout.batch_checkpoint(tmp_path, 8), 8)
    path = layout.batch_checkpoint(tmp_path, 20)
    write(path, 20)
    content = path.read_bytes()
    if damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "incomplete":  # its number of updates is readable
        torch.save({"plain": json.dumps({"update": 20})}, path)
    else:
        path.write_bytes(damage)
    assert checkpoints.newest(tmp_path)[0].name == "epoch-1.pt"
    printed = capsys.readouterr().out
    assert printed.startswith("warning: ") and str(path) in printed


def test_one_flipped_bit_in_any_record_is_an_error(tmp_path):
    """torch does not compare the checksums."""
    path = layout.batch_checkpoint(tmp_path, 20)
    write(path, 20)
    content = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        records = {archive.read(entry) for entry in archive.infolist() if entry.file_size}
    assert len(records) > 20
    for record in records:
        damaged = bytearray(content)
        damaged[content.index(record) + len(record) // 2] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(checkpoints.CheckpointError, match=r"cannot read checkpoint .* in it is damaged"):
            checkpoints.read(path)


def test_newest_reports_if_no_checkpoint_is_readable(tmp_path):
    assert checkpoints.newest(tmp_path) is None
    layout.batch_checkpoint(tmp_path, 1).write_bytes(b"")
    layout.epoch_checkpoint(tmp_path, 1).write_bytes(b"")
    with pytest.raises(checkpoints.CheckpointError, match=r"readable \(epoch-1\.pt, checkpoint-1\.pt\)"):
        checkpoints.newest(tmp_path)


@pytest.mark.parametrize(
    ("avg", "use_averaged_model", "expected"),
    [
        (1, True, ["checkpoint-3.pt", "checkpoint-2.pt"]),
        (2, True, ["checkpoint-3.pt", "checkpoint-1.pt"]),
        (1, False, ["checkpoint-3.pt"]),
        (3, False, ["checkpoint-3.pt", "checkpoint-1.pt", "checkpoint-2.pt"]),
    ],
)
def test_load_model_reads_each_checkpoint_once(tmp_path, reads, avg, use_averaged_model, expected):
    for update in (1, 2, 3):
        write(layout.batch_checkpoint(tmp_path, update), update)
    loaded = checkpoints.load_model(tmp_path, avg=avg, use_averaged_model=use_averaged_model)
    assert loaded.path.name == "checkpoint-3.pt" and loaded.masks is None
    assert reads == expected


@pytest.mark.parametrize(
    ("updates", "avg", "message"),
    [((3,), 2, "needs 2 checkpoints up to .*: found 1"), ((7, 8, 9), 3, "needs the checkpoint before .*checkpoint-7")],
)
def test_average_without_its_checkpoints_is_an_error(tmp_path, updates, avg, message):
    for update in updates:
        write(layout.batch_checkpoint(tmp_path, update), update)
    with pytest.raises(checkpoints.CheckpointError, match=f"--avg {avg} {message}"):
        checkpoints.load_model(tmp_path, avg=avg)


def test_average_over_the_first_checkpoints_starts_with_the_training(tmp_path):
    for epoch in (1, 2):
        layout.epoch_checkpoint(tmp_path, epoch).touch()
        assert checkpoints.start_of_average(layout.epoch_checkpoint(tmp_path, epoch), avg=epoch) is None
    first, second = layout.epoch_checkpoints(tmp_path)
    assert checkpoints.start_of_average(second, avg=1) == first


@pytest.mark.parametrize(
    ("start", "end", "samples"),
    [(0, 20, [10, 20]), (0, 9, [9]), (19, 20, [20]), (20, 21, [21]), (15, 36, [20, 30]), (9, 15, [10])],
)
def test_average_is_the_mean_of_the_samples_between_checkpoints_of_any_distance(tmp_path, start, end, samples):
    model = torch.nn.Linear(1, 1)
    average = ModelAverage(model, 10)
    for update in range(1, end + 1):
        torch.nn.init.constant_(model.weight, update)
        average.update(model, update)
        tensors = {"model": model.state_dict(), "model_avg": average.state_dict(), "optimizer": {}, "masks": {}}
        plain = {"update": update, "epoch": 1, "vocab_size": 2, "config": {"training": {"average_period": 10}}}
        if update in (start, end):
            checkpoints.save(tensors | plain, layout.epoch_checkpoint(tmp_path, update))
    path = layout.epoch_checkpoint(tmp_path, end)
    weight = checkpoints.running_average(path, checkpoints.read(path), avg=1)["weight"]
    assert weight.item() == pytest.approx(sum(samples) / len(samples))


def test_load_model_returns_the_masks_of_the_checkpoint(tmp_path):
    path = layout.batch_checkpoint(tmp_path, 1)
    write(path, 1)
    masks = PathwayMasks.dense(build_model(MODEL, VOCAB_SIZE), ["en", "nl"], ["encoder"])
    masks.set_mask(masks.names[0], "nl", torch.zeros(masks.codes[masks.names[0]].shape, dtype=torch.bool))
    checkpoint = checkpoints.read(path)
    del checkpoint["plain"]
    checkpoints.save(checkpoint | {"masks": masks.codes, "masks_header": vars(masks.header)}, path)
    loaded = checkpoints.load_model(tmp_path)
    assert loaded.masks.languages == ("en", "nl") and loaded.masks.equals(masks)
