#!/usr/bin/env python3
r"""Benchmark the stages of the data preparation per utterance, and compute their costs for all of MLS.

Usage:

  OMP_NUM_THREADS=1 benchmarks/scale_prepare.py --write 1

Corpora have the layout of MLS, generated transcripts, and hard links to 16 recordings of 10 to 20 s. Each measurement
runs in a process of its own, with one thread; times are CPU times.
"""

import random
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fake_mls import MLS_UTTERANCES, make_language, write_cuts
from scale import cpu_seconds, make_cuts, peak_megabytes
from tables import print_table

from icefall_pathways.corpora.mls import prepare_manifests
from icefall_pathways.data.corpus_cuts import CorpusCuts
from icefall_pathways.data.cut_index import CutIndex
from icefall_pathways.data.data_config import DataConfig
from icefall_pathways.data.fbank import ComputeFbankConfig, compute_fbank
from icefall_pathways.data.sample_config import SampleConfig
from icefall_pathways.data.shar import SharConfig, export_shar
from icefall_pathways.data.tokenizer import Tokenizer, train_tokenizer
from icefall_pathways.data.tokenizer_texts import TokenizerTexts
from icefall_pathways.languages import get_language, normalize_languages
from icefall_pathways.options import parse, run_script
from icefall_pathways.ranges import Options, PositiveInt
from icefall_pathways.sharding.executors import Workers
from icefall_pathways.sharding.jsonl import write_jsonl

REPORT = Path(__file__).with_name("scale.md")
LANGUAGE = get_language("en")
HELD_OUT = 10  # utterances of dev, and of test
VOCAB_SIZE = 500
READ_AT_ONCE = 13  # cuts; a batch of --max-duration 200


@dataclass(frozen=True)
class PreparationConfig(Options):
    """Options of the benchmark."""

    num_utterances: tuple[PositiveInt, ...] = (10_000, 100_000)
    """Numbers of utterances for manifests and index."""

    num_features: PositiveInt = 1000
    """Number of utterances for features and tar files."""

    num_transcripts: PositiveInt = 320_000
    """Number of transcripts for SentencePiece; the default gives the largest sample of prepare.sh, 60 M characters."""

    write: bool = False
    """Write the results to benchmarks/scale.md."""


@dataclass(frozen=True)
class Measurement:
    """The costs of a stage.

    Attributes:
      stage: Its number in prepare.sh, and its name.
      size: Utterances of the measurement.
      seconds: CPU seconds.
      megabytes: Peak resident memory of its largest process, with libraries, in 10^6 bytes.
      num_bytes: Size of its files.
      is_constant: The costs are the same for larger corpora.
    """

    stage: str
    size: int
    seconds: float
    megabytes: float
    num_bytes: int = 0
    is_constant: bool = False

    def row(self) -> list[str]:
        """Return the row of the table of measurements."""
        time_per_utterance, bytes_per_utterance = 1e3 * self.seconds / self.size, self.num_bytes / self.size
        size = f"{bytes_per_utterance:.0f}" if self.num_bytes else ""
        return [self.stage, str(self.size), f"{time_per_utterance:.3f}", size, f"{self.megabytes:.0f}"]

    def computed_row(self, num_utterances: int) -> list[str]:
        """Return the row of the table of computed costs of a corpus."""
        factor = 1 if self.is_constant else num_utterances / self.size
        size = f"{factor * self.num_bytes / 1e9:.1f}" if self.num_bytes else ""
        return [self.stage, f"{factor * self.seconds / 3600:.2f}", size]


