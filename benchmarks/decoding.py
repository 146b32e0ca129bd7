#!/usr/bin/env python3
r"""Benchmark streaming decoding: searches, torchaudio's RNNTBeamSearch on the same model, and engines.

Usage:

  OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE benchmarks/decoding.py --models "emformer-5M zipformer-5M" --write 1

The models have the sizes of published ones and random weights; the bias of blank is set for the token rate of speech.
Features are precomputed. Streams are encoded by ONNX Runtime, and by eager torch. One round
decodes with all systems in turn; the result is the median over the rounds. Then the encoder alone is measured with each
engine, dense and with random masks. Times are CPU seconds of one thread.
"""

import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import engines
import torch
from streaming_models import MODELS, VOCAB_SIZE
from tables import print_table
from torch import Tensor, nn
from torchaudio.models import RNNTBeamSearch
from tqdm import tqdm

from icefall_pathways.data.features import FbankConfig
from icefall_pathways.decoding.streaming import Source, StreamEncoder, StreamingDecoder
from icefall_pathways.files import write_json
from icefall_pathways.models.transducer import Transducer, build_model
from icefall_pathways.options import parse, run_script
from icefall_pathways.searches import FastBeamSearch, GreedySearch, ModifiedBeamSearch, Search

BEAM_SIZE = 4
TOKENS_PER_SECOND = 4.0
GREEDY, BEAM = "greedy", f"modified beam {BEAM_SIZE}"
# Real-time factors of icefall's streaming Zipformer of the same sizes, chunks and contexts, by model, search and number
# of streams: encoder and search, precomputed features, two threads of a two-core machine without GPU, torch 1.13.1.
ICEFALL = {
    ("zipformer-5M", GREEDY, 1): 0.062,
    ("zipformer-5M", GREEDY, 16): 0.0192,
    ("zipformer-5M", BEAM, 1): 0.065,
    ("zipformer-5M", BEAM, 16): 0.0210,
    ("zipformer-20M", GREEDY, 1): 0.109,
    ("zipformer-20M", GREEDY, 16): 0.0332,
    ("zipformer-20M", BEAM, 1): 0.125,
    ("zipformer-20M", BEAM, 16): 0.0361,
}


@dataclass(frozen=True)
class BenchmarkConfig:
    """Options of the benchmark."""

    models: str = "emformer-5M zipformer-5M zipformer-20M"
    """Encoders and sizes of the models; see streaming_models.py."""

    parts: str = "searches engines"
    """Tables that are measured: those of the searches, one per model, and that of the engines."""

    streams: str = "1 16"
    """Numbers of streams that are decoded in parallel."""

    seconds: float = 20.0
    """Duration of each stream in seconds."""

    rounds: int = 5
    """Number of rounds; each measures all systems."""

    engine_rounds: int = 15
    """Number of rounds in which the engines alone are measured."""

    torchaudio: bool = True
    """Also measure torchaudio's search, which decodes one stream at a time."""

    output: Path | None = None
    """JSON file for the results of the searches; None only prints the tables."""

    write: bool = False
    """Write the tables to benchmarks/decoding.md."""


