"""Damaged audio of all formats: samples and at most one clear error, never a traceback, a hang or a crash.

FUZZ_EXAMPLES sets the number of inputs, see benchmarks/fuzzing.md.
"""

import io
import os
import tempfile
from functools import cache
from pathlib import Path

import pytest
from encoded_audio import FORMATS, SlowPipe, encode, speech_like
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from isolated import IsolatedFunction, misbehave

from icefall_pathways.decoding.streaming import AudioError
from icefall_pathways.transcription.audio import AudioOptions, read_file, read_pipe

NUM_EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "150"))
MAX_SECONDS = 3600  # decoded; longer results of a few kilobytes are not bounded by the input


@cache
def _valid(name, channels):
    return encode(speech_like(0.3, channels=channels), name)


VALID = st.builds(_valid, st.sampled_from(sorted(FORMATS)), st.sampled_from([1, 2]))


@st.composite
def damaged_audio(draw):
    """Return files that were truncated, overwritten, shortened, or joined with others, and random bytes."""
    data = draw(st.one_of(VALID, VALID, VALID, st.binary(max_size=300)))
    for _ in range(draw(st.integers(0, 6))):
        # Headers, where most fields are, are damaged as often as the rest.
        end = draw(st.sampled_from([64, 1024, len(data)]))
        position = draw(st.integers(0, max(0, min(end, len(data)) - 1)))
        match draw(st.sampled_from(["truncate", "overwrite", "flip", "remove", "insert", "join"])):
            case "truncate":
                data = data[:position]
            case "overwrite":
                patch = draw(st.sampled_from([b"\0", b"\xff", b"\x7f", b"\x80"])) * draw(
                    st.sampled_from([1, 2, 4, 8, 500])
                )
                data = data[:position] + patch + data[position + len(patch) :]
            case "flip" if data:
                data = data[:position] + bytes([data[position] ^ 1 << draw(st.integers(0, 7))]) + data[position + 1 :]
            case "remove":
                data = data[:position] + data[position + draw(st.integers(1, 3000)) :]
            case "insert":
                data = data[:position] + draw(st.binary(max_size=16)) + data[position:]
            case "join":
                data = data[:position] + draw(VALID)
    return data


def read_everywhere(data):
    """Read a file, a pipe and raw samples; in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "audio"
        path.write_bytes(data)
        for blocks in (
            read_file(path),
            read_pipe(io.BufferedReader(SlowPipe(data, step=1500))),
            read_pipe(io.BytesIO(data), AudioOptions(sample_rate=16000)),
        ):
            num_samples = 0
            try:
                for block in blocks:
                    assert block.dim() == 1
                    num_samples += len(block)
                    assert num_samples < MAX_SECONDS * 16000
            except AudioError as error:
                assert 10 < len(str(error)) < 400 and "\n" not in str(error), error


@pytest.fixture(scope="module")
def isolated_read():
    function = IsolatedFunction(read_everywhere)
    yield function
    function.close()


@settings(max_examples=NUM_EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=damaged_audio())
def test_damaged_audio_gives_samples_or_one_error(isolated_read, data):
    failure = isolated_read(data)
    assert failure is None, failure


def test_hangs_crashes_and_tracebacks_are_found():
    function = IsolatedFunction(misbehave, cpu_seconds=0.3)
    assert function("return") is None
    assert function("hang").startswith("hangs")
    assert function("crash") == "crashed with exit code -6"
    assert "ValueError: raise" in function("raise")
    assert function("return") is None
    function.close()
