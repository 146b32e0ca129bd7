"""The whole of transcribing, with a random model."""

import io
import json
import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from tiny_experiment import MODEL, VOCAB_SIZE, halves

from icefall_pathways.data.tokenizer import Tokenizer
from icefall_pathways.decoding.language_id.model import LanguageIdModel
from icefall_pathways.decoding.streaming import EndpointConfig
from icefall_pathways.experiment import checkpoints, layout
from icefall_pathways.models.transducer import build_model
from icefall_pathways.options import parse
from icefall_pathways.pathways.masks import PathwayMasks
from icefall_pathways.transcription.transcribe import TranscribeConfig, UntilInterrupted, transcribe

SCRIPT = Path(__file__).resolve().parents[2] / "egs/mls/ASR/pruned_transducer_pathways/transcribe.py"


@pytest.fixture
def exp_dir(exp_dir, experiment):
    """The experiment, whose model now begins many words."""
    path = exp_dir / "checkpoint-5.pt"
    checkpoint, symbols = checkpoints.read(path), Tokenizer(experiment / "bpe.model").symbols
    bias = checkpoint["model_avg"]["joiner.output_linear.bias"]
    bias += torch.tensor([0.0] + [8.0 if symbol.startswith("▁") else -8.0 for symbol in symbols[1:]])
    checkpoints.save(checkpoint, path)
    return exp_dir


