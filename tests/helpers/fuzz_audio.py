"""Readers of audio for fuzzing, with their valid files; see `fuzzing.Case`."""

import io
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

import torch
from encoded_audio import FORMATS, SlowPipe, encode, speech_like
from fuzzing import Case, Files

from icefall_pathways.decoding.streaming import AudioError
from icefall_pathways.transcription.audio import AudioOptions, read_file, read_pipe

MAX_SECONDS = 3600  # decoded; longer results of a few kilobytes are not bounded by the input


@cache
def _audio() -> Sequence[Files]:
    samples = {channels: speech_like(0.3, channels=channels) for channels in (1, 2)}
    return [{"audio": encode(samples[channels], name)} for name in FORMATS for channels in (1, 2)]


def _check_blocks(blocks: Iterable[torch.Tensor], name: str) -> None:
    num_samples = 0
    try:
        for block in blocks:
            assert block.dim() == 1
            num_samples += len(block)
            assert num_samples < MAX_SECONDS * 16000
    except AudioError as error:
        assert 10 < len(str(error)) < 400 and "\n" not in str(error), error
        raise ValueError(f"{name}: {error}") from error  # transcribe.py adds the name


def _read_audio_file(folder: Path) -> None:
    _check_blocks(read_file(folder / "audio"), f"{folder}")


def _read_audio_pipe(folder: Path) -> None:
    path = folder / "audio"
    data = path.read_bytes() if path.exists() else b""
    _check_blocks(read_pipe(io.BufferedReader(SlowPipe(data, step=1500))), f"{folder}")


def _read_raw_pipe(folder: Path) -> None:
    path = folder / "audio"
    data = path.read_bytes() if path.exists() else b""
    _check_blocks(read_pipe(io.BytesIO(data), AudioOptions(sample_rate=16000)), f"{folder}")


CASES = {
    "audio": Case(_audio, (_read_audio_file, _read_audio_pipe, _read_raw_pipe), weight=0.5),
}
