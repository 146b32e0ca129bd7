#!/usr/bin/env python3
r"""Measure how long masks of a large model take, and how much memory.

Usage:

  OMP_NUM_THREADS=1 benchmarks/masks.py --millions 100 --num-languages 8

The model is a stack of transformer layers, of which only the shapes matter. Every operation runs in a process of its
own; its memory is the most that the process had at any moment, above what it has without masks: the codes themselves
are part of it. Seconds are those of the processor, whatever else runs on the machine. Pruning also holds weights and
scores, as floats.
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
    """What to measure."""

    millions: int = 100
    """Prunable weights of the model, in millions, at least."""

    num_languages: int = 8
    """Languages with a random mask each."""

    density: float = 0.3
    """Share of the weights that each language uses."""

    @property
    def languages(self) -> tuple[str, ...]:
        """Made-up tags."""
        return tuple(f"l{i}" for i in range(self.num_languages))

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """The parameters of the model."""
        layers = -(-self.millions * 1_000_000 // sum(a * b for a, b in _LAYER.values()))
        return {f"layers.{i}.{name}.weight": shape for i in range(layers) for name, shape in _LAYER.items()}


_WARM_UP = BenchmarkConfig(millions=1)


def build(config: BenchmarkConfig, languages: tuple[str, ...]) -> PathwayMasks:
    """Masks with random entries, language by language."""
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


#: In this order: files that one writes are read by the next.
OPERATIONS: dict[str, Callable[[BenchmarkConfig, Path], Callable[[], object]]] = {
    "build all languages' masks": lambda config, folder: lambda: build(config, config.languages),
    "save": _save,
    "load": _load,
    "save each language's alone": _save_parts,
    "load and merge these": _merge,
    "overlap of all pairs": _overlap,
    "prune one language, layer-wise": _prune("layer-wise"),
    "prune one language, global": _prune("global"),
    "prune one language, block:4x4": _prune("layer-wise", "block:4x4"),
    "prune one language, 2:4": _prune("layer-wise", "2:4"),
}


def _memory(field: str) -> int:
    """VmRSS (memory now) or VmHWM (its peak) of this process in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])


def _measure(name: str, config: BenchmarkConfig, folder: Path, results: "Queue[tuple[float, int]]") -> None:
    OPERATIONS[name](_WARM_UP, folder / "warm-up")()  # so that libraries are in memory before it is measured
    before = _memory("VmRSS")
    run = OPERATIONS[name](config, folder)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    start = time.process_time()
    kept = run()
    seconds = time.process_time() - start
    results.put((seconds, _memory("VmHWM") - before))
    del kept


def measure(config: BenchmarkConfig) -> list[dict[str, float | str]]:
    """CPU seconds and peak memory of every operation; memory in bytes, and as a multiple of the codes' size."""
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
                raise RuntimeError(f"{name!r} ended with exit code {process.exitcode}: its error stands above")
            seconds, peak = results.get()
            figures.append({"operation": name, "seconds": seconds, "peak": peak, "codes": codes, "ratio": peak / codes})
    return figures


def main() -> None:
    """Read the options, measure, print the table."""
    config = parse(BenchmarkConfig, __doc__)
    figures = measure(config)
    rows = [[f["operation"], f["seconds"], float(f["peak"]) / 2**20, f["ratio"]] for f in figures]
    print(f"codes: {float(figures[0]['codes']) / 2**20:.0f} MiB; {torch.get_num_threads()} threads")
    header = ["operation", "CPU seconds", "peak (MiB)", "peak / codes"]
    print(tabulate(rows, header, tablefmt="pipe", floatfmt=("", ".1f", ".0f", ".2f")))


if __name__ == "__main__":
    run_script(main)
