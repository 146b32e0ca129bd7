"""Untrusted files cannot execute code or cause unlimited reads."""

import pickle
import zipfile
from contextlib import suppress
from dataclasses import replace

import pytest
import torch
from lhotse import AudioSource, CutSet, Recording, SupervisionSegment
from safetensors.torch import save_file
from speech_cuts import TEXTS, make_cuts, write_cuts

from icefall_pathways import files
from icefall_pathways.corpora.layout import SplitFiles, write_manifests
from icefall_pathways.data.augmentation import Augmentation, AugmentationConfig
from icefall_pathways.data.datamodule import DataConfig, SpeechDataModule
from icefall_pathways.data.fbank import ComputeFbankConfig, compute_fbank
from icefall_pathways.data.manifests import DataError, check_cut
from icefall_pathways.data.tokenizer import Tokenizer, train_tokenizer
from icefall_pathways.experiment import checkpoints
from icefall_pathways.languages import get_language
from icefall_pathways.pathways.masks import MasksError, PathwayMasks
from icefall_pathways.training.nonfinite import read_batch


class Evil:
    """An object that creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("part", ["model", "plain", "optimizer"])
def test_checkpoint_executes_no_code(tmp_path, part):
    torch.save({"model": {}, "plain": "{}", part: Evil(tmp_path / "executed")}, tmp_path / "checkpoint-1.pt")
    with pytest.raises(checkpoints.CheckpointError, match="cannot read checkpoint"):
        checkpoints.read(tmp_path / "checkpoint-1.pt")
    assert not (tmp_path / "executed").exists()


def test_saved_batch_executes_no_code(tmp_path):
    torch.save({"inputs": Evil(tmp_path / "executed"), "plain": "{}"}, tmp_path / "batch.pt")
    with pytest.raises(pickle.UnpicklingError):
        read_batch(tmp_path / "batch.pt")
    assert not (tmp_path / "executed").exists()


def test_masks_file_executes_no_code(tmp_path):
    masks = PathwayMasks.dense(torch.nn.Sequential(torch.nn.Linear(2, 2)), ["en"], ["0"])
    masks.save(tmp_path / "masks.safetensors")
    (tmp_path / "masks.safetensors").write_bytes(pickle.dumps(Evil(tmp_path / "executed")))
    with pytest.raises(MasksError, match="damaged or not a safetensors file"):
        PathwayMasks.load(tmp_path / "masks.safetensors")
    assert not (tmp_path / "executed").exists()


def test_header_that_claims_too_much_is_rejected(tmp_path):
    masks = PathwayMasks.dense(torch.nn.Sequential(torch.nn.Linear(2, 2)), ["en"], ["0"])
    masks.save(tmp_path / "masks.safetensors")
    save_file({"0.weight": torch.zeros(2, 2, dtype=torch.uint8)}, tmp_path / "other.safetensors")
    stored = (tmp_path / "other.safetensors").read_bytes()
    for claim in ((1 << 62), (1 << 40), len(stored)):
        (tmp_path / "masks.safetensors").write_bytes(claim.to_bytes(8, "little") + stored[8:])
        with pytest.raises(MasksError, match="damaged or not a safetensors file"):
            PathwayMasks.load(tmp_path / "masks.safetensors")


def test_deeply_nested_or_large_json_is_rejected(tmp_path, monkeypatch):
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
    tokenizer = Tokenizer(train_tokenizer(TEXTS.values(), 20, folder / "lang"))
    data = SpeechDataModule(DataConfig(manifest_dir=folder, languages="en"), tokenizer)
    return data.training_cuts if split == "train" else data.loader("en", "dev")


@pytest.mark.parametrize("kind", ["command", "url"])
@pytest.mark.parametrize("split", ["train", "dev"])
def test_manifest_executes_no_command(tmp_path, kind, split):
    (cut,) = make_cuts(tmp_path, "en", "en", [100])
    evil = replace(cut, recording=recording(f"touch {tmp_path / 'executed'}", kind))
    with pytest.raises(DataError, match=f"reads its audio from a {kind}.*do not trust this manifest"):
        read_manifest(tmp_path, evil, split)
    assert not (tmp_path / "executed").exists()


def test_file_name_is_not_executed_as_a_command(tmp_path):
    """Lhotse reads NIST SPHERE files with a program that it starts through a shell."""
    (cut,) = make_cuts(tmp_path, "en", "en", [100])
    evil = recording(f"x.sph; touch {tmp_path / 'executed'} #.sph")
    with suppress(Exception):
        evil.load_audio()
    assert (tmp_path / "executed").exists(), "lhotse has fixed this: remove the check"
    with pytest.raises(DataError, match="a name with shell metacharacters: rename the file"):
        read_manifest(tmp_path, replace(cut, recording=evil))


@pytest.mark.parametrize("storage_type", ["kaldiio", "lilcom_url", "shar"])
def test_features_are_read_only_from_files(tmp_path, storage_type):
    (cut,) = make_cuts(tmp_path, "en", "en", [100])
    cut.features.storage_type = storage_type
    with pytest.raises(DataError, match=f"in storage of type '{storage_type}'"):
        read_manifest(tmp_path, cut)


def test_audio_transform_that_reads_other_audio_is_rejected(tmp_path):
    (cut,) = make_cuts(tmp_path, "en", "en", [100])
    rir = recording(f"touch {tmp_path / 'executed'}", "command").to_dict()
    evil = replace(recording(), transforms=[{"name": "ReverbWithImpulseResponse", "kwargs": {"rir": rir}}])
    with pytest.raises(DataError, match="has the audio transform ReverbWithImpulseResponse"):
        read_manifest(tmp_path, replace(cut, recording=evil))


def test_mixed_cut_is_rejected(tmp_path):
    (cut,) = make_cuts(tmp_path, "en", "en", [100])
    evil = replace(cut, recording=recording(f"touch {tmp_path / 'executed'}", "command"))
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
def test_impossible_sizes_are_rejected(tmp_path, claims, message):
    (cut,) = make_cuts(tmp_path, "en", "en", [100])
    if "recording" in claims:
        cut.recording = recording(**claims["recording"])
    if "features" in claims:
        cut.features = replace(cut.features, **claims["features"])
    cut.duration = claims.get("duration", cut.duration)
    with pytest.raises(DataError, match=message):
        check_cut(cut, tmp_path / "cuts.jsonl.gz")


@pytest.mark.parametrize("name", ["a\nb", "a:\tb", "a\ud800", 5])
def test_names_that_results_cannot_contain_are_rejected(tmp_path, name):
    (cut,) = make_cuts(tmp_path, "en", "en", [100])
    with pytest.raises(DataError, match=r"cuts.jsonl.gz has a cut with the name .*without line breaks"):
        check_cut(replace(cut, id=name), tmp_path / "cuts.jsonl.gz")


def test_text_that_is_not_unicode_is_rejected(tmp_path):
    (cut,) = make_cuts(tmp_path, "en", "en", [100])
    cut.supervisions[0].text = "a\ud800"
    with pytest.raises(DataError, match=r"cut en-0 in .*cuts.jsonl.gz has the text 'a\\ud800', which is not Unicode"):
        check_cut(cut, tmp_path / "cuts.jsonl.gz")


def test_features_are_not_read_from_a_device(tmp_path):
    """A device provides as many bytes as the key claims."""
    (cut,) = make_cuts(tmp_path, "en", "en", [100])
    cut.features = replace(cut.features, storage_path="/dev/zero", storage_key=f"0,{1 << 40}")
    with pytest.raises(DataError, match="reads from /dev/zero, which is not a regular file"):
        next(iter(read_manifest(tmp_path, cut, "dev")))


def test_manifest_changed_after_indexing_is_checked_again(tmp_path):
    """A worker trusts neither the index nor that the manifest is still the one that was indexed."""
    (cut,) = make_cuts(tmp_path, "en", "en", [400])
    cuts = read_manifest(tmp_path, cut)["en"]
    write_cuts(tmp_path, "en", "train", [replace(cut, recording=recording("touch executed", "command"))])
    with pytest.raises(DataError, match=r"from a command|cannot read cut 0 of .* changed or damaged since"):
        cuts.index.read([0])


def test_audio_is_checked_before_feature_extraction(tmp_path):
    evil = recording(f"touch {tmp_path / 'executed'}", "command")
    manifests = SplitFiles(tmp_path, "mls", get_language("en"), "train")
    supervision = SupervisionSegment("evil", "evil", 0.0, 1.0, text="x", language="en")
    write_manifests(manifests, ["evil"], lambda _names, _report: [(evil, supervision)])
    config = ComputeFbankConfig(manifest_dir=tmp_path, output_dir=tmp_path / "out", languages="en", num_jobs=1)
    with pytest.raises(DataError, match="reads its audio from a command"):
        compute_fbank(config)
    assert not (tmp_path / "executed").exists()


def test_noise_is_checked_before_mixing(tmp_path):
    (cut,) = make_cuts(tmp_path, "en", "en", [100])
    evil = replace(cut, supervisions=[], recording=recording(f"touch {tmp_path / 'executed'}", "command"))
    CutSet.from_cuts([evil]).to_file(tmp_path / "musan.jsonl.gz")
    with pytest.raises(DataError, match="reads its audio from a command"):
        Augmentation(AugmentationConfig(enable_musan=True, musan_cuts=tmp_path / "musan.jsonl.gz"))


def test_compressed_checkpoint_is_rejected(tmp_path):
    """A few bytes could expand to fill the memory; torch does not compress."""
    path, packed = tmp_path / "checkpoint-1.pt", tmp_path / "checkpoint-2.pt"
    checkpoints.save({"model": {"w": torch.zeros(1000)}, "update": 1}, path)
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    with pytest.raises(checkpoints.CheckpointError, match=r"checkpoint-2\.pt.*is compressed"):
        checkpoints.read(packed)
