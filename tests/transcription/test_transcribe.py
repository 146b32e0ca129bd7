"""Transcription from audio to transcripts, with a random model."""

import io
import itertools
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
from encoded_audio import encode, speech_like
from tiny_experiment import MODEL, VOCAB_SIZE, write_complementary_masks

from icefall_pathways.decoding.language_id.model import LanguageIdModel
from icefall_pathways.decoding.streaming import EndpointConfig
from icefall_pathways.experiment import layout
from icefall_pathways.models.transducer import build_model
from icefall_pathways.options import parse
from icefall_pathways.pathways.masks import PathwayMasks
from icefall_pathways.transcription import audio
from icefall_pathways.transcription import transcribe as transcribe_module
from icefall_pathways.transcription.audio import AudioOptions, read_audio, read_pipe
from icefall_pathways.transcription.containers import Block
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


def test_text_of_several_files_on_standard_output_has_their_names(exp_dir, speech, tmp_path):
    other = tmp_path / os.fsdecode(b"caf\xe9.wav")
    other.write_bytes(speech.read_bytes())
    plain = _transcribe(exp_dir, speech)[0].getvalue()
    named = _transcribe(exp_dir, speech, other)[0].getvalue().splitlines()
    assert [line.split(": ", 1)[0] for line in named] == [str(speech), f"{tmp_path}/caf\\xe9.wav"]
    assert [line.split(": ", 1)[1] + "\n" for line in named] == [plain, plain]
    _transcribe(exp_dir, speech, other, output_dir=tmp_path / "out")
    assert (tmp_path / "out" / "speech.txt").read_text() == plain
    with pytest.raises(ValueError, match=r"subtitles of 2 files on standard output.*--output-dir"):
        TranscribeConfig(audio=("a.wav", "b.wav"), output_format="srt")


def test_segment_boundaries_do_not_split_words(exp_dir, speech):
    whole, _ = _json(exp_dir, speech)
    endpoint = EndpointConfig(rule3_min_utterance_length=0.5)
    split, _ = _json(exp_dir, speech, endpoint=endpoint)
    assert len(split["segments"]) > 3
    assert split["text"] == whole["text"]


def test_times_lie_within_the_audio_and_segments_do_not_overlap(exp_dir, speech, tmp_path):
    samples, rate = soundfile.read(speech)
    soundfile.write(tmp_path / "odd.wav", samples[:37777], rate)
    endpoint = EndpointConfig(rule3_min_utterance_length=0.5)
    content, _ = _json(exp_dir, tmp_path / "odd.wav", endpoint=endpoint)
    assert content["seconds"] == round(37777 / 16000, 3)
    segments = content["segments"]
    assert len(segments) > 3
    for segment, following in itertools.pairwise(segments):
        assert segment["end"] <= following["start"]
    for segment in segments:
        assert segment["start"] <= segment["words"][0]["start"]
        assert segment["words"][-1]["end"] <= segment["end"] <= content["seconds"]
        for word, following in itertools.pairwise(segment["words"]):
            assert word["start"] < word["end"] <= following["start"]
    for output_format in ("srt", "vtt"):
        cues = _transcribe(exp_dir, tmp_path / "odd.wav", output_format=output_format)[0].getvalue()
        ends = [line.split(" --> ")[1].replace(",", ".") for line in cues.splitlines() if "-->" in line]
        assert max(ends) <= "00:00:02.361"


def test_channels_without_speech_do_not_change_the_transcript(exp_dir, speech, tmp_path, capsys):
    samples, rate = soundfile.read(speech, dtype="int16")
    expected, _ = _json(exp_dir, speech)
    silent = np.zeros_like(samples)
    for name, channels in {"one": [samples, silent], "inverted": [samples, -samples]}.items():
        soundfile.write(tmp_path / f"{name}.wav", np.stack(channels, axis=1), rate)
        assert _json(exp_dir, tmp_path / f"{name}.wav")[0]["segments"] == expected["segments"]
    notes = capsys.readouterr().err.splitlines()
    assert notes[0] == (
        f"note: {tmp_path}/one.wav: transcribed channel 0 of 2 (the others are silent or at least 20 dB quieter)"
    )
    assert notes[1].endswith("transcribed channels 0, 1 of 2 (the phase of 1 is inverted)")
    assert _json(exp_dir, tmp_path / "one.wav", channel=1)[0]["text"] == ""
    _, errors = _transcribe(exp_dir, tmp_path / "one.wav", channel=2)
    assert "channel 2 does not exist" in errors[str(tmp_path / "one.wav")]


