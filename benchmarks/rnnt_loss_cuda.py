#!/usr/bin/env python3
r"""Benchmark the built-in pruned RNN-T loss on a GPU, on the batches of the published benchmark of k2.

Usage:

  benchmarks/rnnt_loss_cuda.py --write 1

A step of k2's benchmark (github.com/csukuangfj/transducer-loss-benchmarking) computes the simple loss with occupation
probabilities, the pruning ranges, a joiner of width 512 for 500 tokens, the pruned loss, and the gradients of the
pruned loss. "all" also computes the gradients of the simple loss, as training does. The lengths here approximate those
of train-clean-100 in LibriSpeech, which it uses; a random batch and a batch of utterances of similar length, with
10,000 frames. Under float16 and bfloat16, the inputs have this type; joiner and losses run in float32, as in training.
"""

import statistics
from dataclasses import dataclass
from pathlib import Path

import torch
from tables import print_table
from torch import Tensor, nn

from icefall_pathways.models.losses import boundaries, pruned_loss, simple_loss
from icefall_pathways.models.rnnt import lattice
from icefall_pathways.options import parse, run_script

VOCAB_SIZE, WIDTH, PRUNE_RANGE = 500, 512, 5
FRAMES_PER_SECOND = 25
REPORT = Path(__file__).with_name("rnnt_loss.md")
#: Published step in milliseconds and peak memory in 10^6 bytes of k2's pruned loss.
PUBLISHED = {"random": (63.4, 3820), "sorted": (38.1, 2648)}


@dataclass(frozen=True)
class RnntLossCudaConfig:
    """Options of the benchmark."""

    rounds: int = 50
    """Measured steps, after ten for warm-up."""

    write: bool = False
    """Write the results to benchmarks/rnnt_loss.md."""


def lengths(batch: str) -> tuple[Tensor, Tensor]:
    """Return frames and tokens of the utterances of a batch."""
    if batch == "random":
        quantile = (torch.arange(30) + 0.5) / 30
        bounds, seconds = torch.linspace(0, 1, 5), torch.tensor([2.0, 11.4, 13.8, 15.3, 16.6])
        left = (4 * quantile).long()
        duration = seconds[left] + 4 * (quantile - bounds[left]) * (seconds[left + 1] - seconds[left])
    else:
        duration = torch.linspace(15.9, 16.1, 25)
    tokens_per_second = torch.linspace(4.0, 6.5, 6).repeat(len(duration))[: len(duration)]
    return (FRAMES_PER_SECOND * duration).long(), (tokens_per_second * duration).long()


class LossStep:
    """Forward and backward pass of the losses of random inputs on the GPU.

    Args:
      batch: "random" or "sorted".
      dtype: Type of the inputs.
      gradients: "pruned": of the pruned loss only; "all".
    """

    def __init__(self, batch: str, dtype: torch.dtype, gradients: str) -> None:
        frames, tokens = lengths(batch)
        sizes = (int(frames.max()), WIDTH), (int(tokens.max()) + 1, WIDTH)
        self.am, self.lm = (torch.rand(len(frames), *size, device="cuda").to(dtype).requires_grad_() for size in sizes)
        self.y = torch.randint(1, VOCAB_SIZE, (len(frames), int(tokens.max())), device="cuda")
        self.boundary = boundaries(frames, tokens).cuda()
        self.output = nn.Linear(WIDTH, VOCAB_SIZE).cuda()
        self.gradients = gradients

    def join(self, am: Tensor, lm: Tensor) -> Tensor:
        """Return the logits, in float32."""
        logits: Tensor = self.output((am + lm).tanh())
        return logits

    def __call__(self) -> None:
        """Run a step."""
        inputs = [self.am, self.lm, *self.output.parameters()]
        simple, ranges = simple_loss(
            self.am, self.lm, self.y, self.boundary, PRUNE_RANGE, 0.0, 0.25, implementation="builtin"
        )
        pruned = pruned_loss(
            self.join, self.am.float(), self.lm.float(), self.y, ranges, self.boundary, implementation="builtin"
        )
        torch.autograd.grad(pruned + 0.5 * simple if self.gradients == "all" else pruned, inputs)


def measure(step: LossStep, rounds: int) -> tuple[float, float]:
    """Return the median time of a step in milliseconds and its peak memory in 10^6 bytes, inputs included."""
    times = []
    for index in range(rounds + 10):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        start.record()
        step()
        end.record()
        torch.cuda.synchronize()
        if index >= 10:
            times.append(start.elapsed_time(end))
    return statistics.median(times), torch.cuda.max_memory_allocated() / 1e6


def rows(rounds: int) -> list[list[str]]:
    """Return the rows of the table."""
    result = []
    for batch, (published_time, published_memory) in PUBLISHED.items():
        result.append([batch, "k2, published", "float32", "pruned", f"{published_time:.1f}", f"{published_memory}"])
        cases = [(torch.float32, "pruned"), (torch.float32, "all"), (torch.float16, "all"), (torch.bfloat16, "all")]
        for dtype, gradients in cases:
            time, memory = measure(LossStep(batch, dtype, gradients), rounds)
            name = str(dtype).removeprefix("torch.")
            result.append([batch, "built-in", name, gradients, f"{time:.2f}", f"{memory:.0f}"])
    return result


def rows_without_triton(rounds: int) -> list[list[str]]:
    """Return the rows of the built-in loss without its Triton kernel."""
    kernels, lattice._triton_kernels = lattice._triton_kernels, lambda: None  # type: ignore[assignment]
    try:
        times = {batch: measure(LossStep(batch, torch.float32, "pruned"), rounds) for batch in PUBLISHED}
    finally:
        lattice._triton_kernels = kernels
    return [
        [batch, "built-in, no Triton", "float32", "pruned", f"{time:.2f}", f"{memory:.0f}"]
        for batch, (time, memory) in times.items()
    ]


def main() -> None:
    """Run the benchmark and print the table."""
    config = parse(RnntLossCudaConfig, __doc__)
    if not torch.cuda.is_available():
        raise ValueError("this benchmark needs a GPU, and torch finds none")
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    header = ["batch", "loss", "inputs", "gradients", "step (ms)", "peak memory (MB)"]
    table = sorted(rows(config.rounds) + rows_without_triton(config.rounds), key=lambda row: row[0])
    print_table(header, table, REPORT if config.write else None, "cuda")


if __name__ == "__main__":
    run_script(main)