class TorchaudioModel(nn.Module):
    """Adapter of our transducer to the RNNT interface of torchaudio's search, in which blank is the last token.

    Args:
      model: Its predictor and joiner are used; encoder outputs are precomputed.
    """

    def __init__(self, model: Transducer) -> None:
        super().__init__()
        self.decoder, self.joiner = model.decoder, model.joiner

    def transcribe(self, frames: Tensor, lens: Tensor) -> tuple[Tensor, Tensor]:
        """Project encoder outputs (1, T, D), which torchaudio passes in place of features."""
        return self.joiner.encoder_proj(frames), lens

    def predict(
        self, targets: Tensor, lens: Tensor, state: list[list[Tensor]] | None
    ) -> tuple[Tensor, Tensor, list[list[Tensor]]]:
        """Return predictor outputs for tokens (M, 1); the state is their context (M, context_size - 1)."""
        tokens = (targets + 1) % VOCAB_SIZE
        previous = torch.full_like(tokens, -1) if state is None else state[0][0]
        context = torch.cat([previous, tokens], dim=1)
        return self.joiner.decoder_proj(self.decoder(context, need_pad=False)), lens, [[context[:, 1:]]]

    def join(
        self, frames: Tensor, frame_lens: Tensor, predicted: Tensor, predicted_lens: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the logits (M, 1, 1, V) of a frame (1, 1, D) and predictor outputs (M, 1, D)."""
        logits = self.joiner(frames[:, :, None], predicted[:, None], project_input=False)
        return logits.roll(-1, dims=-1), frame_lens, predicted_lens


def prepare(config: BenchmarkConfig, name: str) -> tuple[Transducer, Tensor, Tensor]:
    """Return a model with the token rate of speech, features (N, T, 80) and encoder outputs (N, T', D)."""
    torch.manual_seed(42)
    model = build_model(MODELS[name], VOCAB_SIZE).eval()
    num_streams = max(map(int, config.streams.split()))
    features = 2 * torch.randn(num_streams, int(config.seconds * 100), 80) - 7
    with torch.inference_mode():
        encoder_out, _ = model.encode(features, torch.full((num_streams,), features.size(1)))
    low, high = -50.0, 50.0
    with torch.no_grad():
        # Frames vary and logits spread as in a trained model, so that hypotheses compete as for speech.
        projection = model.joiner.encoder_proj
        deviation, mean = torch.std_mean(projection(encoder_out).flatten(0, 1), dim=0)
        projection.weight /= deviation.mean()
        projection.bias.copy_((projection.bias - mean) / deviation.mean())
        model.joiner.output_linear.weight *= 4
        for _ in range(20):
            model.joiner.output_linear.bias[0] = (low + high) / 2
            tokens = _search_chunks(GreedySearch(model), encoder_out)
            too_many = tokens > TOKENS_PER_SECOND * config.seconds * num_streams
            low, high = ((low + high) / 2, high) if too_many else (low, (low + high) / 2)
    return model, features, encoder_out


def _search_chunks(search: Search, encoder_out: Tensor, chunk: int = 8) -> int:
    """Search encoder outputs (N, T, D) in chunks, and return the number of tokens."""
    state = search.init(len(encoder_out))
    for piece in encoder_out.split(chunk, dim=1):
        state = search.advance(state, piece, torch.full((len(piece),), piece.size(1)))
    return sum(len(result.tokens) for result in search.results(state))


def _decode_streams(decoder: StreamingDecoder, features: Tensor) -> int:
    """Encode and search features (N, T, 80) in chunks, and return the number of tokens."""
    pieces = [Source(i, x.split(decoder.model.chunk_shift)) for i, x in enumerate(features)]
    return sum(len(result.tokens) for _, result in decoder.decode(pieces, len(features), from_features=True))


def _search_torchaudio(search: RNNTBeamSearch, encoder_out: Tensor) -> int:
    """Search encoder outputs (N, T, D), one whole stream at a time, and return the number of tokens."""
    # Not in chunks: this search repeats the last token as predictor input at the start of each chunk.
    with torch.inference_mode():
        return sum(len(search(x, torch.tensor([len(x)]), BEAM_SIZE)[0][0]) - 1 for x in encoder_out)


def measure(config: BenchmarkConfig, name: str) -> list[dict[str, float | int | str]]:
    """Return the results of all systems with a model, for all numbers of streams."""
    model, features, encoder_out = prepare(config, name)
    searches = {
        GREEDY: GreedySearch(model),
        BEAM: ModifiedBeamSearch(model, BEAM_SIZE),
        "fast beam": FastBeamSearch(model, beam=4.0, max_contexts=4, max_states=32),
    }
    encoders = {"all": StreamEncoder(model, None, "onnx"), "plain": StreamEncoder(model, None, "eager")}
    runs: dict[tuple[str, str, int], Callable[[], int]] = {}
    for num_streams in map(int, config.streams.split()):
        frames, inputs = encoder_out[:num_streams], features[:num_streams]
        for system, search in searches.items():
            runs["search", system, num_streams] = lambda search=search, frames=frames: _search_chunks(search, frames)
            for part, encoder in encoders.items():
                decoder = StreamingDecoder(model, search, FbankConfig(), encoder=encoder)
                runs[part, system, num_streams] = lambda decoder=decoder, inputs=inputs: _decode_streams(
                    decoder, inputs
                )
        if config.torchaudio:
            # At most one token per frame, as in the other searches.
            peer = RNNTBeamSearch(TorchaudioModel(model), VOCAB_SIZE - 1, step_max_tokens=1)
            system = f"torchaudio beam {BEAM_SIZE}"
            runs["search", system, num_streams] = lambda peer=peer, frames=frames: _search_torchaudio(peer, frames)
    seconds, tokens = {run: [] for run in runs}, {}
    for decode in runs.values():
        decode()  # warm-up: exports the model
    for _ in tqdm(range(config.rounds), name, unit="round"):
        for run, decode in runs.items():
            start = time.process_time()
            tokens[run] = decode()
            seconds[run].append(time.process_time() - start)
    return [
        {
            "part": part,
            "system": system,
            "streams": num_streams,
            "real_time_factor": statistics.median(seconds[run]) / (num_streams * config.seconds),
            "icefall": ICEFALL.get((name, system, num_streams)) if part == "all" else None,
            "tokens_per_second": tokens[run] / statistics.median(seconds[run]),
            "tokens": tokens[run],
        }
        for run in runs
        for part, system, num_streams in [run]
    ]


def main() -> None:
    """Run the benchmark and print the tables."""
    config = parse(BenchmarkConfig, __doc__)
    report = Path(__file__).with_suffix(".md") if config.write else None
    models, parts = config.models.split(), config.parts.split()
    streams = list(map(int, config.streams.split()))
    if "searches" in parts:
        _report_searches(config, models, report)
    if "engines" in parts:
        rows = [row for name in models for row in engines.measure_times(name, streams, config.engine_rounds)]
        print_table(engines.TIME_HEADER, rows, report, "engines")


def _report_searches(config: BenchmarkConfig, models: list[str], report: Path | None) -> None:
    figures = {}
    for name in models:
        figures[name] = measure(config, name)
        print_table(*table(figures[name]), report, name)
    if config.output:
        machine = {"torch": torch.__version__, "threads": torch.get_num_threads(), "processor": platform.processor()}
        write_json(config.output, {"machine": machine, "figures": figures})


def table(figures: list[dict[str, float | int | str]]) -> tuple[list[str], list[list[str]]]:
    """Return the header and the rows of the table of `figures`, as text."""
    parts = {"search": "search only", "all": "encoder and search", "plain": "encoder and search, eager"}
    rows = []
    for row in figures:
        factor, peer = row["real_time_factor"], row["icefall"]
        compared = ["", ""] if peer is None else [f"{peer:.4f}", f"{factor / peer:.2f}"]
        name = [parts[row["part"]], row["system"], str(row["streams"])]
        rows.append([*name, f"{factor:.5f}", *compared, f"{row['tokens_per_second']:.0f}"])
    header = ["part", "system", "streams", "real-time factor", "icefall", "ratio to icefall", "tokens per second"]
    return header, rows


if __name__ == "__main__":
    run_script(main)
