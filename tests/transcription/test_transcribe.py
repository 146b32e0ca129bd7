"""Transcription from audio to transcripts, with a random model."""

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
from tiny_experiment import MODEL, VOCAB_SIZE, write_complementary_masks

from icefall_pathways.decoding.language_id.model import LanguageIdModel
from icefall_pathways.decoding.streaming import EndpointConfig
from icefall_pathways.experiment import layout
from icefall_pathways.models.transducer import build_model
from icefall_pathways.options import parse
from icefall_pathways.pathways.masks import PathwayMasks
from icefall_pathways.transcription.transcribe import TranscribeConfig, UntilInterrupted, transcribe

SCRIPT = Path(__file__).resolve().parents[2] / "egs/mls/ASR/pruned_transducer_pathways/transcribe.py"


def _transcribe(exp_dir, *audio, **options):
    out = io.StringIO()
    config = TranscribeConfig(exp_dir=exp_dir, audio=tuple(map(str, audio)), **{"lang": "en", **options})
    return out, transcribe(config, out)


def _json(exp_dir, *audio, **options):
    out, errors = _transcribe(exp_dir, *audio, output_format="json", **options)
    return json.loads(out.getvalue()), errors


def test_all_output_formats_contain_the_same_words(exp_dir, speech):
    out, errors = _transcribe(exp_dir, speech)
    text = out.getvalue().split()
    assert errors == {}
    assert len(text) > 3
    content, _ = _json(exp_dir, speech)
    assert content["text"].split() == text
    assert content["seconds"] == 3.0
    words = [word for segment in content["segments"] for word in segment["words"]]
    assert [word["text"] for word in words] == text
    assert [word["start"] for word in words] == sorted(word["start"] for word in words)
    subtitles = _transcribe(exp_dir, speech, output_format="srt")[0].getvalue()
    lines = [line for line in subtitles.splitlines() if line and "-->" not in line and not line.isdecimal()]
    assert " ".join(lines).split() == text


def test_segment_boundaries_do_not_split_words(exp_dir, speech):
    whole, _ = _json(exp_dir, speech)
    endpoint = EndpointConfig(rule3_min_utterance_length=0.5)
    split, _ = _json(exp_dir, speech, endpoint=endpoint)
    assert len(split["segments"]) > 3
    assert split["text"] == whole["text"]


def test_bad_audio_is_transcribed_up_to_the_error_without_affecting_other_sources(exp_dir, speech, tmp_path):
    samples, rate = soundfile.read(speech)
    broken = samples.copy()
    broken[30000] = np.nan
    soundfile.write(tmp_path / "nan.wav", broken, rate, subtype="FLOAT")
    (tmp_path / "truncated.wav").write_bytes(speech.read_bytes()[:60000])
    (tmp_path / "text.wav").write_text("hello")
    soundfile.write(tmp_path / "short.wav", samples[:160], rate)
    soundfile.write(tmp_path / "silent.wav", np.zeros(8000), rate)
    names = ["nan", "truncated", "text", "short", "silent", "missing", "speech"]
    folder = tmp_path / "out"
    out, errors = _transcribe(
        exp_dir, *(tmp_path / f"{name}.wav" for name in names), output_dir=folder, output_format="json"
    )
    assert out.getvalue() == ""
    contents = {name: json.loads((folder / f"{name}.json").read_text()) for name in names}
    alone, _ = _json(exp_dir, speech)
    assert contents["speech"]["segments"] == alone["segments"]
    messages = {
        "nan": "not finite",
        "truncated": "truncated or damaged",
        "text": "cannot read it",
        "missing": "no such file",
    }
    for name, content in contents.items():
        source = str(tmp_path / f"{name}.wav")
        assert content["source"] == source
        assert (messages[name] in errors[source]) if name in messages else (source not in errors)
        assert content["error"] == errors.get(source)
    assert 0 < len(contents["truncated"]["text"]) < len(alone["text"])
    assert alone["text"].startswith(contents["nan"]["text"][:20])
    assert contents["short"]["seconds"] == 0.04


def test_language_is_given_or_identified(exp_dir, speech):
    write_complementary_masks(exp_dir)
    texts = {language: _json(exp_dir, speech, lang=language)[0] for language in ("en", "nl")}
    assert texts["en"]["text"] != texts["nl"]["text"]
    with pytest.raises(ValueError, match=r"calibrate_language_id\.py"):
        _transcribe(exp_dir, speech, lang="auto")
    unigrams = {language: [0.0] * VOCAB_SIZE for language in ("en", "nl")}
    # Large offsets fix the identified language; audio before the decision is not lost.
    for language, offsets in {"en": {"en": 100.0, "nl": 0.0}, "nl": {"en": 0.0, "nl": 100.0}}.items():
        LanguageIdModel({"search_per_frame": 1.0}, offsets, unigrams, seconds=0.8).save(
            exp_dir / layout.LANGUAGE_ID_FILE
        )
        assert _json(exp_dir, speech, lang="auto")[0] == texts[language]
    LanguageIdModel({}, {"en": 0.0}, unigrams).save(exp_dir / layout.LANGUAGE_ID_FILE)
    with pytest.raises(ValueError, match="not calibrated for nl"):
        _transcribe(exp_dir, speech, lang="auto")
    (exp_dir / layout.LANGUAGE_ID_FILE).write_text('{"weight": 1}')
    with pytest.raises(ValueError, match="damaged"):
        _transcribe(exp_dir, speech, lang="auto")
    with pytest.raises(ValueError, match="supports en, nl"):
        _transcribe(exp_dir, speech, lang="fr")


def test_languages_are_those_of_the_masks(exp_dir, speech):
    PathwayMasks.dense(build_model(MODEL, VOCAB_SIZE), ["nl", "fr"]).save(exp_dir / "masks.safetensors")
    assert _json(exp_dir, speech, lang="fr")[0]["language"] == "fr"
    with pytest.raises(ValueError, match="supports nl, fr"):
        _transcribe(exp_dir, speech, lang="en")


def test_dense_model_does_not_need_a_language(exp_dir, speech):
    content, _ = _json(exp_dir, speech, lang="auto")
    assert content["language"] is None
    assert content["text"] == _json(exp_dir, speech, lang="nl")[0]["text"]
    with pytest.raises(ValueError, match="depend on the language"):
        options = {"decoding_method": "modified_beam_search", "context_file": Path("words.txt")}
        _transcribe(exp_dir, speech, lang="auto", **options)


def test_invalid_options_are_rejected(speech):
    for options, message in {
        (): "nothing to transcribe",
        ("mic", str(speech)): "it must be the only source",
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


def test_interrupt_ends_live_audio():
    def endless():
        while True:
            yield torch.zeros(10)

    blocks = UntilInterrupted(endless())
    next(blocks)
    os.kill(os.getpid(), signal.SIGINT)  # between two blocks
    assert list(blocks) == []
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    waiting = threading.Event()

    def silent():
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
        waiting.wait(10)
        yield torch.zeros(10)

    assert list(UntilInterrupted(silent())) == []


def test_script_reports_bad_audio(exp_dir, speech):
    command = [sys.executable, str(SCRIPT), "--exp-dir", str(exp_dir), "--lang", "en"]
    data = speech.read_bytes()
    done = subprocess.run([*command, "-"], input=data[:60000], capture_output=True)
    assert done.returncode == 1
    assert done.stderr.decode().splitlines()[-1] == "error: -: the audio stopped after 1.87 of 3.00 s"
    text = done.stdout.decode()
    assert text.split()
    expected = _transcribe(exp_dir, speech)[0].getvalue()
    assert expected.startswith(text.strip()[:10])
