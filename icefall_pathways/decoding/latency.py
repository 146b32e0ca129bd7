"""Latency benchmark: streams on a simulated real-time clock."""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
from tabulate import tabulate
from torch import Tensor
from tqdm import tqdm

from icefall_pathways.decoding.config import StreamingConfig
from icefall_pathways.decoding.cut_audio import load_samples
from icefall_pathways.decoding.decode_run import load_experiment
from icefall_pathways.decoding.streaming import ANY_LANGUAGE, FRAME_SECONDS, Stream, StreamingDecoder
from icefall_pathways.experiment import layout
from icefall_pathways.files import atomic_write, write_json
from icefall_pathways.ranges import PositiveFloat, PositiveInt, Range, parse_numbers
from icefall_pathways.searches import Hypothesis
from icefall_pathways.searches.base import common_prefix_length

_PERCENTILES = (50, 95)
_LATENCIES = {"first_partial": "first text", "final": "end of audio to final", "token_delay": "token delay"}


@dataclass(frozen=True)
class LatencyConfig(StreamingConfig):
    """Options of the latency benchmark."""

    streams: str = "1 16"
    """Numbers of simultaneous streams to measure, separated by spaces; each is a row of the table."""

    utterances: PositiveInt = 64
    """Number of utterances to decode per language."""

    packet: PositiveFloat = 0.04
    """Seconds of audio per packet."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.stream_counts  # noqa: B018  (checks the option)

    @property
    def stream_counts(self) -> list[int]:
        """`streams` as integers."""
        return parse_numbers("--streams", self.streams, int, Range(1))


@dataclass
class Latency:
    """Latencies of a run in seconds.

    Attributes:
      first_partial: Per utterance with text: time from the start of its audio to its first text.
      final: Per utterance: time from the end of its audio to its final result.
      token_delay: Per token: time from the end of its encoder frame to the first result that contains it unchanged.
      compute: Total computation time.
      audio: Total duration of the audio.
    """

    first_partial: list[float] = field(default_factory=list)
    final: list[float] = field(default_factory=list)
    token_delay: list[float] = field(default_factory=list)
    compute: float = 0.0
    audio: float = 0.0

    def add(self, other: "Latency") -> None:
        """Add the latencies of another run."""
        for attribute in dataclasses.fields(self):
            setattr(self, attribute.name, getattr(self, attribute.name) + getattr(other, attribute.name))

    def as_dict(self) -> dict[str, Any]:
        """Return percentiles in seconds and the real-time factor."""
        figures: dict[str, Any] = {"real_time_factor": self.compute / self.audio, "audio": self.audio}
        for name in _LATENCIES:
            values = getattr(self, name)
            figures[name] = {str(p): float(np.percentile(values, p)) if values else None for p in _PERCENTILES}
        return figures


@dataclass(eq=False)
class _LiveStream:
    """An utterance whose audio arrives in real time.

    Attributes:
      samples: The audio (n,).
      start: Time at which it starts.
      stream: The stream that receives it.
      num_received: Number of samples passed to the stream.
      hypothesis: The current hypothesis.
      token_times: For each of its tokens, the time since which it has been shown unchanged.
      first_text: Time of the first text; None if there is none yet.
    """

    samples: Tensor
    start: float
    stream: Stream
    num_received: int = 0
    hypothesis: Hypothesis = field(default_factory=lambda: Hypothesis([], [], 0.0))
    token_times: list[float] = field(default_factory=list)
    first_text: float | None = None

    def update(self, hypothesis: Hypothesis, now: float) -> None:
        """Replace the current hypothesis."""
        unchanged = common_prefix_length(self.hypothesis.tokens, hypothesis.tokens)
        self.token_times = self.token_times[:unchanged] + [now] * (len(hypothesis.tokens) - unchanged)
        self.hypothesis = hypothesis
        if hypothesis.tokens and self.first_text is None:
            self.first_text = now


class Simulation:
    """Decode simultaneous streams on a simulated clock.

    The clock advances by the actual computation time, and jumps to the next packet when there is nothing to compute.
    The latencies equal those of a server of this speed, but the simulation takes less time than the audio.

    Args:
      decoder: The decoder of the streams.
      packet: Seconds of audio per packet.
      clock: Returns the elapsed computation time in seconds.
      language: Language of the streams.
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

    def run(self, utterances: Sequence[Tensor], num_streams: int) -> Latency:
        """Decode utterances (n,), `num_streams` at a time; when one ends, the next starts."""
        latency, now, pending = Latency(), 0.0, iter(utterances)
        # Start times are staggered: otherwise all chunks would be complete at the same time.
        active = [
            self._start(samples, index * self.chunk_seconds / num_streams)
            for index, samples in enumerate(islice(pending, num_streams))
        ]
        while active:
            started = self.clock()
            for live in active:
                self._receive(live, now)
            advanced = {id(stream) for stream in self.decoder.advance([live.stream for live in active])}
            changed = [live for live in active if id(live.stream) in advanced]
            hypotheses = self.decoder.results([live.stream for live in changed])
            elapsed = self.clock() - started
            latency.compute += elapsed
            now += elapsed
            for live, hypothesis in zip(changed, hypotheses, strict=True):
                live.update(hypothesis, now)
            for live in [live for live in active if self.decoder.is_done(live.stream)]:
                self._record(latency, live, now)
                active.remove(live)
                active += [self._start(samples, now) for samples in islice(pending, 1)]
            if not advanced:
                now = max(now, min(map(self._next_packet, active), default=now))
        return latency

    def _start(self, samples: Tensor, start: float) -> _LiveStream:
        return _LiveStream(samples, start, self.decoder.open(self.language))

    def _next_packet(self, live: _LiveStream) -> float:
        """Return the time at which the next packet is complete."""
        return live.start + min(live.num_received + self.packet, len(live.samples)) / self.sample_rate

    def _receive(self, live: _LiveStream, now: float) -> None:
        """Pass the packets that are complete to the stream; finish the stream after the last one."""
        if live.stream.input_finished:
            return
        recorded = round(max(0.0, now - live.start) * self.sample_rate)
        ended = recorded >= len(live.samples)
        complete = len(live.samples) if ended else recorded // self.packet * self.packet
        if complete > live.num_received:
            live.stream.accept_samples(live.samples[live.num_received : complete])
            live.num_received = complete
        if ended:
            live.stream.finish()

    def _record(self, latency: Latency, live: _LiveStream, now: float) -> None:
        """Add the latencies of a finished utterance."""
        seconds = len(live.samples) / self.sample_rate
        latency.audio += seconds
        latency.final.append(now - live.start - seconds)
        if live.first_text is not None:
            latency.first_partial.append(live.first_text - live.start)
        latency.token_delay += [
            shown - live.start - (frame + 1) * FRAME_SECONDS
            for shown, frame in zip(live.token_times, live.hypothesis.timestamps, strict=True)
        ]


