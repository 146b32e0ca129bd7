"""The streaming engine, in layers.

`decoder`: streams of samples in, hypotheses out, a batch for each pathway. `recognizer`: what a speaker sees of that:
text that grows, told apart in what may still change and what may not, cut into segments where somebody pauses
(`endpoint`), in a language that may have to be found out first.
"""

from icefall_pathways.decoding.streaming.decoder import (
    ANY_LANGUAGE,
    FRAME_SECONDS,
    AudioError,
    Source,
    Stream,
    StreamingDecoder,
)
from icefall_pathways.decoding.streaming.endpoint import EndpointConfig
from icefall_pathways.decoding.streaming.recognizer import LanguageSelector, Recognizer, Result, Session

__all__ = [
    "ANY_LANGUAGE",
    "FRAME_SECONDS",
    "AudioError",
    "EndpointConfig",
    "LanguageSelector",
    "Recognizer",
    "Result",
    "Session",
    "Source",
    "Stream",
    "StreamingDecoder",
]
