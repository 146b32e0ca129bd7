"""ASR pathways: one streaming multilingual transducer, one sparse sub-network per language."""

from typing import TYPE_CHECKING

__version__ = "0.2.0"

if TYPE_CHECKING:
    from icefall_pathways.decoding.streaming import AudioError
    from icefall_pathways.transcription.api import Pathways, TranscriptionStream
    from icefall_pathways.transcription.transcript import Segment, Transcript, Word

__all__ = ["AudioError", "Pathways", "Segment", "Transcript", "TranscriptionStream", "Word", "__version__"]

# Imported on first use: `import icefall_pathways` must not import torch.
_MODULES = {
    "AudioError": "icefall_pathways.decoding.streaming",
    "Pathways": "icefall_pathways.transcription.api",
    "Segment": "icefall_pathways.transcription.transcript",
    "Transcript": "icefall_pathways.transcription.transcript",
    "TranscriptionStream": "icefall_pathways.transcription.api",
    "Word": "icefall_pathways.transcription.transcript",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