def run_in_process(function: Callable[..., Any], *args: Any) -> tuple[float, float]:
    """Return the CPU seconds and the peak memory in 10^6 bytes of a call in a separate process."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(measure_call, function, *args).result()


def measure_call(function: Callable[..., Any], *args: Any) -> tuple[float, float]:
    """Return the CPU seconds and the peak memory in 10^6 bytes of a call in this process."""
    seconds, _ = cpu_seconds(lambda: function(*args))
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e6
    return seconds, max(peak_megabytes(), children)


def size_of(folder: Path, pattern: str = "*") -> int:
    """Return the size in bytes of the files of a folder, with its subfolders."""
    return sum(path.stat().st_size for path in folder.rglob(pattern) if path.is_file())


def write_manifests(corpus_dir: Path, folder: Path) -> None:
    """Run stage 1 in this process."""
    prepare_manifests(corpus_dir, folder, [LANGUAGE], "train", Workers())


def write_features(manifest_dir: Path, folder: Path) -> None:
    """Run stage 3 in this process."""
    compute_fbank(ComputeFbankConfig(manifest_dir=manifest_dir, output_dir=folder, languages="en", num_jobs=1))


def read_texts(cuts_dir: Path) -> None:
    """Read the transcripts as stage 5 does."""
    list(_sample(cuts_dir))


def train_on_sample(cuts_dir: Path, folder: Path) -> None:
    """Run stage 5 in this process."""
    train_tokenizer(_sample(cuts_dir), VOCAB_SIZE, folder)


def _sample(cuts_dir: Path) -> Iterator[str]:
    config = SampleConfig(spm_sentences_per_language=10_000_000)  # one language stands for all
    return TokenizerTexts(cuts_dir, [LANGUAGE], config).sample()


def write_index(cuts_dir: Path, bpe_model: Path) -> None:
    """Run stage 6."""
    _cuts(cuts_dir, bpe_model).open_index(LANGUAGE)


def write_shar(cuts_dir: Path, bpe_model: Path) -> None:
    """Run stage 7 in this process."""
    cuts = _cuts(cuts_dir, bpe_model)
    export_shar(cuts.open_index(LANGUAGE), cuts.training_files(LANGUAGE), SharConfig(), Workers())


def _cuts(cuts_dir: Path, bpe_model: Path, from_shar: bool = False) -> CorpusCuts:
    config = DataConfig(manifest_dir=cuts_dir, languages=normalize_languages("en"), from_shar=from_shar)
    return CorpusCuts(config, Tokenizer(bpe_model))


def measure_manifests(folder: Path, size: int) -> Measurement:
    """Measure stage 1."""
    make_language(folder / "mls", LANGUAGE, size, held_out=HELD_OUT)
    costs = run_in_process(write_manifests, folder / "mls", folder / "manifests")
    return Measurement("1: manifests", size + 2 * HELD_OUT, *costs, size_of(folder / "manifests"))


def measure_features(folder: Path, size: int, audio_format: str) -> Measurement:
    """Measure stage 3; the features are in the folder `fbank`."""
    make_language(folder / "mls", LANGUAGE, size, audio_format, HELD_OUT)
    write_manifests(folder / "mls", folder / "manifests")
    costs = run_in_process(write_features, folder / "manifests", folder / "fbank")
    size += 2 * HELD_OUT
    return Measurement(f"3: features from {audio_format}", size, *costs, size_of(folder / "fbank"))


def measure_tokenizer(folder: Path, size: int) -> list[Measurement]:
    """Measure the two steps of stage 5: reading all transcripts, and training on a sample."""
    write_cuts(folder, LANGUAGE, size)
    reading = run_in_process(read_texts, folder)
    seconds, megabytes = run_in_process(train_on_sample, folder, folder / "lang")
    return [
        Measurement("5: read transcripts", size, *reading),
        Measurement("5: train SentencePiece", size, seconds - reading[0], megabytes, is_constant=True),
    ]


def measure_index(folder: Path, size: int, bpe_model: Path) -> Measurement:
    """Measure stage 6."""
    folder.mkdir()
    write_jsonl(folder / "mls-english_cuts_train.jsonl.gz", make_cuts(size))
    costs = run_in_process(write_index, folder, bpe_model)
    return Measurement("6: index", size, *costs, size_of(folder, "*.safetensors"))


def measure_shar(cuts_dir: Path, size: int, bpe_model: Path) -> Measurement:
    """Measure stage 7 on the cuts of `measure_features`."""
    write_index(cuts_dir, bpe_model)
    before = size_of(cuts_dir)
    costs = run_in_process(write_shar, cuts_dir, bpe_model)
    return Measurement("7: tar files", size, *costs, size_of(cuts_dir) - before)


def measure_reading(cuts_dir: Path, bpe_model: Path, rounds: int = 3) -> list[list[str]]:
    """Measure the loading of cuts with their features, in batches, in the order of training."""
    files, shar = (_cuts(cuts_dir, bpe_model, from_shar).open_index(LANGUAGE) for from_shar in (False, True))
    numbers = list(range(len(files)))
    shuffled = random.Random(1).sample(numbers, len(numbers))
    sources = {"manifest and feature files, in random order": (files, shuffled), "tar files": (shar, numbers)}
    rows = []
    for name, (index, order) in sources.items():
        times = [_time_reading(index, order) for _ in range(rounds)]
        rows.append([name, *(f"{1e3 * min(column) / len(numbers):.2f}" for column in zip(*times, strict=True))])
    return rows


def _time_reading(index: CutIndex, numbers: Sequence[int]) -> tuple[float, float]:
    """Return CPU seconds and elapsed seconds."""
    start = time.monotonic()
    seconds, _ = cpu_seconds(lambda: _load(index, numbers))
    return seconds, time.monotonic() - start


def _load(index: CutIndex, numbers: Sequence[int]) -> None:
    for start in range(0, len(numbers), READ_AT_ONCE):
        for cut in index.load(numbers[start : start + READ_AT_ONCE]):
            cut.load_features()


def measure(config: PreparationConfig) -> tuple[list[Measurement], list[list[str]]]:
    """Return the costs of all stages, and the rows of the table of reading."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        tokenizer = measure_tokenizer(folder / "texts", config.num_transcripts)
        bpe_model = folder / "texts" / "lang" / "bpe.model"
        features = [measure_features(folder / audio, config.num_features, audio) for audio in ("opus", "flac")]
        shar = measure_shar(folder / "flac" / "fbank", config.num_features, bpe_model)
        reading = measure_reading(folder / "flac" / "fbank", bpe_model)
        manifests = [measure_manifests(folder / str(size), size) for size in config.num_utterances]
        indexes = [measure_index(folder / f"cuts-{size}", size, bpe_model) for size in config.num_utterances]
    return [*manifests, *features, *tokenizer, *indexes, shar], reading


def main(config: PreparationConfig) -> None:
    """Measure, and print or write the tables."""
    measurements, reading = measure(config)
    largest = {measurement.stage: measurement for measurement in measurements}
    tables = {
        "preparation": (
            ["stage", "utterances", "ms per utterance", "bytes per utterance", "peak memory (MB)"],
            [measurement.row() for measurement in measurements],
        ),
        "preparation of MLS": (
            ["stage", "CPU hours, computed", "disk (GB), computed"],
            [measurement.computed_row(MLS_UTTERANCES) for measurement in largest.values()],
        ),
        "reading": (["source", "CPU, ms per cut", "elapsed, ms per cut"], reading),
    }
    for name, (header, rows) in tables.items():
        print_table(header, rows, REPORT if config.write else None, name)


if __name__ == "__main__":
    run_script(lambda: main(parse(PreparationConfig, __doc__)))
