"""The Python API: transcripts equal the output of transcribe.py, and streams give the same results as files."""

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from optional_packages import import_torchaudio
from tiny_experiment import VOCAB_SIZE, write_complementary_masks

import icefall_pathways
from icefall_pathways import AudioError, Pathways
from icefall_pathways.decoding.language_id.model import LanguageIdModel
from icefall_pathways.decoding.streaming import EndpointConfig
from icefall_pathways.experiment import layout
from icefall_pathways.transcription.transcribe import TranscribeConfig, transcribe

SHORT_SEGMENTS = {"rule3_min_utterance_length": 0.9}


def _script_output(exp_dir, audio, lang, **options):
    out = io.StringIO()
    config = TranscribeConfig(exp_dir=exp_dir, audio=(str(audio),), lang=lang, output_format="json", **options)
    assert transcribe(config, out) == {}
    return json.loads(out.getvalue())


def _as_json(transcript):
    """Return the part of transcribe.py's JSON output that describes the transcript."""
    return {
        "language": transcript.language,
        "seconds": transcript.duration,
        "text": transcript.text,
        "segments": [
            (segment.start, segment.end, segment.text, [(word.text, word.start, word.end) for word in segment.words])
            for segment in transcript.segments
        ],
    }


def _from_script(output):
    return {name: output[name] for name in ("language", "seconds", "text")} | {
        "segments": [
            (
                segment["start"],
                segment["end"],
                segment["text"],
                [(word["text"], word["start"], word["end"]) for word in segment["words"]],
            )
            for segment in output["segments"]
        ]
    }


def _calibrate_for(exp_dir, language):
    """Write a calibration with which language identification always selects `language`."""
    offsets = {code: 100.0 * (code == language) for code in ("en", "nl")}
    unigrams = {code: [0.0] * VOCAB_SIZE for code in ("en", "nl")}
    LanguageIdModel({"search_per_frame": 1.0}, offsets, unigrams, seconds=0.8).save(exp_dir / layout.LANGUAGE_ID_FILE)


@pytest.mark.parametrize("method", ["greedy_search", "modified_beam_search"])
def test_transcripts_equal_the_output_of_the_script(exp_dir, speech, method):
    write_complementary_masks(exp_dir)
    _calibrate_for(exp_dir, "nl")
    asr = Pathways.from_pretrained(exp_dir, decoding_method=method, **SHORT_SEGMENTS)
    assert asr.languages == ["en", "nl"]
    assert asr.masks is not None and asr.masks.languages == ("en", "nl")
    texts = {}
    for language in ("en", "nl", "auto"):
        transcript = asr.transcribe(speech, language=language)
        options = {"decoding_method": method, "endpoint": EndpointConfig(**SHORT_SEGMENTS)}
        assert _as_json(transcript) == _from_script(_script_output(exp_dir, speech, language, **options))
        texts[language] = transcript.text
    assert len(texts["en"].split()) > 3
    assert texts["nl"] == texts["auto"] != texts["en"]
    assert transcript.language == "nl"
    assert len(transcript.segments) > 2
    assert [word.text for word in transcript.words] == transcript.text.split()


def test_path_options_accept_strings(exp_dir, tmp_path):
    path = f"{tmp_path}/{{language}}.txt"
    asr = Pathways.from_pretrained(exp_dir, decoding_method="modified_beam_search", context_file=path)
    with pytest.raises(ValueError, match=r"nl\.txt not found: pass a file with one phrase per line"):
        asr.stream(language="nl")


def test_num_active_paths_is_another_name_of_beam_size(exp_dir, speech):
    beam = {"decoding_method": "modified_beam_search"}
    transcripts = [
        Pathways.from_pretrained(exp_dir, **beam, **{name: 2}).transcribe(speech, "en")
        for name in ("beam_size", "num_active_paths")
    ]
    assert transcripts[0] == transcripts[1]
    with pytest.raises(TypeError, match="are the same option"):
        Pathways.from_pretrained(exp_dir, **beam, beam_size=2, num_active_paths=2)
    with pytest.raises(ValueError, match=r"in Python: beam_size\) works with"):
        Pathways.from_pretrained(exp_dir, num_active_paths=2)
    with pytest.raises(ValueError, match=r"in Python: bpe_model"):
        Pathways.from_pretrained(exp_dir, bpe_model="missing.model")


def test_samples_are_transcribed_as_their_file(exp_dir, speech):
    asr = Pathways.from_pretrained(str(exp_dir))
    expected = asr.transcribe(str(speech), language="english")
    assert expected.text
    samples, _ = soundfile.read(speech, dtype="int16")
    floats = samples / 32768
    for same in (samples, floats, floats[None], torch.from_numpy(floats)[:, None], list(floats)):
        assert asr.transcribe(same, language="en") == expected
    resample = import_torchaudio().functional.resample
    upsampled = resample(torch.from_numpy(floats), 16000, 48000).numpy().astype("float32")
    soundfile.write(speech.with_name("48k.wav"), upsampled, 48000, subtype="FLOAT")
    expected = asr.transcribe(speech.with_name("48k.wav"), language="en")
    assert asr.transcribe(upsampled, language="en", sample_rate=48000) == expected