def measure(config: LatencyConfig) -> str:
    """Measure the latency of an experiment, write the table to the results folder, and return it.

    Raises:
      ValueError: The checkpoint, masks, tokens or manifests are missing, damaged or inconsistent.
    """
    experiment = load_experiment(config)
    totals = {count: Latency() for count in config.stream_counts}
    for language in experiment.data.languages:
        cuts = experiment.data.loader(language.code, config.split).cuts
        selected = cuts[:: max(1, len(cuts) // config.utterances)][: config.utterances]
        utterances = [load_samples(cut) for cut in selected]
        simulation = Simulation(experiment.decoder, config.packet, language=language.code)
        simulation.run(utterances[:1], 1)  # warm-up: the first chunks of a process are slow
        for count, total in tqdm(totals.items(), f"measuring {language.name}", unit="measurement"):
            total.add(simulation.run(utterances, count))
    figures = {str(count): total.as_dict() for count, total in totals.items()}
    test_set = f"{experiment.data.corpus_cuts.result_name}-{config.split}"
    path = layout.result_file(config.results_dir, "latency", test_set, experiment.trained.suffix)
    table = format_latency(figures)
    write_json(path.with_suffix(".json"), figures)
    with atomic_write(path) as temporary:
        temporary.write_text(f"{table}\n", encoding="utf-8")
    return table


def format_latency(figures: Mapping[str, Mapping[str, Any]]) -> str:
    """Format `Latency.as_dict` by number of streams: median and 95th percentile in milliseconds."""
    rows = [
        [count, f"{entry['real_time_factor']:.4f}", *(_milliseconds(entry[name]) for name in _LATENCIES)]
        for count, entry in figures.items()
    ]
    header = ["streams", "real-time factor", *(f"{text} (ms, 50 % / 95 %)" for text in _LATENCIES.values())]
    return tabulate(rows, header, tablefmt="simple", stralign="right", disable_numparse=True)


def _milliseconds(percentiles: Mapping[str, float | None]) -> str:
    return " / ".join("-" if value is None else f"{1000 * value:.0f}" for value in percentiles.values())
