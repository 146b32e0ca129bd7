#!/usr/bin/env python3
r"""Benchmark time and memory of operations on masks of a large model.

Usage:

  OMP_NUM_THREADS=1 benchmarks/masks.py --millions 100 --num-languages 8

The model is a stack of transformer layers; only their shapes are used. Every operation runs in a separate process; its
memory is the peak of the process minus its memory without masks, so the codes are included. Seconds are CPU time, which
is independent of other jobs on the machine. Pruning also holds weights and scores, as floats.
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.queues import Queue
from pathlib import Path

import torch
from tabulate import tabulate
from torch import nn

from icefall_pathways.options import parse, run_script
from icefall_pathways.pathways.masks import MasksHeader, PathwayMasks, code_type
from icefall_pathways.pathways.pruning import prune_by_scores

_WIDTH, _INNER = 512, 2048
_LAYER = {
    "query_key_value": (3 * _WIDTH, _WIDTH),
    "out": (_WIDTH, _WIDTH),
    "up": (_INNER, _WIDTH),
    "down": (_WIDTH, _INNER),
}


@dataclass(frozen=True)
class BenchmarkConfig:
    """Options of the benchmark."""

    millions: int = 100
    """Minimum number of prunable weights, in millions."""

    num_languages: int = 8
    """Number of languages; each has a random mask."""

    density: float = 0.3
    """Share of the weights that each language uses."""

    @property
    def languages(self) -> tuple[str, ...]:
        """Artificial language tags."""
        return tuple(f"l{i}" for i in range(self.num_languages))

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """The shapes of the model's parameters by name."""
        layers = -(-self.millions * 1_000_000 // sum(a * b for a, b in _LAYER.values()))
        return {f"layers.{i}.{name}.weight": shape for i in range(layers) for name, shape in _LAYER.items()}


_WARM_UP = BenchmarkConfig(millions=1)


def build(config: BenchmarkConfig, languages: tuple[str, ...]) -> PathwayMasks:
    """Return masks with random entries."""
    codes = {name: torch.zeros(shape, dtype=code_type(len(languages))) for name, shape in config.shapes.items()}
    masks = PathwayMasks(MasksHeader(languages), codes)
    generator = torch.Generator().manual_seed(len(languages))
    for name, shape in config.shapes.items():
        for language in languages:
            masks.set_mask(name, language, torch.rand(shape, generator=generator) < config.density)
    return masks


def _save(config: BenchmarkConfig, folder: Path) -> Callable[[], object]:
    masks = build(config, config.languages)
    return lambda: masks.save(folder / "all.safetensors")


def _load(config: BenchmarkConfig, folder: Path) -> Callable[[], object]:
    return lambda: PathwayMasks.load(folder / "all.safetensors").codes


def _save_parts(config: BenchmarkConfig, folder: Path) -> Callable[[], object]:
    masks = PathwayMasks.load(folder / "all.safetensors")

    def run() -> None:
        for language in config.languages:
            masks.restrict([language]).save(folder / f"{language}.safetensors")

    return run


def _merge(config: BenchmarkConfig, folder: Path) -> Callable[[], object]:
    parts: Iterator[PathwayMasks] = (PathwayMasks.load(folder / f"{tag}.safetensors") for tag in config.languages)
    return lambda: PathwayMasks.merge(parts)


def _overlap(config: BenchmarkConfig, folder: Path) -> Callable[[], object]:
    masks = PathwayMasks.load(folder / "all.safetensors")
    return masks.overlaps


def _prune(allocation: str, granularity: str = "element") -> Callable[[BenchmarkConfig, Path], Callable[[], object]]:
    def prepare(config: BenchmarkConfig, folder: Path) -> Callable[[], object]:
        codes = {name: torch.ones(shape, dtype=torch.uint8) for name, shape in config.shapes.items()}
        masks = PathwayMasks(MasksHeader(("l0",), granularity=granularity, allocation=allocation), codes)
        scores = {
            name: nn.Linear(shape[1], shape[0], bias=False).weight.detach().abs()
            for name, shape in config.shapes.items()
        }
        return lambda: prune_by_scores(scores, masks, ["l0"], 0.5)

    return prepare


#: In this order, because operations read the files of earlier ones.
OPERATIONS: dict[str, Callable[[BenchmarkConfig, Path], Callable[[], object]]] = {
    "build the masks of all languages": lambda config, folder: lambda: build(config, config.languages),
    "save": _save,
    "load": _load,
    "split by language and save each": _save_parts,
    "load these and merge them": _merge,
    "overlap of all pairs": _overlap,
    "prune one language, layer-wise": _prune("layer-wise"),
    "prune one language, global": _prune("global"),
    "prune one language, block:4x4": _prune("layer-wise", "block:4x4"),
    "prune one language, 2:4": _prune("layer-wise", "2:4"),
}


def _memory(field: str) -> int:
    """Return VmRSS (current memory) or VmHWM (peak) of this process in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])


def _measure(name: str, config: BenchmarkConfig, folder: Path, results: "Queue[tuple[float, int]]") -> None:
    OPERATIONS[name](_WARM_UP, folder / "warm-up")()  # loads libraries before the measurement
    before = _memory("VmRSS")
    run = OPERATIONS[name](config, folder)
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    start = time.process_time()
    result = run()  # kept until the peak has been read
    seconds = time.process_time() - start
    results.put((seconds, _memory("VmHWM") - before))
    del result


def measure(config: BenchmarkConfig) -> list[dict[str, float | str]]:
    """Return CPU seconds and peak memory of all operations; memory in bytes, and relative to the size of the codes."""
    weights = sum(a * b for a, b in config.shapes.values())
    codes = weights * torch.iinfo(code_type(config.num_languages)).bits // 8
    context = get_context("fork")
    figures = []
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "warm-up").mkdir()
        for name in OPERATIONS:
            results: Queue[tuple[float, int]] = context.Queue()
            process = context.Process(target=_measure, args=(name, config, Path(folder), results))
            process.start()
            process.join()
            if process.exitcode:
                raise RuntimeError(f"{name!r} failed with exit code {process.exitcode}: see its error above")
            seconds, peak = results.get()
            figures.append({"operation": name, "seconds": seconds, "peak": peak, "codes": codes, "ratio": peak / codes})
    return figures


def main() -> None:
    """Run the benchmark and print the table."""
    config = parse(BenchmarkConfig, __doc__)
    figures = measure(config)
    rows = [[f["operation"], f["seconds"], float(f["peak"]) / 2**20, f["ratio"]] for f in figures]
    print(f"codes: {float(figures[0]['codes']) / 2**20:.0f} MiB; {torch.get_num_threads()} threads")
    header = ["operation", "CPU seconds", "peak (MiB)", "peak / codes"]
    print(tabulate(rows, header, tablefmt="pipe", floatfmt=("", ".1f", ".0f", ".2f")))


if __name__ == "__main__":
    run_script(main)
