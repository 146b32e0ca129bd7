"""Streaming decoding, in layers.

`decoder` turns streams of samples into hypotheses, with one batch per pathway. `recognizer` adds what an application
needs: partial and final results, segments that end at pauses (`endpoint`), and identification of the language.
"""

from icefall_pathways.decoding.streaming.decoder import (
    ANY_LANGUAGE,
    FRAME_SECONDS,
    AudioError,
    Source,
    Stream,
    StreamingDecoder,
    check_samples,
)
from icefall_pathways.decoding.streaming.endpoint import EndpointConfig
from icefall_pathways.decoding.streaming.engine import Engine, EngineError, StreamEncoder
from icefall_pathways.decoding.streaming.recognizer import LanguageSelector, Recognizer, Result
from icefall_pathways.decoding.streaming.session import Session, score_speech
from icefall_pathways.decoding.streaming.voice_activity import ScoredSamples, VadError, VadName, make_gate

__all__ = [
    "ANY_LANGUAGE",
    "FRAME_SECONDS",
    "AudioError",
    "EndpointConfig",
    "Engine",
    "EngineError",
    "LanguageSelector",
    "Recognizer",
    "Result",
    "ScoredSamples",
    "Session",
    "Source",
    "Stream",
    "StreamEncoder",
    "StreamingDecoder",
    "VadError",
    "VadName",
    "check_samples",
    "make_gate",
    "score_speech",
]