def test_remarks_about_the_audio_are_warnings(exp_dir, speech, recwarn):
    asr, (samples, _) = Pathways.from_pretrained(exp_dir), soundfile.read(speech, dtype="int16")
    low_rate = "a sample rate of 8000 Hz, below the 16000 Hz of the model"
    stereo = speech.with_name("stereo.wav")
    soundfile.write(stereo, np.stack([samples, 0 * samples], axis=1)[::2], 8000)
    asr.transcribe(speech, "en"), asr.transcribe(samples, "en"), asr.stream("en")
    assert not recwarn.list
    asr.transcribe(stereo, "en")
    asr.transcribe(samples[::2], "en", sample_rate=8000)
    asr.stream("en", sample_rate=8000)
    starts = [f"{stereo}: {low_rate}", f"{stereo}: transcribed channel 0 of 2", f"samples: {low_rate}", low_rate]
    assert [str(w.message).startswith(start) for w, start in zip(recwarn.list, starts, strict=True)] == [True] * 4
    assert {warning.filename for warning in recwarn.list} == {__file__}


@pytest.mark.parametrize("language", ["en", "auto"])
@pytest.mark.parametrize("rate", [16000, 44100])
def test_stream_equals_transcript_of_the_whole(exp_dir, speech, language, rate):
    write_complementary_masks(exp_dir)
    _calibrate_for(exp_dir, "en")
    asr = Pathways.from_pretrained(exp_dir, **SHORT_SEGMENTS)
    samples = torch.from_numpy(soundfile.read(speech)[0]).float()
    if rate != 16000:
        samples = import_torchaudio().functional.resample(samples, 16000, rate)
    expected = asr.transcribe(samples, language=language, sample_rate=rate)
    assert len(expected.segments) > 2
    new = []
    with asr.stream(language=language, sample_rate=rate) as stream:
        assert (stream.results, stream.language, stream.finished) == ([], None, False)
        for block in samples.split(1000):
            new += stream.accept(block)
            finals = [segment.is_final for segment in stream.results]
            assert finals == sorted(finals, reverse=True), "final results, then a partial one"
            assert finals.count(False) <= 1
        assert not stream.finished
    assert stream.finished
    assert stream.transcript == expected
    assert all(segment.is_final for segment in stream.results)
    assert [segment.is_last for segment in stream.results].index(True) == len(stream.results) - 1
    assert any(not segment.is_final for segment in new)
    finals = [segment for segment in new if segment.is_final]
    assert finals == stream.results[: len(finals)], "accept returns every result that becomes final"


def test_streams_of_several_languages_in_parallel(exp_dir, speech):
    write_complementary_masks(exp_dir)
    asr = Pathways.from_pretrained(exp_dir)
    samples = torch.from_numpy(soundfile.read(speech)[0]).float()
    expected = {language: asr.transcribe(samples, language) for language in ("en", "nl")}
    with asr.stream("en") as english, asr.stream("nl") as dutch:
        for block in samples.split(2560):
            english.accept(block)
            dutch.accept(block)
    assert {"en": english.transcript, "nl": dutch.transcript} == expected


def test_exception_in_the_block_does_not_finish_the_stream(exp_dir, speech):
    asr = Pathways.from_pretrained(exp_dir)
    with pytest.raises(RuntimeError, match="unplugged"), asr.stream("en") as stream:
        stream.accept(torch.zeros(8000))
        raise RuntimeError("microphone unplugged")
    assert not stream.finished
    assert stream.finish()[-1].is_last
    assert stream.finish() == []
    with pytest.raises(ValueError, match="this stream is finished"):
        stream.accept(torch.zeros(10))


def test_bad_samples_do_not_end_a_stream(exp_dir, speech):
    asr = Pathways.from_pretrained(exp_dir)
    samples = torch.from_numpy(soundfile.read(speech)[0]).float()
    with asr.stream("en") as stream:
        stream.accept(samples[:20480])
        with pytest.raises(AudioError, match="not finite"):
            stream.accept(torch.full((100,), float("nan")))
        stream.accept(samples[20480:])
    assert stream.transcript == asr.transcribe(samples, "en")


