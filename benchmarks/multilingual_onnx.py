#!/usr/bin/env python3
r"""Compare the ONNX graph of all languages with one graph per language: size and time.

Usage:

  OMP_NUM_THREADS=1 benchmarks/multilingual_onnx.py
  OMP_NUM_THREADS=1 benchmarks/multilingual_onnx.py --exp-dir egs/mls/ASR/exp/demo/pathways

Without --exp-dir, the models are those of 5 M parameters in streaming_models.py, with random weights, and random masks
of 70 % sparsity in four languages. Sizes of the encoder, in megabytes (1,000,000 bytes):

  graph         the graph of all languages
  bound         entropy of the mask codes, and the float32 weights that at least one language uses
  separate      sum of the graphs of the single languages, with the mask multiplied in

Time: one run of the graph of all languages for a batch with the same number of streams of every language, divided by
one run per language of the separate graphs: processor time of one thread, the median over interleaved runs.

Expansion: peak memory of the creation of a session, in bytes per masked weight, in a process of its own.
"""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from random_masks import LANGUAGES, SPARSITY, random_masks
from streaming_models import MODELS, VOCAB_SIZE
from tabulate import tabulate

from icefall_pathways.data.features import FbankConfig
from icefall_pathways.decoding.config import ModelSelection, TrainedModelConfig
from icefall_pathways.decoding.pretrained import load_trained_model
from icefall_pathways.export.code_coding import entropy_bytes
from icefall_pathways.export.language_model import language_model
from icefall_pathways.export.multilingual import LANGUAGE, multilingual_graph
from icefall_pathways.export.multilingual_folder import encoder_step
from icefall_pathways.export.packed_weights import pack_weights
from icefall_pathways.models.transducer import Transducer, build_model
from icefall_pathways.options import parse, run_script
from icefall_pathways.pathways.activation import FoldedPathways
from icefall_pathways.pathways.masks import PathwayMasks
from icefall_pathways.ranges import PositiveInt

# Prints the bytes by which the creation of a session raises the peak memory of its process.
_EXPAND = """
import re, sys, onnxruntime
def peak():
    with open("/proc/self/status") as status:
        return 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", status.read())[1])
graph = sys.stdin.buffer.read()
before = peak()
session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
print(peak() - before)
"""
_RANDOM_MODELS = ("emformer-5M", "zipformer-5M")

Inputs = dict[str, np.ndarray]


@dataclass(frozen=True)
class BenchmarkConfig:
    """Options of the benchmark."""

    exp_dir: Path | None = None
    """Experiment folder with pathways; None: random models."""

    repetitions: PositiveInt = 15
    """Number of interleaved runs."""


def main(config: BenchmarkConfig) -> None:
    """Print the tables."""
    rows = [
        [name, *measure(model, masks, features, config.repetitions)]
        for name, model, masks, features in _models(config.exp_dir)
    ]
    header = ["encoder", "graph", "bound", "to the bound", "separate", "to separate"]
    header += [*(f"time, {count} per language" for count in (1, 4, 16)), "expansion"]
    print(tabulate(rows, header, tablefmt="pipe", disable_numparse=True))


def _models(exp_dir: Path | None) -> list[tuple[str, Transducer, PathwayMasks, FbankConfig]]:
    if exp_dir is None:
        torch.manual_seed(1)
        models = {name: build_model(MODELS[name], VOCAB_SIZE).eval() for name in _RANDOM_MODELS}
        return [
            (name, model, random_masks(model, LANGUAGES, SPARSITY), FbankConfig(level_norm="running-max"))
            for name, model in models.items()
        ]
    trained = load_trained_model(TrainedModelConfig(**vars(ModelSelection(exp_dir=exp_dir))))
    if trained.masks is None:
        raise ValueError(f"{exp_dir} has no masks: expected an experiment with pathways")
    return [(exp_dir.name, trained.model, trained.masks, trained.data_config.fbank)]


def measure(model: Transducer, masks: PathwayMasks, features: FbankConfig, repetitions: int) -> list[str]:
    """Return the cells of a row."""
    masks = masks.below("encoder")
    graph = multilingual_graph(encoder_step(model, masks, features), masks)
    pathways, no_masks = FoldedPathways(model, masks), PathwayMasks(masks.header)
    separate = [
        multilingual_graph(encoder_step(language_model(pathways, language), no_masks, features), no_masks)
        for language in masks.languages
    ]
    names = [name for name, _ in model.named_parameters() if name.startswith(("encoder", "joiner.encoder_proj"))]
    weights = pack_weights({name: model.state_dict()[name] for name in names}, masks.codes, "float32")
    bound = entropy_bytes(list(masks.codes.values())) + 4 * weights["values"].numel()
    total = sum(map(len, separate))
    ratios = _ratios(_session(graph), list(map(_session, separate)), model, features, repetitions)
    sizes = [f"{len(graph) / 1e6:.2f}", f"{bound / 1e6:.2f}", f"{len(graph) / bound:.3f}"]
    return [
        *sizes,
        f"{total / 1e6:.2f}",
        f"{len(graph) / total:.3f}",
        *(f"{ratio:.2f}" for ratio in ratios),
        _expansion(graph, masks),
    ]


def _expansion(graph: bytes, masks: PathwayMasks) -> str:
    """Return the peak memory of the creation of a session, in bytes per masked weight."""
    process = subprocess.run([sys.executable, "-c", _EXPAND], input=graph, capture_output=True, check=True)
    return f"{int(process.stdout) / sum(code.numel() for code in masks.codes.values()):.0f}"


def _ratios(
    together: onnxruntime.InferenceSession,
    separate: list[onnxruntime.InferenceSession],
    model: Transducer,
    features: FbankConfig,
    repetitions: int,
) -> list[float]:
    ratios = []
    for count in (1, 4, 16):
        languages = np.arange(len(separate)).repeat(count)
        joint, single = _inputs(model, features, languages), _inputs(model, features, languages[:count])
        times = [
            (
                _seconds(lambda joint=joint: together.run(None, joint)),
                sum(_seconds(lambda single=single, run=session.run: run(None, single)) for session in separate),
            )
            for _ in range(repetitions + 1)
        ][1:]
        ratios.append(statistics.median(a / b for a, b in times))
    return ratios


def _inputs(model: Transducer, features: FbankConfig, languages: np.ndarray) -> Inputs:
    step = encoder_step(model, PathwayMasks.dense(model, ["en"]).subset(), features)
    inputs = {name: torch.zeros_like(tensor) for name, tensor in step.inputs.items()}
    for name, tensor in inputs.items():
        sizes = list(tensor.shape)
        sizes[step.axes[name]] = len(languages)
        inputs[name] = torch.zeros(sizes, dtype=tensor.dtype)
    inputs["x"].normal_(std=2).sub_(8)
    inputs["x_lens"].fill_(model.chunk_window)
    return {name: tensor.numpy() for name, tensor in inputs.items()} | {LANGUAGE: languages}


def _session(graph: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    return onnxruntime.InferenceSession(graph, options)


def _seconds(function: Callable[[], object]) -> float:
    start = time.process_time()
    function()
    return time.process_time() - start


if __name__ == "__main__":
    run_script(lambda: main(parse(BenchmarkConfig, __doc__)))
