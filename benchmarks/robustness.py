#!/usr/bin/env python3
"""Word error rates with silence or noise around the speech, at other levels, and with the bandwidth of telephones.

Usage, after `make demo`, in egs/mls/ASR:

  ../../../benchmarks/robustness.py --exp-dir exp/demo/pathways --write 1

Every condition changes the same test utterances: zeros or white noise of a level before, after or between them (pairs
of utterances in one stream), a gain, or a sample rate of 8 kHz. A mark shows where the word error rate exceeds that of
the unchanged utterances by more than `GOAL` points.
"""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import soundfile
import soxr
import torch
from tables import put_table
from torch import Tensor

from icefall_pathways.constants import SAMPLE_RATE
from icefall_pathways.decoding.config import StreamingConfig
from icefall_pathways.decoding.cut_audio import load_samples
from icefall_pathways.decoding.decode_run import LoadedExperiment, load_experiment
from icefall_pathways.decoding.scoring import Utterance, score
from icefall_pathways.decoding.streaming import AudioError, EndpointConfig, Recognizer, Source, VadName, make_gate
from icefall_pathways.options import parse, run_script
from icefall_pathways.ranges import PositiveInt, Range, Seed, parse_numbers

GOAL = 1.0  # largest increase of the word error rate, in points
_TABLES = Path(__file__).with_suffix(".md")
_FILLS = {"zeros": None, "noise at -60 dBFS": -60.0, "noise at -45 dBFS": -45.0}
_POSITIONS = ("before", "after", "between")
_TELEPHONE_RATE = 8000  # Hz

Speech = tuple[Tensor, list[str]]
"""Samples (n,), and their words."""


@dataclass(frozen=True)
class RobustnessConfig(StreamingConfig):
    """Options of the robustness benchmark."""

    utterances: PositiveInt = 150
    """Largest number of utterances per language, drawn at random."""

    seed: Seed = 0
    """Seed of the draw and of the noise."""

    seconds: str = "0.3 1 3"
    """Durations of the silence, separated by spaces."""

    gains: str = "6 -6 -12 -20 -30"
    """Gains in dB, separated by spaces."""

    tables: tuple[Literal["silence", "gains", "bandwidth"], ...] = ("silence", "gains", "bandwidth")
    """Tables to measure."""

    vad: VadName = "none"
    """Voice activity detection, as in transcribe.py."""

    write: bool = False
    """Update the tables in robustness.md."""


@dataclass(frozen=True)
class Silence:
    """Silence around speech.

    Attributes:
      fill: A key of `_FILLS`.
      position: before, after, or between pairs of utterances.
      seconds: Duration.
    """

    fill: str
    position: str
    seconds: float

    @property
    def name(self) -> str:
        """The row of the table."""
        return f"{self.seconds:g} s of {self.fill} {self.position}"

    def apply(self, speech: Sequence[Speech], rng: np.random.Generator) -> Iterator[Speech]:
        """Yield the speech with silence."""
        if self.position == "between":
            for (first, words), (second, more_words) in zip(speech[::2], speech[1::2], strict=False):
                yield torch.cat([first, self._make(rng), second]), words + more_words
            return
        for samples, words in speech:
            parts = [self._make(rng), samples]
            yield torch.cat(parts if self.position == "before" else parts[::-1]), words

    def _make(self, rng: np.random.Generator) -> Tensor:
        level = _FILLS[self.fill]
        amplitude = 0.0 if level is None else 10 ** (level / 20)
        noise = rng.standard_normal(round(self.seconds * SAMPLE_RATE)).astype(np.float32)
        return torch.from_numpy(noise) * amplitude


@dataclass(frozen=True)
class Gain:
    """Another level, in dB; samples of more than full scale are not clipped."""

    decibels: float

    @property
    def name(self) -> str:
        """The row of the table."""
        return f"{self.decibels:+g} dB"

    def apply(self, speech: Sequence[Speech], rng: np.random.Generator) -> Iterator[Speech]:
        """Yield the speech at this level."""
        return ((samples * 10 ** (self.decibels / 20), words) for samples, words in speech)