def test_low_sample_rate_is_reported_once_per_source(exp_dir, speech, tmp_path, capsys):
    samples, rate = soundfile.read(speech, dtype="int16")
    for name, factor in {"narrow": 2, "wide": 1}.items():
        soundfile.write(tmp_path / f"{name}.wav", samples[::factor], rate // factor, subtype="ULAW")
    _, errors = _transcribe(exp_dir, tmp_path / "narrow.wav", tmp_path / "wide.wav")
    assert errors == {} and capsys.readouterr().err.splitlines() == [
        f"note: {tmp_path}/narrow.wav: a sample rate of 8000 Hz, below the 16000 Hz of the model: frequencies above "
        "4000 Hz are missing; expect more errors: train the model with --narrowband-perturb, or record at 16000 Hz or "
        "more"
    ]


def test_each_low_rate_of_one_source_is_reported_once(speech, monkeypatch):
    blocks = [Block(rate, np.zeros((rate, 1), np.float32)) for rate in (16000, 8000, 12000, 8000)]
    monkeypatch.setattr(audio, "decode", lambda source: iter(blocks))
    notes = []
    assert sum(map(len, read_audio(str(speech), AudioOptions(on_note=notes.append)))) == 4 * 16000
    assert [note.split(",")[0] for note in notes] == ["a sample rate of 8000 Hz", "a sample rate of 12000 Hz"]


def test_file_name_that_is_not_utf8(exp_dir, speech, tmp_path):
    name = os.fsdecode(bytes(tmp_path) + b"/caf\xe9.wav")
    Path(name).write_bytes(speech.read_bytes())
    options = {"output_dir": tmp_path / "out", "output_format": "json"}
    _, errors = _transcribe(exp_dir, name, tmp_path / "missing.wav", speech, **options)
    assert list(errors) == [str(tmp_path / "missing.wav")]
    expected, _ = _json(exp_dir, speech)
    content = json.loads((tmp_path / "out" / os.fsdecode(b"caf\xe9.json")).read_text())
    assert content["source"] == f"{tmp_path}/caf\\xe9.wav" and content["text"] == expected["text"]
    assert (tmp_path / "out" / "speech.json").exists()


@pytest.mark.parametrize("output_format", ["json", "text", "srt"])
def test_interrupted_run_keeps_what_is_transcribed(exp_dir, speech, tmp_path, monkeypatch, output_format):
    def interrupted(source, options):
        yield from itertools.islice(read_audio(source, options), 12)
        raise KeyboardInterrupt

    monkeypatch.setattr(transcribe_module, "read_audio", interrupted)
    options = {"output_dir": tmp_path / "out", "output_format": output_format}
    with pytest.raises(KeyboardInterrupt):
        _transcribe(exp_dir, speech, endpoint=EndpointConfig(rule3_min_utterance_length=0.5), **options)
    (path,) = (tmp_path / "out").iterdir()
    assert len(path.read_text().split()) > 2
    if output_format == "json":
        content = json.loads(path.read_text())
        assert content["error"] == "the transcription was interrupted"
        assert content["text"] and content["seconds"] > 1


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
    assert contents["short"]["seconds"] == 0.01


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


def test_sources_with_the_same_transcript_file_are_named(exp_dir, tmp_path):
    audio = ("talk.wav", "other.wav", "older/talk.mp3")
    message = r"talk\.wav and older/talk\.mp3 would both be written to talk\.txt: transcribe them in two calls"
    with pytest.raises(ValueError, match=message):
        TranscribeConfig(exp_dir=exp_dir, audio=audio, output_dir=tmp_path)


@pytest.mark.parametrize("is_link", [False, True])
def test_transcript_does_not_replace_audio(exp_dir, speech, tmp_path, is_link):
    (tmp_path / "talk.txt").write_bytes(speech.read_bytes())
    source = tmp_path / "audio" / "talk.wav" if is_link else tmp_path / "talk.txt"
    if is_link:
        source.parent.mkdir()
        source.symlink_to("../talk.txt")
    (tmp_path / "same").symlink_to(tmp_path)
    with pytest.raises(ValueError, match=r"would replace the audio in .*same/talk\.txt"):
        TranscribeConfig(exp_dir=exp_dir, audio=(str(speech), str(source)), output_dir=tmp_path / "same")
    TranscribeConfig(exp_dir=exp_dir, audio=(str(source),), output_dir=tmp_path / "other")


def test_closed_standard_streams_are_reported(exp_dir, speech, monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    assert _transcribe(exp_dir, "-")[1] == {"-": "standard input is closed: connect it to a pipe or a file"}
    monkeypatch.setattr(sys, "stdout", None)
    with pytest.raises(ValueError, match="standard output is closed"):
        transcribe(TranscribeConfig(exp_dir=exp_dir, audio=(str(speech),), lang="en"))


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


def test_interrupt_ends_a_pipe_that_ffmpeg_reads():
    reading, writing = os.pipe()
    signal_timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    with open(reading, "rb") as pipe, open(writing, "wb", buffering=0) as writer:  # noqa: PTH123
        writer.write(encode(speech_like(1.0, 16000), "wav", 16000)[:-8000])
        signal_timer.start()
        blocks = list(UntilInterrupted(read_pipe(pipe)))
    assert 8000 <= sum(map(len, blocks)) <= 12000


def test_script_reports_bad_audio(exp_dir, speech):
    command = [sys.executable, str(SCRIPT), "--exp-dir", str(exp_dir), "--lang", "en", "--vad", "none"]
    data = speech.read_bytes()
    done = subprocess.run([*command, "-"], input=data[:60000], capture_output=True)
    assert done.returncode == 1
    assert done.stderr.decode().splitlines()[-1] == (
        "error: -: truncated or damaged after 1.87 of 3.00 s (shorter than its header states)"
    )
    text = done.stdout.decode()
    assert text.split()
    expected = _transcribe(exp_dir, speech)[0].getvalue()
    assert expected.startswith(text.strip()[:10])
