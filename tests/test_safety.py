"""Files from strangers run no code, and cannot make us read without end."""

import pickle
from dataclasses import replace

import pytest
import torch
from lhotse import AudioSource, CutSet, Recording
from safetensors.torch import save_file
from speech_cuts import make_cuts, write_cuts

from icefall_pathways import files
from icefall_pathways.data.datamodule import DataConfig, DataError, SpeechDataModule
from icefall_pathways.pathways.masks import MasksError, PathwayMasks
from icefall_pathways.training import checkpoints
from icefall_pathways.training.guard import read_batch


class Evil:
    """Leaves a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("where", ["model", "plain", "optimizer"])
def test_a_checkpoint_runs_no_code(tmp_path, where):
    torch.save({"model": {}, "plain": "{}", where: Evil(tmp_path / "was-run")}, tmp_path / "checkpoint-1.pt")
    with pytest.raises(checkpoints.CheckpointError, match="cannot read checkpoint"):
        checkpoints.read(tmp_path / "checkpoint-1.pt")
    assert not (tmp_path / "was-run").exists()


def test_a_saved_batch_runs_no_code(tmp_path):
    torch.save({"inputs": Evil(tmp_path / "was-run"), "plain": "{}"}, tmp_path / "batch.pt")
    with pytest.raises(pickle.UnpicklingError):
        read_batch(tmp_path / "batch.pt")
    assert not (tmp_path / "was-run").exists()


def test_masks_run_no_code(tmp_path):
    masks = PathwayMasks.dense(torch.nn.Sequential(torch.nn.Linear(2, 2)), ["en"], ["0"])
    masks.save(tmp_path / "masks.safetensors")
    (tmp_path / "masks.safetensors").write_bytes(pickle.dumps(Evil(tmp_path / "was-run")))
    with pytest.raises(MasksError, match="damaged or no safetensors file"):
        PathwayMasks.load(tmp_path / "masks.safetensors")
    assert not (tmp_path / "was-run").exists()


def test_a_header_that_claims_too_much_is_refused(tmp_path):
    masks = PathwayMasks.dense(torch.nn.Sequential(torch.nn.Linear(2, 2)), ["en"], ["0"])
    masks.save(tmp_path / "masks.safetensors")
    save_file({"0.weight": torch.zeros(2, 2, dtype=torch.uint8)}, tmp_path / "other.safetensors")
    stored = (tmp_path / "other.safetensors").read_bytes()
    for claim in ((1 << 62), (1 << 40), len(stored)):
        (tmp_path / "masks.safetensors").write_bytes(claim.to_bytes(8, "little") + stored[8:])
        with pytest.raises(MasksError, match="damaged or no safetensors file"):
            PathwayMasks.load(tmp_path / "masks.safetensors")


def test_json_without_end_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "config.json"
    path.write_text("[" * 200_000)
    with pytest.raises(ValueError, match=r"config\.json is not valid JSON"):
        files.read_json(path)
    monkeypatch.setattr(files, "_MOST_JSON", 1000)
    with pytest.raises(ValueError, match="has 200000 bytes, expected at most 1000"):
        files.read_json(path)


@pytest.mark.parametrize("kind", ["command", "url"])
@pytest.mark.parametrize("split", ["train", "dev"])
def test_a_manifest_runs_no_command(tmp_path, kind, split):
    (cut,) = make_cuts(tmp_path, "en", "en", [100])
    source = AudioSource(type=kind, channels=[0], source=f"touch {tmp_path / 'was-run'}")
    recording = Recording("evil", [source], sampling_rate=16000, num_samples=16000, duration=1.0)
    write_cuts(tmp_path, "en", split, list(CutSet.from_cuts([replace(cut, recording=recording)])))
    data = SpeechDataModule(DataConfig(manifest_dir=tmp_path, languages="en"))
    with pytest.raises(DataError, match=f"takes its audio from a {kind}.*do not trust this manifest"):
        _ = data.training_cuts if split == "train" else data.loader("en", "dev")
    assert not (tmp_path / "was-run").exists()
