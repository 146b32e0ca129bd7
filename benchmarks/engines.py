"""Benchmark of the engines that encode streams, for `decoding.py`: CPU time per chunk."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from random_masks import LANGUAGES, SPARSITY, random_masks
from streaming_models import MODELS, VOCAB_SIZE
from tqdm import tqdm

from icefall_pathways.decoding.streaming import StreamEncoder
from icefall_pathways.models.transducer import Transducer, build_model
from icefall_pathways.pathways.activation import FoldedPathways

CHUNKS = 4  # chunks of a stream in each measurement
ENGINES = ("eager", "onnx")
KINDS = ("dense", "pathways")
TIME_HEADER = ("model", "streams", *(f"{kind}, {engine}" for kind in KINDS for engine in ENGINES))


def measure_times(name: str, streams: Sequence[int], rounds: int) -> list[list[str]]:
    """Return the rows of a model in the table of times: milliseconds per chunk, and the ratio to eager torch."""
    model = _model(name)
    masks = random_masks(model, LANGUAGES, SPARSITY)
    encoders = {
        (kind, engine): StreamEncoder(model, FoldedPathways(model, masks if kind == "pathways" else None), engine)
        for kind in KINDS
        for engine in ENGINES
    }
    rows = []
    for num_streams in streams:
        runs = {key: _encode(encoder, num_streams) for key, encoder in encoders.items()}
        times = _interleave(runs, rounds, f"{name}, streams: {num_streams}")
        row = [name if num_streams == streams[0] else "", str(num_streams)]
        for kind in KINDS:
            eager, onnx = (times[kind, engine] for engine in ENGINES)
            ratio = statistics.median(a / b for a, b in zip(onnx, eager, strict=True))
            row += [f"{statistics.median(eager):.1f}", f"{statistics.median(onnx):.1f} ({ratio:.2f})"]
        rows.append(row)
    return rows


def _model(name: str) -> Transducer:
    torch.manual_seed(42)
    return build_model(MODELS[name], VOCAB_SIZE).eval()


def _encode(encoder: StreamEncoder, num_streams: int) -> Callable[[], None]:
    """Return a function that encodes `CHUNKS` chunks of new streams."""
    model = encoder.model
    x = 2 * torch.randn(num_streams, model.chunk_window, 80) - 7
    lens = torch.full((num_streams,), model.chunk_window)
    pathways = encoder.pathways
    assert pathways is not None

    @torch.inference_mode()
    def encode() -> None:
        states = model.init_states(num_streams)
        with pathways.activate(LANGUAGES[0]):
            for _ in range(CHUNKS):
                _, _, states = encoder.stream(LANGUAGES[0], x, lens, states)

    return encode


def _interleave(runs: dict[Any, Callable[[], None]], rounds: int, title: str) -> dict[Any, list[float]]:
    """Return the milliseconds of CPU time per chunk of all runs in every round."""
    for run in runs.values():
        run()  # exports the model
    times: dict[Any, list[float]] = {key: [] for key in runs}
    for _ in tqdm(range(rounds), title, unit="round"):
        for key, run in runs.items():
            times[key].append(1e3 * _seconds(run) / CHUNKS)
    return times


def _seconds(run: Callable[[], None]) -> float:
    """Return the CPU time of a run, which depends less on other jobs than the wall-clock time."""
    start = time.process_time()
    run()
    return time.process_time() - start
