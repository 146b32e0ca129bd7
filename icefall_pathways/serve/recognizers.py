"""The recognizers of the server: one model with a search per language, shared by all streams."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from icefall_pathways.data.tokenizer import WORD_BOUNDARY, Tokenizer
from icefall_pathways.decoding.language_id.model import (
    LanguageIdentifier,
    extract_features,
    load_language_identifier,
    with_scoring,
)
from icefall_pathways.decoding.pretrained import TrainedModel, load_trained_model
from icefall_pathways.decoding.streaming import Recognizer, Stream, StreamingDecoder, make_gate
from icefall_pathways.experiment import layout
from icefall_pathways.languages import get_language
from icefall_pathways.searches import Search
from icefall_pathways.searches.context_graph import Phrase, build_context_graph
from icefall_pathways.searches.modified_beam import ModifiedBeamSearch
from icefall_pathways.serve.config import ServeConfig
from icefall_pathways.transcription.transcriber import AUTO, RecognizerConfig


class RequestError(ValueError):
    """A request that this model or its options cannot serve."""


class ConfidentIdentifier:
    """Select the language as `LanguageIdentifier` does, and keep the probabilities of the decision.

    Args:
      identifier: The calibrated model, and the decoder of the streams.
    """

    def __init__(self, identifier: LanguageIdentifier) -> None:
        self.model = identifier.model
        self._decoder = identifier.decoder
        self._decisions: dict[int, dict[str, float]] = {}

    def __call__(self, candidates: Sequence[Stream], audio_seconds: float, ended: bool) -> Stream | None:
        """Return the stream of the spoken language, or None to wait for more audio; see `LanguageSelector`."""
        (features,) = extract_features(self._decoder, [candidates], self.model.unigrams)
        languages = [stream.language for stream in candidates]
        selected = self.model.select(features, languages, audio_seconds, ended)
        if selected is None:
            return None
        probabilities: list[float] = self.model.logits(features.values, languages).softmax(0).tolist()
        self._decisions[id(candidates[selected])] = dict(zip(languages, probabilities, strict=True))
        return candidates[selected]

    def take_probabilities(self, stream: Stream) -> dict[str, float]:
        """Return the probabilities of all languages when `stream` was selected, once."""
        return self._decisions.pop(id(stream))


@dataclass(frozen=True)
class SpeechModel:
    """A trained model, ready to serve.

    Attributes:
      name: Name of the model, for clients.
      languages: Codes of its languages.
      tokenizer: Its tokenizer.
      recognizer: Recognizer for streams without hotwords.
      identifier: Identifies languages; None if all languages use the same weights, or if it is not calibrated.
      one_pathway: All languages use the same weights, so that all streams are decoded as `languages[0]`.
      calibration_hint: Message for users if languages cannot be identified.
      covers_narrowband: The model was also trained on narrowband audio.
      created: Time at which it was loaded, in seconds since 1970.
    """

    name: str
    languages: list[str]
    tokenizer: Tokenizer
    recognizer: Recognizer
    identifier: ConfidentIdentifier | None
    one_pathway: bool
    calibration_hint: str
    covers_narrowband: bool
    created: int = field(default_factory=lambda: int(time.time()))

    @classmethod
    def load(cls, config: ServeConfig) -> "SpeechModel":
        """Load the trained model that `config` selects, build its recognizers, and print what it cannot do.

        Raises:
          ValueError: An option does not fit the model, or a file is missing or damaged.
        """
        model = cls.build(load_trained_model(config), config)
        if config.lang.lower() != AUTO:
            try:
                model.resolve_language(config.lang)
            except RequestError as error:
                raise ValueError(f"--lang: {error}") from error
        if model.calibration_hint:
            print(f"note: {model.calibration_hint}", flush=True)
        return model

    @classmethod
    def build(cls, trained: TrainedModel, config: RecognizerConfig) -> "SpeechModel":
        """Build the recognizers of a trained model, and prepare its engine.

        Raises:
          ValueError: An option does not fit the model, or a file is missing or damaged.
        """
        languages = trained.languages
        one_pathway = not config.depends_on_language and trained.pathways.are_equal(languages)
        decoder = trained.build_decoder(config, languages[:1] if one_pathway else languages)
        identifier, hint = None, ""
        if not one_pathway and layout.language_id_file(config.exp_dir).is_file():
            decoder = with_scoring(decoder)
            identifier = ConfidentIdentifier(load_language_identifier(config.exp_dir, decoder))
        elif not one_pathway:
            hint = (
                f"the model in {config.exp_dir} is not calibrated for language identification: specify one of "
                f"{', '.join(languages)}, or run icefall-pathways calibrate-language-id before starting the server"
            )
        decoder.encoder.start_onnx(list(decoder.searches))  # the export takes seconds: not while streams are open
        symbols = trained.tokenizer.symbols
        recognizer = Recognizer(
            decoder,
            config.endpoint,
            identifier,
            is_word_start=lambda token: symbols[token].startswith(WORD_BOUNDARY),
            make_gate=partial(make_gate, config.vad),
        )
        recognizer.make_gate()  # reports missing packages, and reads the weights, before the first stream
        name = config.exp_dir.resolve().name
        covers_narrowband = trained.covers_narrowband
        return cls(name, languages, trained.tokenizer, recognizer, identifier, one_pathway, hint, covers_narrowband)

    @property
    def description(self) -> str:
        """Name and languages, for people."""
        return f"{self.name} ({' '.join(self.languages)})"

    @property
    def chunk_seconds(self) -> float:
        """Duration of a chunk in seconds."""
        decoder = self.recognizer.decoder
        return decoder.model.chunk_shift * decoder.fbank.frame_seconds

    @property
    def window_seconds(self) -> float:
        """Seconds of audio that a chunk needs, with its right context."""
        decoder = self.recognizer.decoder
        return decoder.model.chunk_window * decoder.fbank.frame_seconds

    def resolve_language(self, language: str) -> str | None:
        """Return the code of a language that a client requests; None: identify it, or, with one pathway, decode as any.

        Raises:
          RequestError: The model does not support it, or cannot identify languages.
        """
        if language.lower() == AUTO:
            if self.calibration_hint:
                raise RequestError(self.calibration_hint)
            return None
        supported = f"this model supports {', '.join(self.languages)}{'' if self.calibration_hint else f' and {AUTO}'}"
        try:
            code: str = get_language(language).code
        except ValueError as error:
            raise RequestError(f"language {language!r}: {supported}") from error
        if code not in self.languages:
            raise RequestError(f"language {language!r}: {supported}")
        return code

    def pathway(self, language: str | None) -> str | None:
        """Return the language to decode with for a resolved language."""
        return self.languages[0] if self.one_pathway else language

    def recognizer_with_hotwords(self, hotwords: Sequence[tuple[str, float]]) -> Recognizer:
        """Return a recognizer that adds the scores of hotwords to those of their tokens.

        Streams with the same recognizer share batches.

        Args:
          hotwords: Text and score per token of each hotword; none: the recognizer of all streams without hotwords.

        Raises:
          RequestError: The search does not support hotwords, or the tokenizer does not cover a hotword.
        """
        if not hotwords:
            return self.recognizer
        graph = build_context_graph([self._phrase(*hotword) for hotword in hotwords], self.tokenizer.vocab_size)
        base = self.recognizer.decoder
        searches: dict[str, Search] = {}
        for language, search in base.searches.items():
            inner = getattr(search, "inner", search)
            if not isinstance(inner, ModifiedBeamSearch):
                raise RequestError(
                    "hotwords require modified beam search: start the server with --decoding-method "
                    "modified_beam_search, or send none"
                )
            scorers = [*inner.scorers, graph]
            searches[language] = ModifiedBeamSearch(inner.model, inner.beam_size, inner.blank_penalty, scorers)
        decoder = StreamingDecoder(base.model, searches, base.fbank, base.pathways, base.encoder)
        identifier = None
        if self.identifier is not None:
            decoder = with_scoring(decoder)
            identifier = ConfidentIdentifier(LanguageIdentifier(self.identifier.model, decoder))
        common = self.recognizer
        return Recognizer(decoder, common.endpoints, identifier, common.is_word_start, common.make_gate)

    def _phrase(self, text: str, score: float) -> Phrase:
        tokens = self.tokenizer.encode([text])[0]
        if not tokens or self.tokenizer.unknown_id in tokens:
            raise RequestError(
                f"hotword {text!r} has letters that no token of the model covers: write it as in the training "
                "transcripts (lower case, numbers in words)"
            )
        return Phrase(tuple(tokens), score)
