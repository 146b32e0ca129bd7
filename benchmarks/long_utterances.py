#!/usr/bin/env python3
r"""Benchmark the memory of encoding long utterances, and the effect of encoding them in blocks.

Usage:

  OMP_NUM_THREADS=1 benchmarks/long_utterances.py --write 1

Every figure is measured in a separate process, which creates a model with random weights and encodes one utterance. The
memory is the growth of the maximum resident memory during the encoding. The Zipformer has 5 M parameters; "limited"
stands for its default left context of 64 frames, "unlimited" for whole utterances (`--causal 0`). The Emformer has its
default size.
"""

import resource
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import torch
from fake_mls import speech_like
from tables import print_table

from icefall_pathways.constants import SAMPLE_RATE
from icefall_pathways.data.features import FbankConfig
from icefall_pathways.decoding.decode_run import limit_context
from icefall_pathways.models.config import ModelConfig
from icefall_pathways.models.transducer import build_model
from icefall_pathways.options import parse, run_script

MODELS = {
    "Zipformer, limited": ModelConfig(encoder_type="zipformer", zipformer="small"),
    "Zipformer, unlimited": ModelConfig(encoder_type="zipformer", zipformer="small", causal=False),
    "Emformer": ModelConfig(),
}
REPORT = Path(__file__).with_name("memory.md")


@dataclass(frozen=True)
class LongUtterancesConfig:
    """Options of the benchmark."""

    seconds: str = "60 120 240"
    """Durations of the utterance."""

    max_context_seconds: float = 30.0
    """The limit of `decode.py`, which is compared with no limit."""

    write: bool = False
    """Write the results to benchmarks/memory.md."""


def measure(model_name: str, seconds: int, max_context_seconds: float | None) -> tuple[float, float]:
    """Return the megabytes and the seconds of CPU time that the encoding of an utterance takes in this process."""
    torch.manual_seed(42)
    model = build_model(MODELS[model_name], 500).eval()
    if max_context_seconds is not None:
        limit_context(model.encoder, max_context_seconds)
    features = 2 * torch.randn(1, 100 * seconds, 80) - 7
    before, start = _peak(), time.process_time()
    with torch.inference_mode():
        model.encode(features, torch.tensor([features.size(1)]))
    return _peak() - before, time.process_time() - start


def difference(seed: int, seconds: int, max_context_seconds: float) -> list[float]:
    """Compare the encoding in overlapping blocks with that of the whole utterance, for random weights.

    Returns:
      Mean and maximum over frames of the relative difference, and the share of frames with another best token.
    """
    torch.manual_seed(seed)
    model = build_model(MODELS["Zipformer, unlimited"], 500).eval()
    features = torch.as_tensor(FbankConfig().extractor().extract(speech_like(seconds, seed), SAMPLE_RATE)).unsqueeze(0)
    lens = torch.tensor([features.size(1)])
    with torch.inference_mode():
        whole, _ = model.encode(features, lens)
        limit_context(model.encoder, max_context_seconds)
        blocks, _ = model.encode(features, lens)
        context = model.decoder(torch.zeros(1, 1, dtype=torch.int64))
        tokens = [model.joiner(frames, context.expand(-1, frames.size(1), -1)).argmax(-1) for frames in (whole, blocks)]
    relative = (whole - blocks).norm(dim=-1) / whole.norm(dim=-1)
    return [relative.mean().item(), relative.max().item(), (tokens[0] != tokens[1]).float().mean().item()]


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def measure_in_process(model_name: str, seconds: int, max_context_seconds: float | None) -> tuple[float, float]:
    """Return the result of `measure` in a separate process."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(measure, model_name, seconds, max_context_seconds).result()


def main() -> None:
    """Run the benchmark and print the table."""
    config = parse(LongUtterancesConfig, __doc__)
    limit = config.max_context_seconds
    columns = [f"{unit}, {name}" for unit in ("MB", "CPU s") for name in ("no limit", f"limit {limit:g} s")]
    header = ["encoder", "seconds", *columns]
    rows = []
    for model_name in MODELS:
        for seconds in map(int, config.seconds.split()):
            unlimited = measure_in_process(model_name, seconds, None)
            limited = measure_in_process(model_name, seconds, limit)
            figures = [f"{unlimited[0]:.0f}", f"{limited[0]:.0f}", f"{unlimited[1]:.1f}", f"{limited[1]:.1f}"]
            rows.append([model_name, str(seconds), *figures])
            print(" ".join(rows[-1]), flush=True)
    print_table(header, rows, REPORT if config.write else None, "long utterances")
    rows = []
    for seed in range(1, 4):
        mean, largest, share = difference(seed, 60, limit)
        rows.append([str(seed), f"{100 * mean:.3f} %", f"{100 * largest:.3f} %", f"{100 * share:.2f} %"])
    header = ["seed", "mean difference of a frame", "largest", "frames with another best token"]
    print_table(header, rows, REPORT if config.write else None, "blocks")


if __name__ == "__main__":
    run_script(main)
