"""Python interface of a trained model: transcribe files, samples and live streams.

    from icefall_pathways import Pathways

    asr = Pathways.from_pretrained("exp/pathways")
    print(asr.transcribe("speech.flac", language="fr").text)

Calls from several threads need a lock: all streams share one model, which is switched between languages.
"""

import warnings
from collections.abc import Sequence
from dataclasses import fields
from numbers import Real
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias, get_args, get_type_hints

from numpy.typing import NDArray
from torch import Tensor

from icefall_pathways.data.features import FbankConfig
from icefall_pathways.data.tokenizer import Tokenizer
from icefall_pathways.decoding.pretrained import TrainedModel, load_trained_model
from icefall_pathways.decoding.streaming import AudioError, EndpointConfig, check_samples
from icefall_pathways.models.transducer import Transducer
from icefall_pathways.pathways.masks import PathwayMasks
from icefall_pathways.transcription.audio import AudioOptions, as_mono, read_file, read_samples, split_blocks
from icefall_pathways.transcription.resampling import StreamingResampler, check_sample_rate, narrowband_note
from icefall_pathways.transcription.transcriber import AUTO, RecognizerConfig, Transcriber
from icefall_pathways.transcription.transcript import Segment, Transcript, no_speech_note

Samples: TypeAlias = Tensor | NDArray[Any] | Sequence[float]
"""Mono samples (n,), (1, n) or (n, 1): floating point in [-1, 1], or 16-bit or 32-bit integers."""


