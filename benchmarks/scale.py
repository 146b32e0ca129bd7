#!/usr/bin/env python3
r"""Benchmark the index and the sampling of training cuts for corpora of different sizes.

Usage:

  OMP_NUM_THREADS=1 benchmarks/scale.py --num-cuts "10000 100000 1000000 13600000" --write 1

Corpora are generated: English cuts of 10 to 20 s of 5490 speakers, one speaker after another, as in the manifests of
MLS. Manifests are written and indexed up to --max-manifest cuts; of larger corpora there is only an index. A spawned
process opens the index, draws the cuts of an update, as a training does when it starts and resumes, and times the draws
of one rank among many. All durations are CPU times.
"""

import resource
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
from lhotse import LilcomChunkyWriter, MonoCut
from lhotse.dataset.sampling.dynamic_bucketing import DynamicBucketer, estimate_duration_buckets
from safetensors.numpy import save_file
from tables import print_table

from icefall_pathways.data.cut_index import METADATA_KEY, ROW, CutIndex
from icefall_pathways.data.datamodule import DataConfig, SpeechDataModule
from icefall_pathways.data.indexing import open_index
from icefall_pathways.data.sampling import BatchStream, LanguageDraws, MonolingualSampler, SamplingConfig, SortedCuts
from icefall_pathways.data.tokenizer import Tokenizer, train_tokenizer
from icefall_pathways.data.training_cuts import CutLimits, TrainingCuts
from icefall_pathways.languages import normalize_languages
from icefall_pathways.options import parse, run_script
from icefall_pathways.sharding.jsonl import write_jsonl

REPORT = Path(__file__).with_suffix(".md")
NUM_SPEAKERS = 5490  # of the training set of English MLS
WORDS = tuple("the of and one two three house river morning answered country little great".split())  # noqa: SIM905
WORLD_SIZES = (1, 8, 64, 256)
DEPTH = 1_000_000  # updates before a resume
LIMITS = CutLimits(0.0, 20.0, on_the_fly=False)


@dataclass(frozen=True)
class ScaleConfig:
    """Options of the benchmark."""

    num_cuts: str = "10000 100000 1000000 13600000"
    """Numbers of training cuts."""

    max_manifest: int = 100_000
    """Largest number of cuts for which a manifest is written and indexed."""

    write: bool = False
    """Write the results to benchmarks/scale.md."""


def make_durations(num_cuts: int) -> npt.NDArray[np.float64]:
    """Return durations in seconds, (num_cuts,), distributed as those of MLS."""
    return np.random.default_rng(1).triangular(10, 14.5, 20, num_cuts).round(2)


def make_speakers(num_cuts: int) -> npt.NDArray[np.int64]:
    """Return the speaker of each cut, (num_cuts,): one after another, with log-normally distributed numbers of cuts."""
    shares = np.random.default_rng(2).lognormal(0, 1, NUM_SPEAKERS)
    return np.searchsorted(np.cumsum(shares) / shares.sum(), (np.arange(num_cuts) + 0.5) / num_cuts)


def make_text(rng: Random, duration: float) -> str:
    """Return words at the rate of read speech."""
    return " ".join(rng.choice(WORDS) for _ in range(int(2.5 * duration)))


def make_cuts(num_cuts: int) -> Iterator[dict[str, Any]]:
    """Yield cuts with stored features as stage 3 of prepare.sh writes them; the features do not exist."""
    rng = Random(1)
    for i, (duration, speaker) in enumerate(zip(make_durations(num_cuts), make_speakers(num_cuts), strict=True)):
        cut_id, seconds, num_frames = f"{speaker}_{speaker}_{i:08d}", float(duration), round(100 * duration)
        source = {"type": "file", "channels": [0], "source": f"/data/mls_english/train/audio/{cut_id}.opus"}
        times = {"start": 0.0, "duration": seconds}
        identity = {"id": cut_id, "recording_id": cut_id, "channel": 0, "language": "en", "speaker": str(speaker)}
        features = {"type": "kaldifeat-fbank", "num_frames": num_frames, "num_features": 80, "frame_shift": 0.01}
        features |= {"sampling_rate": 16000, "storage_type": "lilcom_chunky", "storage_path": "/data/feats-1.lca"}
        samples = {"sampling_rate": 16000, "num_samples": int(16000 * seconds), "duration": seconds, "channel_ids": [0]}
        yield {
            "id": cut_id,
            **times,
            "channel": 0,
            "supervisions": [identity | times | {"text": make_text(rng, seconds)}],
            "features": features | times | {"storage_key": "0,30000", "recording_id": cut_id, "channels": 0},
            "recording": {"id": cut_id, "sources": [source]} | samples,
            "type": "MonoCut",
        }