@pytest.mark.parametrize("rate", [16000, 48000])
def test_rejected_samples_leave_a_stream_unchanged(exp_dir, rate):
    asr = Pathways.from_pretrained(exp_dir)
    samples = torch.randn(rate, generator=torch.Generator().manual_seed(1)) / 10
    valid_then_invalid = torch.cat([samples, torch.full((100,), float("nan"))])
    with asr.stream("en", sample_rate=rate) as stream:
        for block in samples.split(rate // 2):
            with pytest.raises(AudioError, match="not finite"):
                stream.accept(valid_then_invalid)
            stream.accept(block)
    assert stream.transcript.duration == 1.0
    assert stream.transcript == asr.transcribe(samples, "en", sample_rate=rate)


def test_inputs_with_other_spellings(exp_dir, speech, monkeypatch):
    monkeypatch.setenv("HOME", str(exp_dir.parent))
    asr = Pathways.from_pretrained(f"~/{exp_dir.name}")
    expected = asr.transcribe(speech, "en")
    monkeypatch.setenv("HOME", str(speech.parent))
    assert asr.transcribe(f"~/{speech.name}", "English") == expected
    samples = soundfile.read(speech, dtype="int16")[0]
    assert asr.transcribe(samples.astype(">i2"), "en", sample_rate=16000.0) == expected
    assert asr.transcribe(samples, "AUTO") == asr.transcribe(samples, "auto")


def test_errors_state_cause_and_remedy(exp_dir, speech, tmp_path):
    with pytest.raises(ValueError, match=r"no experiment folder .*nowhere: expected the --exp-dir of a training"):
        Pathways.from_pretrained(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no checkpoint in"):
        Pathways.from_pretrained(tmp_path / "empty")
    with pytest.raises(TypeError, match=r"unknown option beam_width: expected some of avg, .*beam_size"):
        Pathways.from_pretrained(exp_dir, beam_width=3)
    write_complementary_masks(exp_dir)
    asr = Pathways.from_pretrained(exp_dir)
    with pytest.raises(ValueError, match=r"language 'fr': the model in .* supports en, nl; choose one"):
        asr.transcribe(speech, language="fr")
    with pytest.raises(ValueError, match="unknown language 'elvish'"):
        asr.stream(language="elvish")
    command = rf"calibrate_language_id\.py --exp-dir {exp_dir} .*--lang CODE"
    with pytest.raises(ValueError, match=command):
        asr.transcribe(speech)
    with pytest.raises(AudioError, match=r"missing\.wav: no such file"):
        asr.transcribe("missing.wav", "en")
    with pytest.raises(ValueError, match="states its own"):
        asr.transcribe(speech, "en", sample_rate=8000)
    for samples, message in (
        (np.zeros((100, 2)), "expected mono"),
        (np.zeros(100, np.uint8), "expected floating point"),
        (np.full(100, 1e4), "expected numbers in"),
        (3.0, "expected mono"),
        ([b"a", None], "not numbers"),
    ):
        with pytest.raises(AudioError, match=message):
            asr.transcribe(samples, "en")
        with pytest.raises(AudioError, match=message), asr.stream("en") as stream:
            stream.accept(samples)
    for use in (asr.stream, lambda **options: asr.transcribe(np.zeros(100), **options)):
        with pytest.raises(AudioError, match="sample rate of 16 Hz"):
            use(language="en", sample_rate=16)
        with pytest.raises(AudioError, match="sample rate of 0 Hz"):
            use(language="en", sample_rate=0)
        for rate in ("16k", 22050.5, float("nan")):
            with pytest.raises(AudioError, match="expected a whole number of Hz"):
                use(language="en", sample_rate=rate)
        with pytest.raises(TypeError, match="language None: expected a code or a name"):
            use(language=None)


def test_truncated_file_is_an_error(exp_dir, speech):
    path = speech.with_name("truncated.wav")
    path.write_bytes(speech.read_bytes()[:60000])
    with pytest.raises(AudioError, match=r"truncated\.wav: truncated or damaged after 1\.87 of 3\.00 s"):
        Pathways.from_pretrained(exp_dir).transcribe(path, "en")


def test_empty_audio_has_an_empty_transcript(exp_dir):
    asr = Pathways.from_pretrained(exp_dir)
    transcript = asr.transcribe([], "en")
    assert (transcript.text, transcript.words, transcript.duration) == ("", [], 0.0)
    with asr.stream("en") as stream:
        stream.accept(torch.zeros(0))
    assert stream.transcript == transcript


def test_import_is_light_and_public_names_resolve():
    code = (
        "import sys, icefall_pathways as p; print(p.__version__);"
        "heavy = {'torch', 'lhotse', 'numpy', 'matplotlib', 'k2'} & set(sys.modules); assert not heavy, heavy"
    )
    root = Path(icefall_pathways.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root)
    assert done.stdout.strip() == icefall_pathways.__version__, done.stderr
    for name in icefall_pathways.__all__:
        assert getattr(icefall_pathways, name) is not None
    assert set(icefall_pathways.__all__) <= set(dir(icefall_pathways))
    with pytest.raises(AttributeError, match="no attribute 'Pathway'"):
        icefall_pathways.Pathway  # noqa: B018
