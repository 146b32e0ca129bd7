"""How long speakers wait: streams on a clock on which audio arrives in real time and computing takes what it takes."""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice, takewhile
from typing import Any

import numpy as np
from tabulate import tabulate
from torch import Tensor
from tqdm import tqdm

from icefall_pathways.decoding.config import StreamingDecodeConfig
from icefall_pathways.decoding.cut_audio import load_samples
from icefall_pathways.decoding.decode_run import load_experiment
from icefall_pathways.decoding.streaming import ANY_LANGUAGE, FRAME_SECONDS, Stream, StreamingDecoder
from icefall_pathways.experiment import layout
from icefall_pathways.files import atomic_write, write_json
from icefall_pathways.searches import Hypothesis

_PERCENTILES = (50, 95)
_WAITS = {"first_partial": "first text", "final": "end of speech to final", "token_delay": "token delay"}


@dataclass(frozen=True)
class LatencyConfig(StreamingDecodeConfig):
    """How to measure latency."""

    streams: str = "1 16"
    """Numbers of simultaneous speakers, each a line of the report."""

    utterances: int = 64
    """Utterances of each language that are spoken."""

    packet: float = 0.04
    """Seconds of audio that arrive at a time."""

    def __post_init__(self) -> None:
        super().__post_init__()
        words = self.streams.split()
        if not words or not all(word.isdecimal() and int(word) > 0 for word in words):
            raise ValueError(f'--streams {self.streams!r}: expected numbers of speakers, such as "1 16"')
        if self.utterances < 1 or self.packet <= 0:
            raise ValueError("--utterances and --packet: expected more than 0")

    @property
    def stream_numbers(self) -> list[int]:
        """`streams` as numbers."""
        return [int(word) for word in self.streams.split()]


@dataclass
class Latency:
    """What speakers waited for, in seconds, and what the computer did.

    Attributes:
      first_partial: Of each utterance with text: from the beginning of its audio to its first text.
      final: Of each utterance: from the end of its audio to its last result.
      token_delay: Of each token: from the end of its encoder frame to when it was shown, from then on unchanged.
      busy: Seconds of computing.
      audio: Seconds of audio.
    """

    first_partial: list[float] = field(default_factory=list)
    final: list[float] = field(default_factory=list)
    token_delay: list[float] = field(default_factory=list)
    busy: float = 0.0
    audio: float = 0.0

    def add(self, other: "Latency") -> None:
        """Take in another measurement."""
        for one in dataclasses.fields(self):
            setattr(self, one.name, getattr(self, one.name) + getattr(other, one.name))

    def as_dict(self) -> dict[str, Any]:
        """Percentiles in seconds and the real-time factor."""
        figures: dict[str, Any] = {"real_time_factor": self.busy / self.audio, "audio": self.audio}
        for name in _WAITS:
            values = getattr(self, name)
            figures[name] = {str(p): float(np.percentile(values, p)) if values else None for p in _PERCENTILES}
        return figures


@dataclass(eq=False)
class _Speaker:
    """Somebody who is saying an utterance.

    Attributes:
      samples: What is said (n,).
      begin: When it began.
      stream: Where it goes.
      arrived: Samples handed over.
      shown: The result shown last.
      times: When each of its tokens was shown, from then on unchanged.
      first: When the first text was shown; None before.
    """

    samples: Tensor
    begin: float
    stream: Stream
    arrived: int = 0
    shown: Hypothesis = field(default_factory=lambda: Hypothesis([], [], 0.0))
    times: list[float] = field(default_factory=list)
    first: float | None = None

    def show(self, found: Hypothesis, now: float) -> None:
        """Take a new result."""
        pairs = zip(self.shown.tokens, found.tokens, strict=False)
        kept = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        self.times = self.times[:kept] + [now] * (len(found.tokens) - kept)
        self.shown = found
        if found.tokens and self.first is None:
            self.first = now