@dataclass(frozen=True)
class Telephone:
    """A sample rate of 8 kHz, with 16 bits or the 8 bits of G.711 mu-law."""

    mu_law: bool

    @property
    def name(self) -> str:
        """The row of the table."""
        return "8 kHz, mu-law" if self.mu_law else "8 kHz"

    def apply(self, speech: Sequence[Speech], rng: np.random.Generator) -> Iterator[Speech]:
        """Yield the speech, resampled to 8 kHz and back."""
        for samples, words in speech:
            file = io.BytesIO()
            narrow = soxr.resample(samples.numpy(), SAMPLE_RATE, _TELEPHONE_RATE)
            subtype = "ULAW" if self.mu_law else "PCM_16"
            soundfile.write(file, narrow, _TELEPHONE_RATE, format="WAV", subtype=subtype)
            file.seek(0)
            decoded, _ = soundfile.read(file, dtype="float32")
            yield torch.from_numpy(soxr.resample(decoded, _TELEPHONE_RATE, SAMPLE_RATE)), words


Condition = Silence | Gain | Telephone


def _conditions(config: RobustnessConfig) -> dict[str, list[Condition]]:
    """Return the conditions of each table."""
    seconds = parse_numbers("--seconds", config.seconds, float)
    return {
        "silence": [Silence(fill, position, s) for position in _POSITIONS for fill in _FILLS for s in seconds],
        "gains": [Gain(value) for value in parse_numbers("--gains", config.gains, float, Range())],
        "bandwidth": [Telephone(mu_law=False), Telephone(mu_law=True)],
    }


def measure(config: RobustnessConfig) -> dict[str, list[list[str]]]:
    """Measure and print the word error rates; return the rows of each table, the header first."""
    experiment, conditions = load_experiment(config), _conditions(config)
    speech = {language.code: _draw(experiment, config, language.code) for language in experiment.data.languages}
    clean = {code: _error_rate(experiment, config, code, utterances) for code, utterances in speech.items()}
    print("unchanged", clean, flush=True)

    def row(condition: Condition) -> list[str]:
        cells = [condition.name]
        for code, utterances in speech.items():
            rng = np.random.default_rng(config.seed)
            wer = _error_rate(experiment, config, code, list(condition.apply(utterances, rng)))
            cells.append(_cell(wer, clean[code]))
        print(" | ".join(cells), flush=True)
        return cells

    first = [["condition", *speech], ["unchanged", *(f"{wer:.1f}" for wer in clean.values())]]
    return {table: [*first, *map(row, conditions[table])] for table in config.tables}


def _cell(wer: float, clean: float) -> str:
    mark = " **" if round(wer - clean, 6) > GOAL else ""
    return f"{wer:.1f} ({wer - clean:+.1f}){mark}"


def _draw(experiment: LoadedExperiment, config: RobustnessConfig, language: str) -> list[Speech]:
    cuts = experiment.data.loader(language, config.split).cuts
    order = np.random.default_rng(config.seed).permutation(len(cuts))[: config.utterances]
    words = experiment.trained.tokenizer.words
    return [(load_samples(cuts[i]), words(cuts[i].supervisions[0].text)) for i in order]


def _error_rate(
    experiment: LoadedExperiment, config: RobustnessConfig, language: str, speech: Sequence[Speech]
) -> float:
    sources = [Source(i, samples.split(SAMPLE_RATE), language) for i, (samples, _) in enumerate(speech)]
    tokenizer = experiment.trained.tokenizer
    tokens = _decode(experiment, config, sources)
    words = [tokenizer.words(tokenizer.decode([tokens[i]])[0]) for i in range(len(speech))]
    return score(Utterance(str(i), speech[i][1], words[i]) for i in range(len(speech))).wer


def _decode(experiment: LoadedExperiment, config: RobustnessConfig, sources: list[Source[int]]) -> dict[int, list[int]]:
    """Return the tokens of each source, as streaming_decode.py or, with voice activity detection, transcribe.py."""
    if config.vad == "none":
        decoded = experiment.decoder.decode(sources, config.num_decode_streams)
        return {i: hypothesis.tokens for i, hypothesis in decoded}
    recognizer = Recognizer(experiment.decoder, EndpointConfig(), make_gate=partial(make_gate, config.vad))
    tokens: dict[int, list[int]] = {source.key: [] for source in sources}
    for i, result in recognizer.recognize(sources, config.num_decode_streams, _raise):
        tokens[i] += result.tokens if result.is_final else []
    return tokens


def _raise(_key: int, error: AudioError) -> None:
    raise error


def main() -> None:
    """Print the tables; with --write 1, update robustness.md."""
    config = parse(RobustnessConfig, __doc__ or "")
    tables = measure(config)
    if config.write:
        for name, (header, *rows) in tables.items():
            put_table(_TABLES, f"{name}, --vad {config.vad}", header, rows)


if __name__ == "__main__":
    run_script(main)
