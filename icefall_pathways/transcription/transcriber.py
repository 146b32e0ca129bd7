"""Transcription with a trained model: audio in, segments of text out, in a given or an identified language."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial

from torch import Tensor

from icefall_pathways.data.tokenizer import WORD_BOUNDARY
from icefall_pathways.decoding.config import NumActivePaths, TrainedModelConfig
from icefall_pathways.decoding.language_id.model import load_language_identifier, with_scoring
from icefall_pathways.decoding.pretrained import TrainedModel
from icefall_pathways.decoding.streaming import (
    AudioError,
    EndpointConfig,
    Recognizer,
    Result,
    Session,
    Source,
    VadName,
    make_gate,
)
from icefall_pathways.languages import get_language
from icefall_pathways.transcription.transcript import Segment, to_segment

AUTO = "auto"


@dataclass(frozen=True)
class RecognizerConfig(TrainedModelConfig):
    """Options that select a trained model, a search and the segmentation."""

    beam_size: NumActivePaths = 4
    """For modified_beam_search: hypotheses kept per stream."""

    endpoint: EndpointConfig = field(default_factory=EndpointConfig)

    vad: VadName = "silero"
    """Voice activity detection. silero: decode only the regions in which Silero VAD detects speech, each on its own;
    none: decode all audio."""


class Transcriber:
    """Transcribe audio in one language, or in a language that is identified from the audio.

    Args:
      trained: The trained model.
      config: Options of the search and of the segmentation; its exp_dir holds the language identification.
      language: Code or name of the language; "auto" to identify it.

    Raises:
      ValueError: The model does not support the language, or cannot identify languages.
    """

    def __init__(self, trained: TrainedModel, config: RecognizerConfig, language: str = AUTO) -> None:
        self.tokenizer = trained.tokenizer
        supported, select_language = trained.languages, None
        self.language: str | None  # of new sessions; None: to be identified
        self._reports_language = True
        if language.lower() != AUTO:
            self.language = get_language(language).code
            if self.language not in supported:
                raise ValueError(
                    f"language {language!r}: the model in {config.exp_dir} supports {', '.join(supported)}; choose one"
                )
            decoder = trained.build_decoder(config, [self.language])
        elif trained.pathways.are_equal(supported):
            if config.depends_on_language:
                raise ValueError("hotwords and language models depend on the language: specify it, such as --lang fr")
            self.language = supported[0]  # any of them: all use the same weights
            self._reports_language = False
            decoder = trained.build_decoder(config, [self.language])
        else:
            self.language = None
            decoder = with_scoring(trained.build_decoder(config, supported))
            select_language = load_language_identifier(config.exp_dir, decoder)
        symbols = trained.tokenizer.symbols
        self.recognizer = Recognizer(
            decoder,
            config.endpoint,
            select_language,
            is_word_start=lambda token: symbols[token].startswith(WORD_BOUNDARY),
            make_gate=partial(make_gate, config.vad),
        )

    def transcribe(
        self,
        sources: Iterable[tuple[str, Iterator[Tensor]]],
        num_streams: int,
        on_error: Callable[[str, AudioError], None],
    ) -> Iterator[tuple[str, Segment]]:
        """Transcribe several sources, up to `num_streams` in one batch.

        Args:
          sources: Name of each source, and its samples (n,) at 16 kHz in blocks.
          num_streams: Maximum number of open sources.
          on_error: Called with the name of a source that contains invalid audio; the audio before it is transcribed.

        Yields:
          Name of the source, and its next partial or final result.
        """
        opened = (Source(name, blocks, self.language) for name, blocks in sources)
        for name, result in self.recognizer.recognize(opened, num_streams, on_error):
            yield name, self._segment(result)

    def open(self) -> Session:
        """Open a session for samples that arrive over time; pass it to `advance`."""
        return self.recognizer.open(self.language)

    def advance(self, session: Session) -> Iterator[Segment]:
        """Decode the complete chunks of a session, and yield partial and final results."""
        while self.recognizer.is_ready(session):
            for _, result in self.recognizer.advance([session]):
                yield self._segment(result)

    def _segment(self, result: Result) -> Segment:
        return to_segment(result, self.tokenizer, result.language if self._reports_language else None)