class Simulation:
    """Speakers who talk at the same time, and one recogniser for them all.

    The clock runs on by the time that computing really takes; while there is nothing to do it jumps to the next packet.
    So the waiting is that of a server of this speed, and measuring it takes less time than listening.

    Args:
      decoder: The recogniser.
      packet: Seconds of audio that arrive at a time.
      clock: Tells the seconds that computing has taken.
      language: That they speak.
    """

    def __init__(
        self,
        decoder: StreamingDecoder,
        packet: float,
        clock: Callable[[], float] = time.perf_counter,
        language: str = ANY_LANGUAGE,
    ) -> None:
        self.language = language
        self.decoder = decoder
        self.clock = clock
        self.sample_rate = decoder.fbank.sample_rate
        self.packet = max(1, round(packet * self.sample_rate))
        self.chunk_seconds = decoder.model.chunk_shift * decoder.fbank.frame_shift / self.sample_rate

    def run(self, utterances: Sequence[Tensor], num_speakers: int) -> Latency:
        """Let so many speakers say the utterances (n,), one after the other each, until all is said."""
        latency, now, waiting = Latency(), 0.0, iter(utterances)
        # Speakers do not begin together: all chunks would be full at the same time.
        speakers = [
            self._begin(samples, number * self.chunk_seconds / num_speakers)
            for number, samples in enumerate(islice(waiting, num_speakers))
        ]
        while speakers:
            started = self.clock()
            for speaker in speakers:
                self._feed(speaker, now)
            advanced = {id(stream) for stream in self.decoder.advance([speaker.stream for speaker in speakers])}
            changed = [speaker for speaker in speakers if id(speaker.stream) in advanced]
            found = self.decoder.results([speaker.stream for speaker in changed])
            elapsed = self.clock() - started
            latency.busy += elapsed
            now += elapsed
            for speaker, hypothesis in zip(changed, found, strict=True):
                speaker.show(hypothesis, now)
            for speaker in [speaker for speaker in speakers if self.decoder.is_done(speaker.stream)]:
                self._record(latency, speaker, now)
                speakers.remove(speaker)
                speakers += [self._begin(samples, now) for samples in islice(waiting, 1)]
            if not advanced:
                now = max(now, min(map(self._next_packet, speakers), default=now))
        return latency

    def _begin(self, samples: Tensor, begin: float) -> _Speaker:
        return _Speaker(samples, begin, self.decoder.open(self.language))

    def _next_packet(self, speaker: _Speaker) -> float:
        return speaker.begin + min(speaker.arrived + self.packet, len(speaker.samples)) / self.sample_rate

    def _feed(self, speaker: _Speaker, now: float) -> None:
        """Hand over the packets that have arrived by now, and the end of the utterance with the last one."""
        if speaker.stream.input_finished:
            return
        said = round(max(0.0, now - speaker.begin) * self.sample_rate)
        ended = said >= len(speaker.samples)
        arrived = len(speaker.samples) if ended else said // self.packet * self.packet
        if arrived > speaker.arrived:
            speaker.stream.accept_samples(speaker.samples[speaker.arrived : arrived])
            speaker.arrived = arrived
        if ended:
            speaker.stream.finish()

    def _record(self, latency: Latency, speaker: _Speaker, now: float) -> None:
        seconds = len(speaker.samples) / self.sample_rate
        latency.audio += seconds
        latency.final.append(now - speaker.begin - seconds)
        if speaker.first is not None:
            latency.first_partial.append(speaker.first - speaker.begin)
        latency.token_delay += [
            shown - speaker.begin - (frame + 1) * FRAME_SECONDS
            for shown, frame in zip(speaker.times, speaker.shown.timestamps, strict=True)
        ]


def measure(config: LatencyConfig) -> str:
    """Measure the latency of an experiment; returns the table, which is also written beside the results.

    Raises:
      ValueError: The checkpoint, masks, tokens or manifests are missing, damaged or do not fit together.
    """
    experiment = load_experiment(config)
    totals = {number: Latency() for number in config.stream_numbers}
    for language in experiment.data.languages:
        cuts = experiment.data.loader(language.code, config.split).cuts
        spread = cuts[:: max(1, len(cuts) // config.utterances)][: config.utterances]
        utterances = [load_samples(cut) for cut in spread]
        simulation = Simulation(experiment.decoder, config.packet, language=language.code)
        simulation.run(utterances[:1], 1)  # the first chunks of a process are slow
        for number, total in tqdm(totals.items(), f"listening to {language.name}", unit="measurement"):
            total.add(simulation.run(utterances, number))
    figures = {str(number): total.as_dict() for number, total in totals.items()}
    path = layout.result_file(
        config.results_dir, "latency", f"{experiment.data.corpus}-{config.split}", experiment.trained.suffix
    )
    table = format_latency(figures)
    write_json(path.with_suffix(".json"), figures)
    with atomic_write(path) as temporary:
        temporary.write_text(f"{table}\n", encoding="utf-8")
    return table


def format_latency(figures: Mapping[str, Mapping[str, Any]]) -> str:
    """A table of `Latency.as_dict` by number of streams; times in milliseconds, median and 95th percentile."""
    rows = [
        [number, f"{one['real_time_factor']:.4f}", *(_milliseconds(one[name]) for name in _WAITS)]
        for number, one in figures.items()
    ]
    header = ["streams", "real-time factor", *(f"{text} (ms, 50 % / 95 %)" for text in _WAITS.values())]
    return tabulate(rows, header, tablefmt="simple", stralign="right", disable_numparse=True)


def _milliseconds(percentiles: Mapping[str, float | None]) -> str:
    return " / ".join("-" if value is None else f"{1000 * value:.0f}" for value in percentiles.values())