class Pathways:
    """A trained model that transcribes audio in several languages, each through its own sub-network.

    Args:
      trained: The trained model; see `from_pretrained`.
      config: Options of the search and of the segmentation.
    """

    def __init__(self, trained: TrainedModel, config: RecognizerConfig) -> None:
        self._trained = trained
        self._config = config
        self._transcribers: dict[str, Transcriber] = {}

    @classmethod
    def from_pretrained(cls, folder: str | Path, **options: Any) -> "Pathways":
        """Load the model of an experiment folder, onto the GPU if there is one.

        Args:
          folder: Experiment folder, with checkpoints, tokenizer and, if they exist, masks and language identification.
          **options: Options of transcribe.py by their Python names, for example
            `decoding_method="modified_beam_search"`, `epoch=30`, `avg=9`, `masks="none"` or
            `rule2_min_trailing_silence=0.8`. `num_active_paths` is another name of `beam_size`.

        Raises:
          TypeError: There is no such option, or its value has the wrong type.
          ValueError: The folder, its checkpoint or another file is missing or damaged, or an option has an invalid
            value.
        """
        folder = Path(folder).expanduser()
        if not folder.is_dir():
            raise ValueError(
                f"no experiment folder {folder.absolute()}: expected the --exp-dir of a training, with its checkpoints"
            )
        config = _make_config(folder, options)
        return cls(load_trained_model(config), config)

    @property
    def languages(self) -> list[str]:
        """Codes of the languages that the model transcribes."""
        return self._trained.languages

    @property
    def masks(self) -> PathwayMasks | None:
        """The sub-networks of the languages; None for a dense model."""
        return self._trained.masks

    @property
    def model(self) -> Transducer:
        """The transducer, in eval mode."""
        return self._trained.model

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the model."""
        return self._trained.tokenizer

    @property
    def sample_rate(self) -> int:
        """Sample rate of the model in Hz; audio of other rates is resampled."""
        return FbankConfig.sample_rate

    def transcribe(
        self,
        audio: str | Path | Samples,
        language: str = AUTO,
        sample_rate: int | None = None,
        channel: int | None = None,
    ) -> Transcript:
        """Transcribe a file or samples.

        Args:
          audio: Path of an audio or video file of any common format, or samples.
          language: Code or name of the language; "auto" identifies it.
          sample_rate: Sample rate of samples, in Hz; None: 16 kHz. Not allowed with a file, which states its own.
          channel: Channel of a file to transcribe, counted from 0; None: the average of the active ones.

        Remarks about the audio, such as a low sample rate, unused channels or no speech, are warnings.

        Raises:
          AudioError: The audio is missing, damaged, truncated or out of range.
          ValueError: The model does not support the language, or cannot identify languages.
        """
        notes: list[str] = []
        options = AudioOptions(None, channel, notes.append, self._trained.covers_narrowband)
        if isinstance(audio, str | Path):
            if sample_rate is not None:
                raise ValueError(f"sample_rate={sample_rate} with a file, which states its own: omit sample_rate")
            name, blocks = str(audio), read_file(Path(audio).expanduser(), options)
        else:
            if channel is not None:
                raise ValueError(f"channel={channel} with samples, which are mono: pass the samples of that channel")
            name, blocks = "samples", read_samples(as_mono(audio), _check_rate(sample_rate), options)
        errors: list[AudioError] = []
        segments = self._transcriber(language).transcribe(
            [(name, blocks)], num_streams=1, on_error=lambda _, error: errors.append(error)
        )
        results = [segment for _, segment in segments if segment.is_final]
        transcript = Transcript.from_results(results)
        if errors:
            raise AudioError(f"{name}: {errors[0]}") from errors[0]
        if results and (note := no_speech_note(results[-1])) is not None:
            notes.append(note)
        for note in notes:
            warnings.warn(f"{name}: {note}", stacklevel=2)
        return transcript

    def stream(self, language: str = AUTO, sample_rate: int | None = None) -> "TranscriptionStream":
        """Open a stream for audio that arrives over time, for use in a `with` block.

        Args:
          language: Code or name of the language; "auto" identifies it, and results start once it is identified.
          sample_rate: Sample rate of the samples, in Hz; None: 16 kHz.

        Raises:
          AudioError: The sample rate is out of range.
          ValueError: The model does not support the language, or cannot identify languages.
        """
        stream = TranscriptionStream(self._transcriber(language), rate := _check_rate(sample_rate))
        if (note := narrowband_note(rate, self._trained.covers_narrowband)) is not None:
            warnings.warn(note, stacklevel=2)
        return stream

    def _transcriber(self, language: str) -> Transcriber:
        if not isinstance(language, str):
            raise TypeError(f"language {language!r}: expected a code or a name, such as 'fr', or {AUTO!r}")
        if language not in self._transcribers:
            self._transcribers[language] = Transcriber(self._trained, self._config, language)
        return self._transcribers[language]


class TranscriptionStream:
    """One live stream of audio and its transcript.

        with asr.stream(language="fr") as stream:
            for samples in source:
                for segment in stream.accept(samples):
                    print(segment.text, "(final)" if segment.is_final else "...")
        print(stream.transcript.text)

    At the end of the block the remaining audio is decoded, and all results become final; not if the block raises an
    exception.

    Args:
      transcriber: Transcriber of the language.
      sample_rate: Sample rate of the samples, in Hz.

    Raises:
      AudioError: The sample rate is out of range.
    """

    def __init__(self, transcriber: Transcriber, sample_rate: int) -> None:
        self._transcriber = transcriber
        self._session = transcriber.open()
        self._sample_rate = sample_rate
        self._resampler = StreamingResampler(sample_rate, FbankConfig.sample_rate)
        self._final: list[Segment] = []
        self._partial: list[Segment] = []

    def __enter__(self) -> "TranscriptionStream":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self.finish()

    @property
    def language(self) -> str | None:
        """Language code of the results; None before the first result, or if the model is dense."""
        return self.transcript.language

    @property
    def results(self) -> list[Segment]:
        """All results: the final ones, then the partial result of the current segment if there is one."""
        return self._final + self._partial

    @property
    def transcript(self) -> Transcript:
        """The transcript so far; complete after `finish`."""
        return Transcript.from_results(self.results)

    @property
    def finished(self) -> bool:
        """The audio has ended: after `finish`, or after the `with` block."""
        return self._session.finished

    def accept(self, samples: Samples) -> list[Segment]:
        """Append any number of samples, and decode the chunks that they complete.

        Args:
          samples: Mono samples (n,).

        Returns:
          New partial and final results, in order; empty if no chunk is complete.

        Raises:
          AudioError: The samples are not mono, not finite or out of range. The stream is unchanged.
          ValueError: The stream is finished.
        """
        if self.finished:
            raise ValueError("this stream is finished: open another one with stream(...) for more audio")
        mono = as_mono(samples)
        check_samples(mono)  # before the resampler, whose buffer would keep a NaN
        new: list[Segment] = []
        for block in split_blocks(mono, self._sample_rate):
            new += self._decode(self._resampler.accept(block))
        return new

    def finish(self) -> list[Segment]:
        """Decode the remaining audio and return its results; a second call has no effect."""
        if self.finished:
            return []
        new = self._decode(self._resampler.flush())
        self._session.finish()
        return new + self._advance()

    def _decode(self, samples: Tensor) -> list[Segment]:
        self._session.accept_samples(samples)
        return self._advance()

    def _advance(self) -> list[Segment]:
        new = list(self._transcriber.advance(self._session))
        for segment in new:
            self._partial = [] if segment.is_final else [segment]
            self._final += [segment] if segment.is_final else []
        return new


def _check_rate(sample_rate: float | None) -> int:
    """Return a sample rate in Hz, for None that of the models.

    Raises:
      AudioError: It is out of range, or not a whole number.
    """
    if sample_rate is None:
        return FbankConfig.sample_rate
    if not isinstance(sample_rate, Real) or not float(sample_rate).is_integer():
        raise AudioError(f"sample_rate={sample_rate!r}: expected a whole number of Hz, such as 16000")
    check_sample_rate(int(sample_rate))
    return int(sample_rate)


def _make_config(folder: Path, options: dict[str, Any]) -> RecognizerConfig:
    if "num_active_paths" in options:  # the name on the command line
        if "beam_size" in options:
            raise TypeError("num_active_paths and beam_size are the same option: specify one of them")
        options = options | {"beam_size": options["num_active_paths"]}
        del options["num_active_paths"]
    endpoint_names = {field.name for field in fields(EndpointConfig)}
    names = {field.name for field in fields(RecognizerConfig)} - {"exp_dir", "endpoint"} | endpoint_names
    if unknown := [name for name in options if name not in names]:
        raise TypeError(f"unknown option {', '.join(unknown)}: expected some of {', '.join(sorted(names))}")
    endpoint = {name: value for name, value in options.items() if name in endpoint_names}
    hints = get_type_hints(RecognizerConfig)
    paths = {
        name: Path(value).expanduser()
        for name, value in options.items()
        if value is not None and name not in endpoint and Path in get_args(hints[name])
    }
    others = {name: value for name, value in options.items() if name not in endpoint}
    return RecognizerConfig(exp_dir=folder, endpoint=EndpointConfig(**endpoint), **(others | paths))