@pytest.fixture
def speech(tmp_path):
    """A file of noise that the random model takes for words."""
    rng = np.random.default_rng(5)
    samples = rng.standard_normal(16000 * 3) * 0.1 * (np.arange(48000) // 2000 % 2 + 0.01)
    soundfile.write(tmp_path / "speech.wav", samples, 16000)
    return tmp_path / "speech.wav"


def _transcribe(exp_dir, *audio, **options):
    out = io.StringIO()
    config = TranscribeConfig(exp_dir=exp_dir, audio=tuple(map(str, audio)), **{"lang": "en", **options})
    return out, transcribe(config, out)


def _json(exp_dir, *audio, **options):
    out, errors = _transcribe(exp_dir, *audio, output_format="json", **options)
    return json.loads(out.getvalue()), errors


def test_a_file_in_every_format(exp_dir, speech):
    out, errors = _transcribe(exp_dir, speech)
    text = out.getvalue().split()
    assert errors == {}
    assert len(text) > 3
    found, _ = _json(exp_dir, speech)
    assert found["text"].split() == text
    assert found["seconds"] == 3.0
    words = [word for segment in found["segments"] for word in segment["words"]]
    assert [word["text"] for word in words] == text
    assert [word["begin"] for word in words] == sorted(word["begin"] for word in words)
    subtitles = _transcribe(exp_dir, speech, output_format="srt")[0].getvalue()
    lines = [line for line in subtitles.splitlines() if line and "-->" not in line and not line.isdecimal()]
    assert " ".join(lines).split() == text


def test_words_are_whole_where_segments_are_cut(exp_dir, speech):
    whole, _ = _json(exp_dir, speech)
    endpoint = EndpointConfig(rule3_min_utterance_length=0.5)
    cut, _ = _json(exp_dir, speech, endpoint=endpoint)
    assert len(cut["segments"]) > 3
    assert cut["text"] == whole["text"]


def test_broken_audio_is_transcribed_as_far_as_it_goes_and_the_rest_is_undisturbed(exp_dir, speech, tmp_path):
    samples, rate = soundfile.read(speech)
    broken = samples.copy()
    broken[30000] = np.nan
    soundfile.write(tmp_path / "nan.wav", broken, rate, subtype="FLOAT")
    (tmp_path / "cut.wav").write_bytes(speech.read_bytes()[:60000])
    (tmp_path / "text.wav").write_text("hello")
    soundfile.write(tmp_path / "short.wav", samples[:160], rate)
    soundfile.write(tmp_path / "silent.wav", np.zeros(8000), rate)
    names = ["nan", "cut", "text", "short", "silent", "missing", "speech"]
    folder = tmp_path / "out"
    out, errors = _transcribe(
        exp_dir, *(tmp_path / f"{name}.wav" for name in names), output_dir=folder, output_format="json"
    )
    assert out.getvalue() == ""
    found = {name: json.loads((folder / f"{name}.json").read_text()) for name in names}
    alone, _ = _json(exp_dir, speech)
    assert found["speech"]["segments"] == alone["segments"]
    messages = {"nan": "not finite", "cut": "was cut", "text": "cannot read it", "missing": "no such file"}
    for name, one in found.items():
        source = str(tmp_path / f"{name}.wav")
        assert one["source"] == source
        assert (messages[name] in errors[source]) if name in messages else (source not in errors)
        assert one["error"] == errors.get(source)
    assert 0 < len(found["cut"]["text"]) < len(alone["text"])
    assert alone["text"].startswith(found["nan"]["text"][:20])
    assert found["short"]["seconds"] == 0.04


def test_every_language_and_an_unknown_one(exp_dir, speech):
    halves(exp_dir)
    texts = {language: _json(exp_dir, speech, lang=language)[0] for language in ("en", "nl")}
    assert texts["en"]["text"] != texts["nl"]["text"]
    with pytest.raises(ValueError, match=r"calibrate_language\.py"):
        _transcribe(exp_dir, speech, lang="auto")
    unigrams = {language: [0.0] * VOCAB_SIZE for language in ("en", "nl")}
    # With offsets that decide, the choice is known; what was said before the choice is not lost.
    for language, offsets in {"en": {"en": 100.0, "nl": 0.0}, "nl": {"en": 0.0, "nl": 100.0}}.items():
        LanguageIdModel({"search_per_frame": 1.0}, offsets, unigrams, seconds=0.8).save(
            exp_dir / layout.LANGUAGE_ID_FILE
        )
        assert _json(exp_dir, speech, lang="auto")[0] == texts[language]
    LanguageIdModel({}, {"en": 0.0}, unigrams).save(exp_dir / layout.LANGUAGE_ID_FILE)
    with pytest.raises(ValueError, match="tell nl from others"):
        _transcribe(exp_dir, speech, lang="auto")
    (exp_dir / layout.LANGUAGE_ID_FILE).write_text('{"weight": 1}')
    with pytest.raises(ValueError, match="damaged"):
        _transcribe(exp_dir, speech, lang="auto")
    with pytest.raises(ValueError, match="knows en, nl"):
        _transcribe(exp_dir, speech, lang="fr")


def test_a_language_with_a_pathway_is_known_though_others_were_trained_last(exp_dir, speech):
    PathwayMasks.dense(build_model(MODEL, VOCAB_SIZE), ["nl", "fr"]).save(exp_dir / "masks.safetensors")
    assert _json(exp_dir, speech, lang="fr")[0]["language"] == "fr"
    with pytest.raises(ValueError, match="knows nl, fr"):
        _transcribe(exp_dir, speech, lang="en")


def test_a_dense_model_needs_no_language(exp_dir, speech):
    found, _ = _json(exp_dir, speech, lang="auto")
    assert found["language"] is None
    assert found["text"] == _json(exp_dir, speech, lang="nl")[0]["text"]
    with pytest.raises(ValueError, match="name it with --lang"):
        options = {"decoding_method": "modified_beam_search", "context_file": Path("words.txt")}
        _transcribe(exp_dir, speech, lang="auto", **options)


def test_impossible_options(speech):
    for options, message in {
        (): "nothing to transcribe",
        ("mic", str(speech)): "mic goes alone",
    }.items():
        with pytest.raises(ValueError, match=message):
            TranscribeConfig(audio=options)
    config = TranscribeConfig(audio=("a/x.wav", "b/y.wav"), output_dir=Path("out"))
    with pytest.raises(ValueError, match=r"x\.txt"):
        replace(config, audio=("a/x.wav", "b/x.flac"))
    argv = ["--lang", "fr", "--rule2-min-trailing-silence", "0.5", "x.wav", "y.wav"]
    parsed = parse(TranscribeConfig, "", argv)
    assert parsed.audio == ("x.wav", "y.wav")
    assert parsed.endpoint.rule2_min_trailing_silence == 0.5


def test_interrupted_live_audio_ends():
    def endless():
        while True:
            yield torch.zeros(10)

    pieces = UntilInterrupted(endless())
    next(pieces)
    os.kill(os.getpid(), signal.SIGINT)  # between two pieces
    assert list(pieces) == []
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    waiting = threading.Event()

    def silent():
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
        waiting.wait(10)
        yield torch.zeros(10)

    assert list(UntilInterrupted(silent())) == []


def test_script(exp_dir, speech):
    command = [sys.executable, str(SCRIPT), "--exp-dir", str(exp_dir), "--lang", "en"]
    data = speech.read_bytes()
    done = subprocess.run([*command, "-"], input=data[:60000], capture_output=True)
    assert done.returncode == 1
    assert done.stderr.decode().splitlines()[-1] == "error: -: the audio stopped after 1.87 of 3.00 s"
    text = done.stdout.decode()
    assert text.split()
    expected = _transcribe(exp_dir, speech)[0].getvalue()
    assert expected.startswith(text.strip()[:10])
