"""Speed perturbation and noise, from audio to batches, with stored and on-the-fly features."""

from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch
from lhotse import CutSet
from lhotse.cut import MixedCut
from lhotse.recipes import prepare_musan
from mls_folder import TEXTS, make_language, write_audio

from icefall_pathways.corpora.mls import prepare_manifests
from icefall_pathways.data.augmentation import Augmentation, AugmentationConfig, seeded
from icefall_pathways.data.datamodule import DataConfig, SpeechDataModule
from icefall_pathways.data.fbank import ComputeFbankConfig, compute_fbank, compute_fbank_musan
from icefall_pathways.data.manifests import DataError
from icefall_pathways.data.tokenizer import Tokenizer, train_tokenizer
from icefall_pathways.languages import get_language

TONE = "10_100_000000"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with German cuts at three speeds, with and without stored features, and a small MUSAN.

    One utterance is a tone.
    """
    folder = tmp_path_factory.mktemp("augmentation")
    language = make_language(folder / "corpus", "de")
    tone = 0.3 * np.sin(2 * np.pi * 1000 * np.arange(16000) / 16000)
    soundfile.write(language / "train" / "audio" / "10" / "100" / f"{TONE}.flac", tone, 16000)
    for part in ("music", "speech", "noise"):
        write_audio(folder / "musan" / part / "x" / f"{part}.wav", 12.0, seed=99)
    (folder / "musan" / "music" / "x" / "ANNOTATIONS").write_text("music some N artist\n")
    prepare_musan(folder / "musan", folder / "manifests")
    prepare_manifests(folder / "corpus", folder / "manifests", [get_language("de")])
    config = ComputeFbankConfig(folder / "manifests", folder / "fbank", "de", perturb_speed=True, num_jobs=1)
    compute_fbank(config)
    compute_fbank(replace(config, output_dir=folder / "audio", store_feats=False))
    compute_fbank_musan(folder / "manifests", folder / "fbank", 1)
    train_tokenizer(TEXTS["de"], 22, folder)
    return folder


def cuts_of(folder, split, features="fbank"):
    return CutSet.from_file(folder / features / f"mls-german_cuts_{split}.jsonl.gz").to_eager()


@pytest.fixture
def datamodule(folder):
    def make(**options):
        options = {"manifest_dir": folder / "fbank", "max_duration": 4.0, "num_workers": 0} | options
        return SpeechDataModule(DataConfig(languages="de", **options), Tokenizer(folder / "bpe.model"))

    return make


def test_speed_perturbation_changes_duration_and_preserves_supervisions(folder):
    by_id = {cut.id: cut for cut in cuts_of(folder, "train")}
    originals = [cut for cut_id, cut in by_id.items() if "_sp" not in cut_id]
    assert len(originals) == 4 and len(by_id) == 12
    for cut in originals:
        for factor in (0.9, 1.1):
            name, _, index = cut.id.rpartition("-")
            (copy,) = [by_id[key] for key in by_id if key.startswith(f"{name}") and f"_sp{factor}" in key]
            assert copy.duration == pytest.approx(cut.duration / factor, abs=1e-3), index
            assert copy.num_frames == round(100 * copy.duration) == len(copy.load_features())
            (before,), (after,) = cut.supervisions, copy.supervisions
            assert (after.text, after.language, after.speaker) == (before.text, before.language, before.speaker)
            assert after.duration == pytest.approx(copy.duration, abs=1e-3)
    assert len(cuts_of(folder, "dev")) == len(cuts_of(folder, "test")) == 4


def test_speed_perturbation_changes_the_pitch(folder):
    peaks = {}
    for cut in cuts_of(folder, "train"):
        if cut.id.startswith(TONE):
            factor = float(cut.id.split("_sp")[1].split("-")[0]) if "_sp" in cut.id else 1.0
            peaks[factor] = int(cut.load_features()[20:60].mean(axis=0).argmax())
    assert peaks[0.9] < peaks[1.0] < peaks[1.1]


def energy(features):
    return float(np.exp(np.float64(features)).sum())


@pytest.mark.parametrize("on_the_fly", [False, True])
def test_noise_is_mixed_in_at_the_stated_snr(folder, on_the_fly):
    config = AugmentationConfig(enable_musan=True, musan_cuts=folder / "fbank" / "musan_cuts.jsonl.gz")
    clean = cuts_of(folder, "train")
    with seeded(5):
        mixed = Augmentation(config).mix(clean)
    stated = []
    for before, after in zip(clean, mixed, strict=True):
        assert (before.id, before.duration) == (after.id, after.duration)
        assert [s.text for s in before.supervisions] == [s.text for s in after.supervisions]
        if not isinstance(after, MixedCut):
            continue
        if on_the_fly:
            sound, both = (np.float64(cut.load_audio()) for cut in (before, after))
            ratio = (sound**2).sum() / ((both - sound) ** 2).sum()
        else:
            sound, both = energy(before.load_features()), energy(after.load_features())
            ratio = sound / (both - sound)
        stated.append(after.tracks[1].snr)
        assert 10 * np.log10(ratio) == pytest.approx(stated[-1], abs=0.7)
    assert 3 <= len(stated) <= 9
    assert 10 <= min(stated) < max(stated) <= 20


def equal_batches(a, b):
    return torch.equal(a.inputs, b.inputs) and a.texts == b.texts


@pytest.mark.parametrize("on_the_fly", [False, True])
def test_augmented_batches_depend_on_seed_and_update_only(folder, datamodule, on_the_fly):
    noise = {"enable_musan": True, "musan_cuts": folder / "fbank" / "musan_cuts.jsonl.gz"}
    options = noise | {"on_the_fly_feats": on_the_fly}
    whole = list(datamodule(**options).train_batches(0, 5, seed=1))
    rest = list(datamodule(**options, num_workers=1).train_batches(2, 3, seed=1))
    assert all(equal_batches(a, b) for a, b in zip(whole[2:], rest, strict=True))
    other = list(datamodule(**options).train_batches(0, 5, seed=2))
    plain = list(datamodule(on_the_fly_feats=on_the_fly, enable_spec_aug=False).train_batches(0, 5, seed=1))
    assert not any(equal_batches(a, b) for batches in (other, plain) for a, b in zip(whole, batches, strict=True))
    assert [b.texts for b in whole] == [b.texts for b in plain]


def test_on_the_fly_features_equal_stored_features(datamodule):
    """Up to the quantization of lilcom."""
    stored = list(datamodule().loader("de", "dev"))
    computed = list(datamodule(on_the_fly_feats=True).loader("de", "dev"))
    for a, b in zip(stored, computed, strict=True):
        assert torch.equal(a.num_frames, b.num_frames)
        assert a.texts == b.texts
        torch.testing.assert_close(a.inputs, b.inputs, rtol=0, atol=0.05)
        assert not torch.equal(a.inputs, b.inputs)


def test_on_the_fly_features_need_no_stored_features(folder, datamodule):
    with pytest.raises(DataError, match="no features"):
        next(datamodule(manifest_dir=folder / "audio").train_batches(0, 1, seed=1))
    assert not list((folder / "audio").glob("*feats*"))
    computed = datamodule(manifest_dir=folder / "audio", on_the_fly_feats=True).train_batches(0, 3, seed=1)
    stored = datamodule(on_the_fly_feats=True).train_batches(0, 3, seed=1)
    assert all(equal_batches(a, b) for a, b in zip(computed, stored, strict=True))


def test_error_of_unreadable_audio_names_the_cut(folder, datamodule, tmp_path):
    cuts = list(cuts_of(folder, "dev"))
    cuts[0].recording.sources[0].source = str(tmp_path / "gone.flac")
    CutSet.from_cuts(cuts).to_file(tmp_path / "mls-german_cuts_dev.jsonl.gz")
    with pytest.raises(DataError, match=f"cannot read the audio of cut {cuts[0].id} .*: repair the file"):
        list(datamodule(manifest_dir=tmp_path, on_the_fly_feats=True).loader("de", "dev"))


def test_multichannel_audio_requires_stored_features(folder, datamodule, tmp_path):
    cuts = list(cuts_of(folder, "dev"))
    cuts[0].recording.sources[0].channels = [0, 1]
    CutSet.from_cuts([replace(cuts[0], recording=replace(cuts[0].recording, channel_ids=[0, 1]))]).to_file(
        tmp_path / "mls-german_cuts_dev.jsonl.gz"
    )
    with pytest.raises(DataError, match=r"has 2 channels, but only prepare.sh downmixes audio"):
        datamodule(manifest_dir=tmp_path, on_the_fly_feats=True).loader("de", "dev")
