"""Decode audio with sherpa-onnx in a subprocess: it ends its process if it cannot load a file."""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from icefall_pathways.export.sherpa import SherpaFiles

_MESSAGE_LINES = 5


class SherpaError(ValueError):
    """sherpa-onnx is not installed, or cannot run an exported model."""


@dataclass(frozen=True)
class SherpaResult:
    """Result of one utterance.

    Attributes:
      tokens: Symbols of the tokens.
      timestamps: Time of each token in seconds.
      text: The tokens as text.
    """

    tokens: list[str]
    timestamps: list[float]
    text: str


def decode_with_sherpa(
    files: SherpaFiles, utterances: Sequence[NDArray[np.float32]], languages: Sequence[str] = (), **options: Any
) -> list[SherpaResult]:
    """Decode utterances with sherpa-onnx in a subprocess, all of them in one batch.

    sherpa-onnx encodes a chunk only if more frames follow it: the caller appends silence.

    Args:
      files: The exported model.
      utterances: Samples (n,) at 16 kHz in [-1, 1] of each utterance.
      languages: Language of each utterance, for models of several languages.
      **options: Further arguments of `OnlineRecognizer.from_transducer`, such as `decoding_method`.

    Raises:
      SherpaError: The process failed; the message has the end of its output.
    """
    with TemporaryDirectory() as name:
        folder = Path(name)
        np.savez(folder / "samples.npz", *utterances)
        recognizer = {key: str(path) for key, path in asdict(files).items()} | options
        paths = {name: str(folder / file) for name, file in (("samples", "samples.npz"), ("result", "result.json"))}
        job = {"recognizer": recognizer, "languages": list(languages), **paths}
        (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
        command = [sys.executable, "-m", "icefall_pathways.export.sherpa_worker", str(folder / "job.json")]
        process = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        if process.returncode:
            lines = (process.stdout + process.stderr).strip().splitlines()[-_MESSAGE_LINES:]
            raise SherpaError(
                f"sherpa-onnx failed on {files.encoder} (exit status {process.returncode}): {' | '.join(lines)}"
            )
        results = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    return [SherpaResult(**result) for result in results]