def write_index(path: Path, num_cuts: int) -> None:
    """Write an index of usable cuts without a manifest."""
    columns = {name: np.zeros(num_cuts, ROW[name]) for name in ROW.names or ()}
    columns |= {"duration": make_durations(num_cuts), "weight": np.ones(num_cuts, ROW["weight"])}
    save_file(columns, path, {METADATA_KEY: "{}"})


def peak_megabytes() -> float:
    """Return the peak resident memory of this process in 10^6 bytes, including mapped files and libraries."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / 1e6


def cpu_seconds(function: Callable[[], Any]) -> tuple[float, Any]:
    """Return the CPU seconds of a call, with those of the processes that it starts, and its result."""

    def used() -> float:
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        return time.process_time() + children.ru_utime + children.ru_stime

    start = used()
    result = function()
    return used() - start, result


def measure_start(index: Path) -> dict[str, float]:
    """Measure in this process: opening an index, starting, resuming, and sampling on one of several ranks."""

    def open_stream() -> BatchStream:
        cuts = TrainingCuts.select(CutIndex(index, [], index.parent), LIMITS)
        return BatchStream(SortedCuts("en", cuts.numbers, cuts.durations), SamplingConfig())

    def draw(start_update: int, num_updates: int, world_size: int) -> list[Any]:
        draws = LanguageDraws({"en": 1.0}, 1.0, 1)
        return list(MonolingualSampler({"en": stream}, draws, 1, world_size - 1, world_size, start_update, num_updates))

    seconds, stream = cpu_seconds(open_stream)
    results = {"open": seconds, "start": cpu_seconds(lambda: draw(0, 1, 8))[0]}
    results["resume"] = cpu_seconds(lambda: draw(DEPTH, 1, 8))[0]
    for world_size in WORLD_SIZES:
        draw(0, 10, world_size)
        seconds = min(cpu_seconds(partial(draw, 0, 200, world_size))[0] for _ in range(3))
        results[f"ms, {world_size} ranks"] = 1e3 * seconds / 200
    results["memory"] = peak_megabytes()
    return results


def measure_in_process(function: Callable[..., Any], *args: Any) -> Any:
    """Return the result of a call in a separate process."""
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(function, args)


def measure_index(folder: Path, num_cuts: int, tokenizer: Tokenizer) -> dict[str, float]:
    """Write a manifest and measure the first and the second opening of its index, and the reading of cuts."""
    manifest = folder / "cuts.jsonl.gz"
    write_jsonl(manifest, make_cuts(num_cuts))
    seconds, index = cpu_seconds(lambda: open_index([manifest], tokenizer, folder, "en"))
    results = {"build": seconds, "manifest": manifest.stat().st_size / 1e6}
    results["index"] = index.path.stat().st_size / 1e6
    time.sleep(2.5)  # so that the next call remembers the hash of the manifest
    open_index([manifest], tokenizer, folder, "en")
    results["open"] = cpu_seconds(lambda: open_index([manifest], tokenizer, folder, "en"))[0]
    numbers = np.random.default_rng(1).integers(num_cuts, size=500)
    results["read"] = cpu_seconds(lambda: index.read(numbers))[0] / len(numbers)
    return results


def measure_batches(num_cuts: int) -> list[list[str]]:
    """Compare 1000 batches with those of Lhotse's sampler, which the recipe used before."""
    durations, speakers = make_durations(num_cuts), make_speakers(num_cuts)
    order = np.argsort(durations, kind="stable")
    stream = BatchStream(SortedCuts("en", order.astype(np.uint32), durations[order]), SamplingConfig())
    cuts = (MonoCut(str(i), 0, float(duration), 0) for i, duration in enumerate(durations))
    first = [MonoCut(str(i), 0, float(duration), 0) for i, duration in enumerate(durations[:10_000])]
    bins = estimate_duration_buckets(first, 10)
    bucketer = DynamicBucketer(cuts, bins, 1, max_duration=200.0, buffer_size=20_000, shuffle=True, rng=Random(1))
    batches = {"Lhotse": [[int(cut.id) for cut in batch] for batch in islice(bucketer, 1000)]}
    batches["index"] = stream.cuts(np.random.default_rng(1).integers(stream.num_batches, size=1000), 1)
    return [[str(num_cuts), name, *_describe(rows, durations, speakers)] for name, rows in batches.items()]


