"""Transcription of audio files, standard input and microphones, as run by `transcribe.py`."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, TextIO

import tyro
from torch import Tensor

from icefall_pathways.decoding.pretrained import load_trained_model
from icefall_pathways.files import atomic_write
from icefall_pathways.ranges import PositiveInt, Range, check_number
from icefall_pathways.transcription.audio import MICROPHONE, STDIN, AudioOptions, read_audio
from icefall_pathways.transcription.transcriber import AUTO, RecognizerConfig, Transcriber
from icefall_pathways.transcription.transcript import Segment, no_speech_note
from icefall_pathways.transcription.writers import WRITERS, NamedTextWriter, Writer

_MAX_SAMPLE_RATE = 768_000


@dataclass(frozen=True)
class TranscribeConfig(RecognizerConfig):
    """Options of transcription."""

    audio: tyro.conf.Positional[tuple[str, ...]] = ()
    """Audio or video files; - for standard input; mic for the microphone."""

    lang: str = AUTO
    """The language, such as fr; auto: identify it."""

    output_format: Literal["text", "json", "srt", "vtt"] = "text"
    """Format of the transcripts."""

    output_dir: Path | None = None
    """Write one file per source into this folder; None: write to standard output, where each line of text has the name
    of its file if there are several."""

    num_decode_streams: PositiveInt = 16
    """Number of files to transcribe in parallel with --output-dir; without it, files are transcribed one at a time."""

    sample_rate: int | None = None
    """Standard input is raw 16-bit mono at this rate, in Hz; None: it states its format, such as WAV or MP3."""

    channel: int | None = None
    """Channel to transcribe, counted from 0; None: the average of the active ones."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.audio:
            raise ValueError("nothing to transcribe: pass audio files, - for standard input, or mic")
        live = [source for source in self.audio if source in (STDIN, MICROPHONE)]
        if live and len(self.audio) > 1:
            raise ValueError(f"{live[0]} with {len(self.audio) - 1} other sources: it must be the only source")
        if len(self.audio) > 1 and self.output_dir is None and self.output_format in ("srt", "vtt"):
            raise ValueError(
                f"subtitles of {len(self.audio)} files on standard output: write a file for each with --output-dir"
            )
        if self.sample_rate is not None:
            check_number("--sample-rate", self.sample_rate, Range(1, _MAX_SAMPLE_RATE))
        if self.channel is not None:
            check_number("--channel", self.channel)
        if self.output_dir is not None:
            names = [self.output_path(source).name for source in self.audio]
            duplicates = sorted({name for name in names if names.count(name) > 1})
            if duplicates:
                first, second, *_ = (s for s, name in zip(self.audio, names, strict=True) if name == duplicates[0])
                raise ValueError(
                    f"{first} and {second} would both be written to {duplicates[0]}: transcribe them in two calls, "
                    "with a different --output-dir each"
                )
            sources = {path for source in self.audio for path in (_entry(source), os.path.realpath(source))}
            replaced = next((path for path in map(self.output_path, self.audio) if _entry(path) in sources), None)
            if replaced is not None:
                raise ValueError(f"the transcript would replace the audio in {replaced}: use a different --output-dir")

    @property
    def writer(self) -> type[Writer]:
        """Class of the writers; text of several files on standard output has their names."""
        if self.output_format == "text" and self.output_dir is None and len(self.audio) > 1:
            return NamedTextWriter
        return WRITERS[self.output_format]

    def output_path(self, source: str) -> Path:
        """Return the transcript file of a source in `output_dir`."""
        name = {STDIN: "stdin", MICROPHONE: "microphone"}.get(source, Path(source).stem)
        extension = "txt" if self.output_format == "text" else self.output_format
        return (self.output_dir or Path()) / f"{name}.{extension}"


def transcribe(config: TranscribeConfig, out: TextIO | None = None) -> dict[str, str]:
    """Transcribe audio sources and write their transcripts.

    Args:
      config: The options.
      out: Stream for the transcripts if there is no output folder; None: standard output.

    Returns:
      Error message of each source with invalid audio; the audio before the error is transcribed.

    Raises:
      ValueError: A file of the model is missing or damaged, or an option does not fit the model.
    """
    if config.output_dir is None and out is None and sys.stdout is None:
        raise ValueError("standard output is closed: open it, or use --output-dir")
    trained = load_trained_model(config)
    transcriber = Transcriber(trained, config, config.lang)
    out = out or sys.stdout
    errors: dict[str, str] = {}
    results = transcriber.transcribe(
        ((source, _read(source, config, trained.covers_narrowband)) for source in config.audio),
        num_streams=1 if config.output_dir is None else config.num_decode_streams,
        on_error=lambda source, error: errors.update({source: str(error)}),
    )
    outputs: dict[str, _Output] = {}
    try:
        for source, segment in results:
            if source not in outputs:
                outputs[source] = _Output(config, source, out)
            outputs[source].add(segment)
            if segment.is_last:
                if (note := no_speech_note(segment)) is not None:
                    _report(source, note)
                outputs.pop(source).close(errors.get(source))
    finally:
        for output in outputs.values():  # of an interrupted or failed run
            output.close("the transcription was interrupted")
    return errors


def _entry(path: Path | str) -> str:
    """Return the path without symbolic links, except that of the file itself."""
    folder, name = os.path.split(path)
    return os.path.join(os.path.realpath(folder), name)  # noqa: PTH118


class _Output:
    """The transcript of one source. Its file gets its name once it is complete, or when the run is interrupted."""

    def __init__(self, config: TranscribeConfig, source: str, out: TextIO) -> None:
        self._files = ExitStack()
        if config.output_dir is not None:
            path = self._files.enter_context(atomic_write(config.output_path(source)))
            out = self._files.enter_context(path.open("w", encoding="utf-8"))
        self._writer = config.writer(out, source)

    def add(self, segment: Segment) -> None:
        self._writer.add(segment)

    def close(self, error: str | None) -> None:
        with self._files:
            self._writer.close(error)


def _report(source: str, note: str) -> None:
    print(f"note: {source}: {note}", file=sys.stderr)


def _read(source: str, config: TranscribeConfig, covers_narrowband: bool) -> Iterator[Tensor]:
    options = AudioOptions(config.sample_rate, config.channel, partial(_report, source), covers_narrowband)
    blocks = read_audio(source, options)
    return UntilInterrupted(blocks) if source in (STDIN, MICROPHONE) else blocks


class UntilInterrupted(Iterator[Tensor]):
    """Live audio that ends at Ctrl-C; the audio before it is still transcribed.

    Args:
      blocks: The audio.
    """

    def __init__(self, blocks: Iterator[Tensor]) -> None:
        self._blocks = blocks
        self._waiting = self._interrupted = False
        signal.signal(signal.SIGINT, self._interrupt)

    def __next__(self) -> Tensor:
        """Return the next block, after waiting for it if necessary."""
        self._waiting = True
        try:
            if self._interrupted:
                raise StopIteration
            return next(self._blocks)
        except (StopIteration, KeyboardInterrupt):
            signal.signal(signal.SIGINT, signal.default_int_handler)
            raise StopIteration from None
        finally:
            self._waiting = False

    def _interrupt(self, _signal: int, _frame: object) -> None:
        self._interrupted = True
        if self._waiting:
            raise KeyboardInterrupt
