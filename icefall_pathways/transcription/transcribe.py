"""From audio to transcripts: the loop that `transcribe.py` runs."""

import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TextIO

import tyro
from torch import Tensor

from icefall_pathways.data.tokenizer import WORD_BOUNDARY
from icefall_pathways.decoding.config import TrainedModelConfig
from icefall_pathways.decoding.language_id.model import load_language_identifier, with_scoring
from icefall_pathways.decoding.pretrained import TrainedModel, load_trained_model
from icefall_pathways.decoding.streaming import EndpointConfig, Recognizer, Source
from icefall_pathways.languages import get_language
from icefall_pathways.transcription.audio import MICROPHONE, STDIN, read_audio
from icefall_pathways.transcription.words import to_text
from icefall_pathways.transcription.writers import WRITERS, Writer

AUTO = "auto"


@dataclass(frozen=True)
class TranscribeConfig(TrainedModelConfig):
    """What to transcribe, and how."""

    audio: tyro.conf.Positional[tuple[str, ...]] = ()
    """Audio files; - for standard input (WAV, or raw 16 bit mono); mic for the microphone."""

    lang: str = AUTO
    """The language, such as fr; auto: finds out."""

    output_format: Literal["text", "json", "srt", "vtt"] = "text"
    """What to write."""

    output_dir: Path | None = None
    """Write a file for each source into this folder; None: write to standard output."""

    num_decode_streams: int = 16
    """Files transcribed at the same time; with standard output it is one after the other."""

    sample_rate: int = 16000
    """Of raw samples on standard input, in Hz."""

    num_active_paths: int = 4
    """Hypotheses in modified_beam_search."""

    endpoint: EndpointConfig = field(default_factory=EndpointConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.audio:
            raise ValueError("nothing to transcribe: name audio files, or - for standard input, or mic")
        live = [source for source in self.audio if source in (STDIN, MICROPHONE)]
        if live and len(self.audio) > 1:
            raise ValueError(f"{live[0]} goes alone: it does not end before it is interrupted")
        if self.num_decode_streams < 1:
            raise ValueError(f"--num-decode-streams {self.num_decode_streams}: expected at least 1")
        if self.output_dir is not None:
            names = [self.output_path(source).name for source in self.audio]
            double = sorted({name for name in names if names.count(name) > 1})
            if double:
                raise ValueError(f"several sources would be written to {double[0]}: give them different --output-dir")

    @property
    def num_hypotheses(self) -> int:
        """Hypotheses in modified_beam_search."""
        return self.num_active_paths

    def output_path(self, source: str) -> Path:
        """The file in `output_dir` for a source."""
        name = {STDIN: "stdin", MICROPHONE: "microphone"}.get(source, Path(source).stem)
        extension = "txt" if self.output_format == "text" else self.output_format
        return (self.output_dir or Path()) / f"{name}.{extension}"


def transcribe(config: TranscribeConfig, out: TextIO | None = None) -> dict[str, str]:
    """Transcribe audio.

    Args:
      config: What and how.
      out: Standard output.

    Returns:
      Sources whose audio is bad, and why; what could be heard of them was written all the same.

    Raises:
      ValueError: The model or an option is missing, damaged or does not fit.
    """
    trained = load_trained_model(config)
    recognizer, language = make_recognizer(config, trained)
    nameless = config.lang == AUTO and language is not None
    out = out or sys.stdout
    errors: dict[str, str] = {}
    sources = (Source(name, _read(name, config.sample_rate), language) for name in config.audio)
    results = recognizer.recognize(
        sources,
        num_streams=1 if config.output_dir is None else config.num_decode_streams,
        on_error=lambda name, error: errors.update({name: str(error)}),
    )
    writers: dict[str, Writer] = {}
    with ExitStack() as files:
        for name, result in results:
            if name not in writers:
                file = out if config.output_dir is None else files.enter_context(_open(config.output_path(name)))
                writers[name] = WRITERS[config.output_format](file, name)
            writers[name].add(to_text(result, trained.tokenizer, nameless))
            if result.is_last:
                writers[name].close(errors.get(name))
                if writers[name].out is not out:
                    writers[name].out.close()
    return errors


def make_recognizer(config: TranscribeConfig, trained: TrainedModel) -> tuple[Recognizer, str | None]:
    """The recogniser of a model, and the language to open its sessions with; None if that is to be found out.

    Raises:
      ValueError: The model has no such language, or languages cannot be told apart.
    """
    known = trained.languages
    language: str | None
    if config.lang != AUTO:
        language = get_language(config.lang).code
        if language not in known:
            raise ValueError(f"--lang {config.lang}: the model in {config.exp_dir} knows {', '.join(known)}")
        decoder, choose = trained.decoder(config, [language]), None
    elif trained.masks is None or trained.masks.share_mask(known):
        if config.context_file or config.ngram_lm:
            raise ValueError("hotwords and language models are of a language: name it with --lang")
        language = known[0]  # which is as good as any other: there is one path for all
        decoder, choose = trained.decoder(config, [language]), None
    else:
        language = None
        decoder = with_scoring(trained.decoder(config, known))
        choose = load_language_identifier(config.exp_dir, decoder)
    symbols = trained.tokenizer.symbols
    return Recognizer(
        decoder, config.endpoint, choose, is_word_start=lambda token: symbols[token].startswith(WORD_BOUNDARY)
    ), language


def _open(path: Path) -> TextIO:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("w", encoding="utf-8")


def _read(source: str, sample_rate: int) -> Iterator[Tensor]:
    pieces = read_audio(source, sample_rate)
    return UntilInterrupted(pieces) if source in (STDIN, MICROPHONE) else pieces


class UntilInterrupted(Iterator[Tensor]):
    """Live audio, which Ctrl-C ends: what was said until then is still recognised.

    Args:
      pieces: The audio.
    """

    def __init__(self, pieces: Iterator[Tensor]) -> None:
        self._pieces = pieces
        self._waiting = self._interrupted = False
        signal.signal(signal.SIGINT, self._interrupt)

    def __next__(self) -> Tensor:
        """The next piece, which may have to be waited for."""
        self._waiting = True
        try:
            if self._interrupted:
                raise StopIteration
            return next(self._pieces)
        except (StopIteration, KeyboardInterrupt):
            signal.signal(signal.SIGINT, signal.default_int_handler)
            raise StopIteration from None
        finally:
            self._waiting = False

    def _interrupt(self, _number: int, _frame: object) -> None:
        self._interrupted = True
        if self._waiting:
            raise KeyboardInterrupt
