"""Decoding and transcription with a dense model that has the language as an input."""

from dataclasses import replace

import pytest
import torch
from tiny_experiment import MODEL, make_experiment

from icefall_pathways import Pathways
from icefall_pathways.decoding.config import DecodeConfig, StreamingDecodeConfig
from icefall_pathways.decoding.decode_run import decode, decode_streaming
from icefall_pathways.experiment import checkpoints


@pytest.fixture
def exp_dir(tmp_path):
    """Return an experiment whose two vectors are large and different."""
    make_experiment(tmp_path, replace(MODEL, language_input=True))
    path = tmp_path / "exp" / "checkpoint-5.pt"
    checkpoint = checkpoints.read(path)
    for key in ("model", "model_avg"):
        for sign, language in ((1, "en"), (-1, "nl")):
            checkpoint[key][f"encoder_embed.out.vector_{language}"] = torch.linspace(-sign, sign, 16)
    checkpoints.save(checkpoint, path)
    return tmp_path / "exp"


def hypotheses(folder, language):
    (path,) = folder.glob(f"recogs-*-{language}-*")
    return [line for line in path.read_text().splitlines() if "\thyp=" in line]


def copy_vector(exp_dir, source, target):
    """Replace the vector of the language `target` by that of `source`."""
    path = exp_dir / "checkpoint-5.pt"
    checkpoint, name = checkpoints.read(path), "encoder_embed.out.vector_"
    for key in ("model", "model_avg"):
        checkpoint[key][name + target] = checkpoint[key][name + source].clone()
    checkpoints.save(checkpoint, path)


def test_offline_and_streaming_decoding_use_the_vector_of_each_language(exp_dir):
    def decode_both():
        decode(DecodeConfig(exp_dir=exp_dir))
        decode_streaming(StreamingDecodeConfig(exp_dir=exp_dir, num_decode_streams=4))
        results = {}
        for language in ("english", "dutch"):
            results[language] = hypotheses(exp_dir / "greedy_search", language)
            assert hypotheses(exp_dir / "streaming" / "greedy_search", language) == results[language]
        return results

    before = decode_both()
    copy_vector(exp_dir, "en", "nl")
    after = decode_both()
    assert after["english"] == before["english"] and after["dutch"] != before["dutch"]


def test_transcription_needs_the_language(exp_dir):
    asr = Pathways.from_pretrained(exp_dir, vad="none")
    audio = 0.1 * torch.randn(24000, generator=torch.Generator().manual_seed(1)).numpy()
    texts = [asr.transcribe(audio, language=language).text for language in ("en", "nl")]
    assert texts[0] != texts[1]
    with pytest.raises(ValueError, match="not found: calibrate language identification"):
        asr.transcribe(audio)


def test_a_language_without_a_vector_is_rejected(exp_dir):
    with pytest.raises(ValueError, match="no vector of 'fr': it has those of en, nl"):
        decode(DecodeConfig(exp_dir=exp_dir, languages="fr"))
