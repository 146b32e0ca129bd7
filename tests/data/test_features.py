"""Features: both libraries agree with Lhotse's extractor and with each other, and streaming with offline extraction."""

import math
import os
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from lhotse import CutSet, MonoCut, Recording, SupervisionSegment
from lhotse import Fbank as LhotseFbank
from lhotse import FbankConfig as LhotseFbankConfig
from lhotse.features.base import get_extractor_type
from torch import Tensor

from icefall_pathways.data.dataset import BatchPlan, SpeechDataset
from icefall_pathways.data.feature_shards import write_shard
from icefall_pathways.data.features import FbankConfig, KaldiNativeFbank, StreamingFbank, fbank_backend
from icefall_pathways.sharding.shards import Shard

RATE = 16000
TOLERANCE = 1e-3  # log-mel


@pytest.fixture
def hide_kaldifeat(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Make kaldifeat impossible to import, also in processes that this one starts: they inherit sys.path."""
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden" / "kaldifeat.py").write_text("raise ModuleNotFoundError('hidden', name='kaldifeat')\n")
    monkeypatch.delitem(sys.modules, "kaldifeat", raising=False)
    monkeypatch.syspath_prepend(tmp_path / "hidden")


@pytest.fixture(params=["kaldifeat", "kaldi-native-fbank"], autouse=True)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run each test with both libraries."""
    if request.param == "kaldifeat":
        pytest.importorskip("kaldifeat", reason="kaldifeat is not installed")
    else:
        request.getfixturevalue("hide_kaldifeat")
    assert fbank_backend() == request.param
    return request.param


def speech_like(num_samples: int) -> Tensor:
    """Return a chirp in noise, in [-1, 1]."""
    time = torch.arange(num_samples) / RATE
    return 0.3 * torch.sin(2 * math.pi * (200 + 900 * time) * time) + 0.05 * torch.randn(num_samples)


def offline(samples: Tensor, config: FbankConfig | None = None) -> Tensor:
    return torch.as_tensor((config or FbankConfig()).extractor().extract(samples, RATE))


def lhotse_fbank(samples: Tensor, high_freq: float) -> Tensor:
    config = LhotseFbankConfig(
        sampling_rate=RATE, num_filters=80, low_freq=20.0, high_freq=high_freq, snip_edges=False, dither=0.0
    )
    return torch.as_tensor(LhotseFbank(config).extract(samples.numpy(), RATE))


@pytest.mark.parametrize("num_samples", [16000, 20017, 31999])
def test_features_equal_lhotse_fbank_features(num_samples: int) -> None:
    samples = speech_like(num_samples)
    torch.testing.assert_close(offline(samples), lhotse_fbank(samples, -400.0), rtol=0, atol=TOLERANCE)


def test_default_filters_equal_lhotse_filters() -> None:
    """kaldifeat's own default of high_freq, 0, gives other filters."""
    samples = speech_like(RATE)
    expected, other = lhotse_fbank(samples, -400.0), lhotse_fbank(samples, 0.0)
    assert (offline(samples) - expected).abs().mean() < 1e-3
    assert (offline(samples) - other).abs().mean() > 1e-2
    assert (offline(samples, FbankConfig(high_freq=0.0)) - other).abs().mean() < 1e-3


def test_there_is_one_frame_per_10_ms() -> None:
    for num_samples, num_frames in ((16000, 100), (16079, 100), (16080, 101), (8000, 50)):
        assert offline(speech_like(num_samples)).shape == (num_frames, 80)


def test_the_extractor_is_registered_with_lhotse() -> None:
    """The extractor's name selects the rules by which Lhotse mixes stored features."""
    extractor = FbankConfig().extractor()
    assert extractor.name == "kaldifeat-fbank"
    registered = get_extractor_type(extractor.name)()  # without kaldifeat as well
    for name in ("mix", "compute_energy", "scale"):
        assert getattr(registered, name) is getattr(extractor, name)
    assert extractor.feature_dim(RATE) == 80 and extractor.frame_shift == 0.01


def test_the_extractor_can_be_sent_to_loader_workers() -> None:
    extractor = FbankConfig().extractor()
    samples = speech_like(RATE)
    received = pickle.loads(pickle.dumps(extractor)).extract(samples, RATE)
    assert torch.equal(received, extractor.extract(samples, RATE))


def test_features_have_the_array_type_of_the_samples() -> None:
    extractor, samples = FbankConfig().extractor(), speech_like(RATE)
    expected = offline(samples)
    assert isinstance(extractor.extract(samples.numpy()[None], RATE), np.ndarray)
    assert isinstance(extractor.extract_batch([samples.numpy()], RATE)[0], np.ndarray)
    assert torch.equal(extractor.extract(torch.stack([samples, samples]), RATE), torch.stack([expected, expected]))


def test_features_of_silence_equal_the_log_of_the_float32_epsilon() -> None:
    assert bool((offline(torch.zeros(RATE)) == math.log(torch.finfo(torch.float32).eps)).all())


def test_batched_extraction_equals_single_extraction() -> None:
    batch = [speech_like(n) for n in (9000, 16000, 12345)]
    together = FbankConfig().extractor().extract_batch(batch, RATE)
    for samples, features in zip(batch, together, strict=True):
        torch.testing.assert_close(torch.as_tensor(features), offline(samples), rtol=0, atol=1e-5)


@pytest.mark.parametrize("num_samples", [161, 400, 1000, 16000, 20017])
@pytest.mark.parametrize("max_piece", [1, 50, 700, 5000])
def test_streaming_features_equal_offline_features(num_samples: int, max_piece: int) -> None:
    num_samples = min(num_samples, 2000) if max_piece == 1 else num_samples
    samples, stream, frames, start = speech_like(num_samples), StreamingFbank(), [], 0
    while start < num_samples:
        size = int(torch.randint(0, max_piece, ())) + 1
        frames.append(stream.accept(samples[start : start + size]))
        start += size
    frames.append(stream.flush())
    torch.testing.assert_close(torch.cat(frames), offline(samples), rtol=0, atol=1e-5)


def test_streaming_returns_frames_as_soon_as_they_are_final() -> None:
    """Frame t covers samples up to 160 t + 280."""
    stream = StreamingFbank()
    assert stream.accept(speech_like(279)).size(0) == 0
    assert stream.accept(speech_like(1)).size(0) == 1
    assert stream.accept(speech_like(16000 - 280)).size(0) == 98
    assert stream.flush().size(0) == 1


def test_a_stream_shorter_than_a_frame_has_one_frame() -> None:
    stream = StreamingFbank()
    assert stream.accept(speech_like(100)).size(0) == 0
    frames = stream.flush()
    assert frames.shape == (1, 80)
    assert bool(frames.isfinite().all())


def test_an_empty_stream_has_no_frames() -> None:
    assert StreamingFbank().flush().shape == (0, 80)


def test_a_kaldifeat_built_for_another_torch_is_replaced_with_a_warning(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "kaldifeat.py").write_text("raise ImportError('undefined symbol: _ZN3c10')\n")
    monkeypatch.delitem(sys.modules, "kaldifeat", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.warns(UserWarning, match=r"kaldifeat is installed but cannot be imported \(undefined symbol"):
        assert isinstance(FbankConfig().extractor(), KaldiNativeFbank)


@pytest.fixture
def cuts(tmp_path: Path) -> CutSet:
    """Return cuts of one recording each, of different lengths."""
    cuts = []
    for index, num_samples in enumerate((16000, 12000, 20160)):
        path = tmp_path / f"{index}.wav"
        soundfile.write(path, speech_like(num_samples).numpy(), RATE, subtype="FLOAT")
        recording = Recording.from_file(path)
        text = SupervisionSegment(path.stem, path.stem, 0.0, recording.duration, text="", language="en")
        cuts.append(MonoCut(path.stem, 0.0, recording.duration, 0, recording=recording, supervisions=[text]))
    return CutSet.from_cuts(cuts)


def kaldi_native(cut: MonoCut) -> Tensor:
    (samples,) = cut.load_audio()
    config = FbankConfig().extractor().config
    return torch.as_tensor(KaldiNativeFbank(config).extract(samples, RATE))


def test_unreadable_audio_is_named_with_its_cause(cuts: CutSet, tmp_path: Path) -> None:
    truncated, damaged, _ = (str(cut.recording.sources[0].source) for cut in cuts)
    os.truncate(truncated, 32044)
    Path(damaged).write_bytes(bytes(1000))
    num_cuts, unreadable = write_shard(Shard(tmp_path, 0, ()), cuts, store_feats=True)
    assert num_cuts == 1 and [cut_id for cut_id, _ in unreadable] == ["0", "1"]
    assert unreadable[0][1] == f"{truncated}: it is shorter than its 1.00 s: truncated or damaged"
    assert unreadable[1][1].startswith(f"{damaged}: ") and "Recording(" not in unreadable[1][1]


def test_stored_features_of_both_libraries_are_equal(cuts: CutSet, tmp_path: Path) -> None:
    """They are equal up to the quantization of the storage, which rounds to multiples of 1 / 32."""
    shard = Shard(tmp_path, 0, ())
    assert write_shard(shard, cuts, store_feats=True) == (len(cuts), [])
    stored = CutSet.from_file(shard.path("cuts")).to_eager()
    assert sorted(cut.id for cut in stored) == sorted(cut.id for cut in cuts)
    for cut in stored:
        assert cut.features.type == "kaldifeat-fbank"
        atol = 1 / 64 + TOLERANCE
        torch.testing.assert_close(torch.from_numpy(cut.load_features()), kaldi_native(cut), rtol=0, atol=atol)


def test_on_the_fly_features_of_both_libraries_are_equal(cuts: CutSet, backend: str) -> None:
    batch = SpeechDataset(None, on_the_fly=True, tokenizer=None).load(
        BatchPlan(update=1, language="en", cuts=cuts, seed=0)
    )
    assert batch.num_frames.tolist() == sorted((100, 75, 126), reverse=True)
    for row, cut in enumerate(batch.cuts):
        features = batch.inputs[row, : batch.num_frames[row]]
        atol = TOLERANCE if backend == "kaldifeat" else 0
        torch.testing.assert_close(features, kaldi_native(cut), rtol=0, atol=atol)


@pytest.mark.parametrize("num_samples", [161, 400, 16000, 31999])
def test_features_of_both_libraries_are_equal(num_samples: int) -> None:
    samples = speech_like(num_samples)
    native = KaldiNativeFbank(FbankConfig().extractor().config).extract(samples, RATE)
    torch.testing.assert_close(offline(samples), native, rtol=0, atol=TOLERANCE)
