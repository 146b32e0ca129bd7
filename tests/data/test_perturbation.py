"""Perturbation of training features: a function of its seed that keeps the speech and the supervisions."""

import math
import random
from typing import Any

import numpy as np
import pytest
import soxr
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lhotse import AudioSource, CutSet, MonoCut, Recording, SupervisionSegment
from lhotse.dataset import K2SpeechRecognitionDataset, SpecAugment
from speech_cuts import make_cuts
from torch import Tensor, nn

from icefall_pathways.data.augmentation import Augmentation, AugmentationConfig, seeded
from icefall_pathways.data.batch import Batch
from icefall_pathways.data.dataset import BatchPlan, SpeechDataset
from icefall_pathways.data.features import FbankConfig
from icefall_pathways.data.perturbation import PerturbationConfig, perturb, perturb_features

_FLOOR = math.log(2**-23)
_NEPERS_PER_DB = math.log(10) / 10


def speech(*lengths: int) -> list[Tensor]:
    """Return features well above the floor."""
    generator = torch.Generator().manual_seed(sum(lengths))
    return [torch.randn(length, 80, generator=generator) for length in lengths]


def make_cut(index: int, num_frames: int) -> MonoCut:
    seconds = num_frames / 100
    recording = Recording(f"r{index}", [AudioSource("file", [0], "x.wav")], 16000, 160 * num_frames, seconds)
    supervision = SupervisionSegment(f"s{index}", recording.id, 0.0, seconds, text=str(index), language="en")
    return MonoCut(f"c{index}", 0.0, seconds, 0, [supervision], recording=recording)


def config(**options: Any) -> PerturbationConfig:
    defaults = {"volume_perturb": False, "shift_perturb": 0.0, "silence_perturb": 0.0, "join_perturb": 0.0}
    return PerturbationConfig(**defaults | options)


