"""Files from strangers run no code, and cannot make us read without end."""

import pickle
import zipfile
from contextlib import suppress
from dataclasses import replace

import pytest
import torch
from lhotse import AudioSource, CutSet, Recording, SupervisionSegment
from safetensors.torch import save_file
from speech_cuts import make_cuts, write_cuts

from icefall_pathways import files
from icefall_pathways.corpora.layout import SplitFiles, write_manifests
from icefall_pathways.data.augmentation import Augmentation, AugmentationConfig
from icefall_pathways.data.datamodule import DataConfig, SpeechDataModule
from icefall_pathways.data.fbank import ComputeFbankConfig, compute_fbank
from icefall_pathways.data.manifests import DataError, check_cut
from icefall_pathways.experiment import checkpoints
from icefall_pathways.languages import get_language
from icefall_pathways.pathways.masks import MasksError, PathwayMasks
from icefall_pathways.training.nonfinite import read_batch


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
    monkeypatch.setattr(files, "_MAX_JSON_BYTES", 1000)
    with pytest.raises(ValueError, match="has 200000 bytes, expected at most 1000"):
        files.read_json(path)


def recording(source="evil.wav", kind="file", **claims):
    claims = {"sampling_rate": 16000, "num_samples": 16000, "duration": 1.0} | claims
    return Recording("evil", [AudioSource(type=kind, channels=[0], source=source)], **claims)


def read_manifest(folder, cut, split="train"):
    write_cuts(folder, "en", split, [cut])
    data = SpeechDataModule(DataConfig(manifest_dir=folder, languages="en"))
    return data.training_cuts if split == "train" else data.loader("en", "dev")


@pytest.mark.parametrize("kind", ["command", "url"])
@pytest.mark.parametrize("split", ["train", "dev"])
def test_a_manifest_runs_no_command(tmp_path, kind, split):
    (cut,) = make_cuts(tmp_path, "en", "en", [100])
    evil = replace(cut, recording=recording(f"touch {tmp_path / 'was-run'}", kind))
    with pytest.raises(DataError, match=f"reads its audio from a {kind}.*do not trust this manifest"):
        read_manifest(tmp_path, evil, split)
    assert not (tmp_path / "was-run").exists()


def test_a_name_of_a_file_is_no_command(tmp_path):
    """Lhotse reads NIST SPHERE by a program, through a shell."""
    (cut,) = make_cuts(tmp_path, "en", "en", [100])
    evil = recording(f"x.sph; touch {tmp_path / 'was-run'} #.sph")
    with suppress(Exception):
        evil.load_audio()
    assert (tmp_path / "was-run").exists(), "lhotse has mended this: the check can go"
    with pytest.raises(DataError, match="a name with shell metacharacters: rename the file"):
        read_manifest(tmp_path, replace(cut, recording=evil))


@pytest.mark.parametrize("storage_type", ["kaldiio", "lilcom_url", "shar"])
def test_features_are_read_from_files_only(tmp_path, storage_type):
    (cut,) = make_cuts(tmp_path, "en", "en", [100])
    cut.features.storage_type = storage_type
    with pytest.raises(DataError, match=f"in storage of type '{storage_type}'"):
        read_manifest(tmp_path, cut)


def test_a_change_of_audio_that_reads_other_audio_is_refused(tmp_path):
    (cut,) = make_cuts(tmp_path, "en", "en", [100])
    rir = recording(f"touch {tmp_path / 'was-run'}", "command").to_dict()
    evil = replace(recording(), transforms=[{"name": "ReverbWithImpulseResponse", "kwargs": {"rir": rir}}])
    with pytest.raises(DataError, match="has the audio transform ReverbWithImpulseResponse"):
        read_manifest(tmp_path, replace(cut, recording=evil))


def test_a_mixed_cut_hides_nothing(tmp_path):
    (cut,) = make_cuts(tmp_path, "en", "en", [100])
    evil = replace(cut, recording=recording(f"touch {tmp_path / 'was-run'}", "command"))
    with pytest.raises(DataError, match="is a MixedCut: expected a MonoCut"):
        read_manifest(tmp_path, cut.append(evil))


@pytest.mark.parametrize(
    ("claims", "message"),
    [
        ({"duration": 1e9}, r"has a duration of 1e\+09 s"),
        ({"duration": float("nan")}, "has a duration of nan s"),
        (
            {"features": {"num_frames": 10**12}},
            r"the features of cut .* have a duration of 1 s, but their number corresponds to 1e\+10 s",
        ),
        ({"features": {"num_features": 10**9}}, "has 1000000000 features per frame: expected 80"),
        ({"recording": {"num_samples": 10**15}}, "the samples of cut .* have a duration of 1 s"),
        ({"recording": {"sampling_rate": 10**12}}, "has a sampling rate of 1000000000000 Hz"),
    ],
)
def test_claims_of_impossible_sizes_are_refused(tmp_path, claims, message):
    (cut,) = make_cuts(tmp_path, "en", "en", [100])
    if "recording" in claims:
        cut.recording = recording(**claims["recording"])
    if "features" in claims:
        cut.features = replace(cut.features, **claims["features"])
    cut.duration = claims.get("duration", cut.duration)
    with pytest.raises(DataError, match=message):
        check_cut(cut, tmp_path / "cuts.jsonl.gz")


def test_features_are_read_from_no_device(tmp_path):
    """Of which as much could be read as the key claims."""
    (cut,) = make_cuts(tmp_path, "en", "en", [100])
    cut.features = replace(cut.features, storage_path="/dev/zero", storage_key=f"0,{1 << 40}")
    with pytest.raises(DataError, match="reads from /dev/zero, which is not a regular file"):
        next(iter(read_manifest(tmp_path, cut, "dev")))


def test_audio_is_checked_before_features_are_made_of_it(tmp_path):
    evil = recording(f"touch {tmp_path / 'was-run'}", "command")
    manifests = SplitFiles(tmp_path, "mls", get_language("en"), "train")
    write_manifests(manifests, lambda _: [(evil, SupervisionSegment("evil", "evil", 0.0, 1.0, text="x"))])
    config = ComputeFbankConfig(manifest_dir=tmp_path, output_dir=tmp_path / "out", languages="en", num_jobs=1)
    with pytest.raises(DataError, match="reads its audio from a command"):
        compute_fbank(config)
    assert not (tmp_path / "was-run").exists()


def test_noise_is_checked_before_it_is_mixed_in(tmp_path):
    (cut,) = make_cuts(tmp_path, "en", "en", [100])
    evil = replace(cut, supervisions=[], recording=recording(f"touch {tmp_path / 'was-run'}", "command"))
    CutSet.from_cuts([evil]).to_file(tmp_path / "musan.jsonl.gz")
    with pytest.raises(DataError, match="reads its audio from a command"):
        Augmentation(AugmentationConfig(enable_musan=True, musan_cuts=tmp_path / "musan.jsonl.gz"))


def test_a_compressed_checkpoint_is_refused(tmp_path):
    """A few bytes could fill the memory; torch compresses nothing."""
    path, packed = tmp_path / "checkpoint-1.pt", tmp_path / "checkpoint-2.pt"
    checkpoints.save({"model": {"w": torch.zeros(1000)}, "update": 1}, path)
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    with pytest.raises(checkpoints.CheckpointError, match=r"checkpoint-2\.pt.*is compressed"):
        checkpoints.read(packed)
