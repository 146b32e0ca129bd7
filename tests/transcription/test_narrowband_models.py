"""Models that were trained on narrowband audio: no remark about low sample rates."""

import io
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from tiny_experiment import make_experiment, write_complementary_masks

from icefall_pathways import Pathways
from icefall_pathways.commands import export
from icefall_pathways.serve.feeders import PcmFeeder, audio_options
from icefall_pathways.transcription.transcribe import TranscribeConfig, transcribe

REMARK = "a sample rate of 8000 Hz, below the 16000 Hz of the model"


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_remarks_about_low_sample_rates_depend_on_the_training(tmp_path, capsys, recwarn, share):
    """Of an experiment folder and of its package, for files, samples and streams."""
    warnings.simplefilter("always")
    make_experiment(tmp_path, narrowband_perturb=share)
    write_complementary_masks(tmp_path / "exp")
    export.run(export.Config(exp_dir=tmp_path / "exp", output_dir=tmp_path / "package", format="package"))
    soundfile.write(tmp_path / "narrow.wav", np.full(8000, 0.1), 8000)
    for exp_dir in (tmp_path / "exp", tmp_path / "package"):
        asr = Pathways.from_pretrained(exp_dir, vad="none")
        asr.transcribe(tmp_path / "narrow.wav", "en")
        asr.transcribe(np.full(8000, 0.1), "en", sample_rate=8000)
        asr.stream("en", sample_rate=8000)
        config = TranscribeConfig(exp_dir=exp_dir, audio=(f"{tmp_path}/narrow.wav",), lang="en", vad="none")
        transcribe(config, io.StringIO())
    warned = [str(warning.message) for warning in recwarn.list if REMARK in str(warning.message)]
    assert len(warned) == (0 if share else 6)
    assert capsys.readouterr().err.count(REMARK) == (0 if share else 2)


@pytest.mark.parametrize("covers_narrowband", [False, True])
def test_remarks_of_the_server_depend_on_the_training(covers_narrowband):
    stream = SimpleNamespace(notes=[], model=SimpleNamespace(covers_narrowband=covers_narrowband))
    PcmFeeder(stream, "pcm_s16le", 8000)
    assert [REMARK in note for note in stream.notes] == ([] if covers_narrowband else [True])
    options = audio_options(stream)
    options.on_note("another remark")
    assert stream.notes[-1] == "another remark" and options.covers_narrowband == covers_narrowband