@given(st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_without_perturbation_features_stay_the_same(seed: int) -> None:
    utterances = speech(50, 40)
    assert all(map(torch.equal, perturb_features(utterances, config(), seed), utterances))


@given(st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_volume_perturbation_is_a_gain_within_its_range(seed: int) -> None:
    before = torch.cat(speech(50, 40, 1))
    perturbed = perturb_features(before.split([50, 40, 1]), config(volume_perturb=True), seed)
    assert [len(features) for features in perturbed] == [50, 40, 1]
    gains = (torch.cat(perturbed) - before) / _NEPERS_PER_DB
    torch.testing.assert_close(gains, torch.full_like(gains, float(gains[0, 0])), atol=1e-3, rtol=0)
    assert -30.001 <= float(gains[0, 0]) <= 6.001


def test_all_gains_of_the_range_are_drawn() -> None:
    (utterance,) = speech(1)
    gains = [
        float((perturb_features([utterance], config(volume_perturb=True), s)[0] - utterance)[0, 0]) for s in range(99)
    ]
    assert min(gains) < -28 * _NEPERS_PER_DB and max(gains) > 4 * _NEPERS_PER_DB


def test_a_gain_does_not_lower_features_below_the_floor() -> None:
    options = {"volume_perturb_min": -90.0, "volume_perturb_max": -80.0}
    (features,) = perturb_features(speech(50), config(volume_perturb=True, **options), 1)
    assert float(features.min()) == pytest.approx(_FLOOR)


@given(st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_silence_is_added_around_and_inside_the_speech_which_is_kept(seed: int) -> None:
    utterances = speech(90, 60, 1)
    perturbed = perturb_features(utterances, config(silence_perturb=1.0), seed)
    (added,) = {len(after) - len(before) for before, after in zip(utterances, perturbed, strict=True)}
    assert 0 <= added <= 300
    for before, after in zip(utterances, perturbed, strict=True):
        kept = _first_match(before, after), len(after) - _first_match(before.flip(0), after.flip(0))
        assert kept[1] - kept[0] >= len(before)
        assert float(after.min()) >= _FLOOR


def _first_match(speech: Tensor, features: Tensor) -> int:
    """Return the first frame of `features` with the first frame of `speech`; noise may change it by a little."""
    distances = (features - speech[0]).abs().median(dim=1).values
    assert float(distances.min()) < 0.1
    return int(distances.argmin())


def test_all_positions_get_silence_and_noise_of_different_levels() -> None:
    (utterance,) = speech(100)
    before, after, levels = 0, 0, set()
    for seed in range(60):
        (features,) = perturb_features([utterance], config(silence_perturb=1.0, silence_perturb_seconds=9.0), seed)
        start = _first_match(utterance, features)
        end = len(features) - _first_match(utterance.flip(0), features.flip(0))
        before += start > 0
        after += end < len(features)
        if start > 20:
            levels.add(round(float(features[:20].mean())))
    assert 15 < before < 60 and 15 < after < 60
    assert _FLOOR - 0.5 < min(levels) < -14 and len(levels) > 4


def test_share_of_perturbed_batches_and_mean_duration() -> None:
    (utterance,) = speech(20)
    added = [len(perturb_features([utterance], config(silence_perturb=0.5), seed)[0]) - 20 for seed in range(400)]
    assert 0.4 < np.mean(np.array(added) > 0) < 0.6
    assert 40 < np.mean(added) < 60
    assert max(added) > 200


def test_every_batch_starts_with_silence_of_a_uniformly_distributed_duration() -> None:
    utterances = speech(20, 15)
    added = []
    for seed in range(400):
        features = perturb_features(utterances, config(shift_perturb=0.3), seed)
        (num_frames,) = {len(x) - len(utterance) for x, utterance in zip(features, utterances, strict=True)}
        for x, utterance in zip(features, utterances, strict=True):
            assert torch.equal(x[num_frames:], utterance) and (x[:num_frames] == _FLOOR).all()
        added.append(num_frames)
    assert set(added) == set(range(31)) and 13 < np.mean(added) < 17


def test_draws_depend_on_the_seed_only() -> None:
    utterances, options = speech(50, 40), PerturbationConfig(silence_perturb=1.0, narrowband_perturb=0.5)
    expected = perturb_features(utterances, options, 3)
    random.seed(9)
    states = random.getstate(), torch.get_rng_state(), np.random.get_state()
    again, other = perturb_features(utterances, options, 3), perturb_features(utterances, options, 4)
    assert all(map(torch.equal, expected, again))
    assert not any(a.shape == b.shape and torch.equal(a, b) for a, b in zip(expected, other, strict=True))
    assert states[0] == random.getstate() and torch.equal(states[1], torch.get_rng_state())
    assert all(map(np.array_equal, states[2], np.random.get_state()))


def test_narrowband_features_are_those_of_audio_that_was_resampled_to_8_khz() -> None:
    rng, extractor = np.random.default_rng(5), FbankConfig().extractor()
    envelope = 0.01 + np.repeat(rng.random(100), 160)
    samples = (envelope * (0.01 * rng.standard_normal(16000) + rng.uniform(-0.01, 0.01, 16000).cumsum())).astype("f4")
    resampled = soxr.resample(soxr.resample(samples, 16000, 8000), 8000, 16000)
    wide, expected = (torch.as_tensor(extractor.extract(x, 16000)) for x in (samples, resampled))
    (features,) = perturb_features([wide], config(narrowband_perturb=1.0), 3)
    upper = slice(64, None)  # bins whose lower edges are above 4.2 kHz
    assert float(wide[:, upper].min()) > _FLOOR + 8
    assert float(features[:, upper].mean()) < _FLOOR + 0.3
    torch.testing.assert_close(features[:, :58], wide[:, :58], atol=0.01, rtol=0)  # up to 3.6 kHz
    assert float((features - expected).abs().mean()) < 0.1  # of `wide`: 3.2


def test_the_stated_share_of_cuts_is_narrowband_and_all_else_stays_the_same() -> None:
    utterances, count, mixed_batches = speech(50, 40, 30), 0, 0
    for seed in range(200):
        wide, mixed, narrow = (
            perturb_features(utterances, PerturbationConfig(narrowband_perturb=share), seed)
            for share in (0.0, 0.3, 1.0)
        )
        are_narrow = list(map(torch.equal, mixed, narrow))
        assert are_narrow == [not torch.equal(*pair) for pair in zip(mixed, wide, strict=True)]
        assert all(float(features[:, 64:].max()) < -8 for features in narrow)  # the noise is narrowband, too
        count, mixed_batches = count + sum(are_narrow), mixed_batches + (0 < sum(are_narrow) < 3)
    assert 0.25 < count / 600 < 0.35
    assert mixed_batches > 100  # drawn for each cut


def test_narrowband_batches_depend_on_their_plan_only(tmp_path) -> None:
    cuts = CutSet.from_cuts(make_cuts(tmp_path, "en", "en", [300, 250, 200]))
    dataset = SpeechDataset(Augmentation(AugmentationConfig(narrowband_perturb=0.5)), False, None)
    batch = dataset[BatchPlan(1, "en", cuts, 5)]
    _ = dataset[BatchPlan(2, "en", cuts, 6)], random.random(), np.random.random(), torch.rand(1)
    assert torch.equal(dataset[BatchPlan(1, "en", cuts, 5)].inputs, batch.inputs)


def test_disabled_perturbation_gives_the_batches_of_lhotse_with_spec_augment(tmp_path) -> None:
    cuts = CutSet.from_cuts(make_cuts(tmp_path, "en", "en", [300, 250, 200]))
    options = AugmentationConfig(volume_perturb=False, shift_perturb=0.0, silence_perturb=0.0, join_perturb=0.0)
    batch = SpeechDataset(Augmentation(options), False, None)[BatchPlan(1, "en", cuts, 5)]
    transform = SpecAugment(80, 2, 27, 10, 100, 0.15)
    with seeded(5):
        expected = K2SpeechRecognitionDataset(input_transforms=[transform])[cuts]
    assert torch.equal(batch.inputs, expected["inputs"])
    assert torch.equal(batch.num_frames, expected["supervisions"]["num_frames"])


def test_perturbed_batches_keep_their_supervisions(tmp_path) -> None:
    cuts = CutSet.from_cuts(make_cuts(tmp_path, "en", "en", [300, 250, 200]))
    options = AugmentationConfig(enable_spec_aug=False, shift_perturb=0.0, silence_perturb=1.0, join_perturb=0.0)
    plan = BatchPlan(1, "en", cuts, 5)
    batch, plain = (SpeechDataset(augmentation, False, None)[plan] for augmentation in (Augmentation(options), None))
    assert (batch.cut_ids, batch.texts) == (plain.cut_ids, plain.texts)
    assert torch.equal(batch.num_tokens, plain.num_tokens)
    (added,) = set((batch.num_frames - plain.num_frames).tolist())
    assert added > 0 and batch.inputs.size(1) == 300 + added


@given(st.lists(st.integers(1, 300), min_size=1, max_size=9), st.integers(1, 600))
@settings(deadline=None)
def test_joined_pairs_have_the_features_and_transcripts_of_their_cuts(lengths: list[int], max_frames: int) -> None:
    lengths.sort(reverse=True)
    features = speech(*lengths)
    tokens = [torch.arange(i, 2 * i + 1) for i in range(len(lengths))]
    batch = Batch(
        torch.empty(0),
        torch.empty(0),
        nn.utils.rnn.pad_sequence(tokens, batch_first=True),
        torch.tensor([len(ids) for ids in tokens]),
        "en",
        [make_cut(i, length) for i, length in enumerate(lengths)],
    ).with_utterances(features)
    joined = batch.join_pairs(max_frames)
    words = [int(word) for text in joined.texts for word in text.split()]
    assert sorted(words) == list(range(len(lengths)))
    assert joined.num_frames.tolist() == sorted(joined.num_frames.tolist(), reverse=True)
    for x, ids, length, text in zip(joined.utterances, joined.tokens, joined.num_tokens, joined.texts, strict=True):
        parts = [int(word) for word in text.split()]
        assert len(parts) <= 2 and (len(parts) == 1 or (parts[1] == parts[0] + 1 and len(x) <= max_frames))
        assert torch.equal(x, torch.cat([features[i] for i in parts]))
        assert torch.equal(ids[:length], torch.cat([tokens[i] for i in parts]))


def test_the_stated_share_of_batches_is_joined() -> None:
    features = speech(50, 40)
    batch = Batch(
        torch.empty(0),
        torch.empty(0),
        torch.zeros(2, 1),
        torch.ones(2, dtype=torch.int64),
        "en",
        [make_cut(0, 50), make_cut(1, 40)],
    ).with_utterances(features)
    sizes = [len(perturb(batch, config(join_perturb=0.3), seed)) for seed in range(300)]
    assert 0.2 < sizes.count(1) / 300 < 0.4
    assert sizes == [len(perturb(batch, config(join_perturb=0.3), seed)) for seed in range(300)]


def test_ranges_are_checked() -> None:
    with pytest.raises(ValueError, match="--volume-perturb-min is 3 and --volume-perturb-max -3"):
        PerturbationConfig(volume_perturb_min=3.0, volume_perturb_max=-3.0)
    with pytest.raises(ValueError, match="--silence-perturb is 2"):
        PerturbationConfig(silence_perturb=2.0)
