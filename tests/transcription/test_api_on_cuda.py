"""Transcription on a GPU equals transcription on the CPU."""

import pytest
import torch
from tiny_experiment import write_complementary_masks

from icefall_pathways import Pathways

pytestmark = pytest.mark.usefixtures("cuda")


@pytest.mark.parametrize("method", ["greedy_search", "modified_beam_search"])
def test_transcripts_equal_those_on_the_cpu(exp_dir, speech, monkeypatch, method):
    write_complementary_masks(exp_dir)

    def transcripts():
        asr = Pathways.from_pretrained(exp_dir, decoding_method=method)
        with torch.backends.cudnn.flags(allow_tf32=False):
            return [asr.transcribe(speech, language=language) for language in ("en", "nl")]

    on_gpu = transcripts()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    on_cpu = transcripts()
    assert all(transcript.text for transcript in on_cpu)
    assert [transcript.text for transcript in on_gpu] == [transcript.text for transcript in on_cpu]