def measure_validation(folder: Path, num_cuts: int = 200) -> list[list[str]]:
    """Measure how long each of several ranks takes to load its dev batches, with 10 s of stored features per cut."""
    features = np.random.default_rng(1).normal(-8, 2, (1000, 80)).astype(np.float32)
    with LilcomChunkyWriter(folder / "feats") as writer:
        keys = [writer.write(str(i), features) for i in range(num_cuts)]
    cuts = list(make_cuts(num_cuts))
    for cut, key in zip(cuts, keys, strict=True):
        cut["features"] |= {
            "num_frames": 1000,
            "duration": 10.0,
            "storage_path": str(writer.storage_path),
            "storage_key": key,
        }
        cut["duration"] = cut["supervisions"][0]["duration"] = 10.0
    write_jsonl(folder / "mls-english_cuts_dev.jsonl.gz", cuts)
    data = SpeechDataModule(DataConfig(manifest_dir=folder, languages=normalize_languages("en")))
    seconds, loader = cpu_seconds(lambda: data.loader("en", "dev", 5.0))
    rows = []
    for world_size in (1, 8):
        load = cpu_seconds(lambda: list(loader.shard(0, world_size, 0)))[0]  # noqa: B023  # called at once
        rows.append([str(world_size), f"{1e3 * seconds / num_cuts:.2f}", f"{1e3 * load / num_cuts:.2f}"])
    return rows


def _describe(batches: list[list[int]], durations: Any, speakers: Any) -> list[str]:
    padded = sum(len(batch) * durations[batch].max() for batch in batches)
    share = np.mean([len(set(speakers[batch])) / len(batch) for batch in batches])
    num_cuts = sum(map(len, batches))
    padding = 1 - durations[np.concatenate(batches)].sum() / padded
    return [f"{num_cuts / len(batches):.1f}", f"{100 * padding:.2f} %", f"{100 * share:.1f} %"]


def main() -> None:
    """Run the benchmark and print the tables."""
    config = parse(ScaleConfig, __doc__)
    sizes = [int(size) for size in config.num_cuts.split()]
    starts, indexes, batches = [], [], []
    for num_cuts in sizes:
        with TemporaryDirectory() as name:
            folder = Path(name)
            write_index(folder / "en.safetensors", num_cuts)
            start = measure_in_process(measure_start, folder / "en.safetensors")
            starts.append([str(num_cuts), *(f"{start[key]:.3f}" for key in ("open", "start", "resume"))])
            starts[-1] += [f"{start[f'ms, {world_size} ranks']:.2f}" for world_size in WORLD_SIZES]
            starts[-1].append(f"{start['memory']:.0f}")
            if num_cuts <= config.max_manifest:
                rng = Random(2)
                texts = [make_text(rng, 15) for _ in range(200)]
                tokenizer = Tokenizer(train_tokenizer(texts, 32, folder / "lang"))
                index = measure_index(folder, num_cuts, tokenizer)
                row = [f"{index['build']:.1f}", f"{index['manifest']:.0f}", f"{index['index']:.0f}"]
                indexes.append([str(num_cuts), *row, f"{1e3 * index['open']:.1f}", f"{1e3 * index['read']:.2f}"])
        if num_cuts <= config.max_manifest:
            batches += measure_batches(num_cuts)
    with TemporaryDirectory() as name:
        validation = measure_validation(Path(name))
    tables = {
        "start": (
            ["cuts", "open (s)", "first update (s)", f"update {DEPTH} (s)"]
            + [f"ms per update, {world_size} ranks" for world_size in WORLD_SIZES]
            + ["peak memory (MB)"],
            starts,
        ),
        "index": (["cuts", "build (s)", "manifest (MB)", "index (MB)", "open again (ms)", "read a cut (ms)"], indexes),
        "validation": (["ranks", "select, ms per dev cut", "load, ms per dev cut"], validation),
        "batches": (["cuts", "sampler", "cuts per batch", "padding", "different speakers in a batch"], batches),
    }
    for name, (header, rows) in tables.items():
        print_table(header, rows, REPORT if config.write else None, name)


if __name__ == "__main__":
    run_script(main)
