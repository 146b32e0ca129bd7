"""Count the multiply-adds of a transducer per second of audio, by the parameter that they apply.

Matrix products and convolutions are counted as torch executes them, below the modules, so that weights which functions
apply without calling their modules count too. Elementwise operations, norms and activations are not counted.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from icefall_pathways.constants import FRAME_SHIFT, LOG_EPS, NUM_MEL_BINS, SAMPLE_RATE
from icefall_pathways.models.config import ModelConfig
from icefall_pathways.models.transducer import Transducer, build_model

#: Name under which products of two activations are counted, such as those of attention.
ACTIVATIONS = ""
#: Multiply-adds of an update relative to its forward pass: the gradients of inputs and of weights are two more products
#: of the same sizes.
UPDATE_FACTOR = 3

_FRAMES_PER_SECOND = SAMPLE_RATE // FRAME_SHIFT
_TOKENS_PER_SECOND = 4  # typical of speech; the predictor, whose share is small, runs once per token
_UTTERANCE_SECONDS = 10  # of whole utterances; only attention without a limited context depends on it

_aten = torch.ops.aten
# Index of the factors in the arguments of each matrix product.
_PRODUCTS = {_aten.mm: 0, _aten.bmm: 0, _aten.mv: 0, _aten.addmm: 1, _aten.baddbmm: 1, _aten.addmv: 1}


def model_to_count(config: ModelConfig, vocab_size: int) -> Transducer:
    """Build a model in eval mode without vectors of languages, which are added, not multiplied."""
    return build_model(replace(config, language_input=False), vocab_size).eval()


def forward_per_second(model: Transducer) -> Counter[str]:
    """Count one forward pass of training with all losses, per second of audio; see `count_multiply_adds`."""
    num_frames, num_tokens = _UTTERANCE_SECONDS * _FRAMES_PER_SECOND, _UTTERANCE_SECONDS * _TOKENS_PER_SECOND
    x, y = _silence(num_frames), _tokens(num_tokens)
    lens = torch.tensor([num_frames]), torch.tensor([num_tokens])
    counts = count_multiply_adds(model, lambda: model(x, lens[0], y, lens[1], rnnt_loss="builtin"))
    return _divided(counts, _UTTERANCE_SECONDS)


def decoding_per_second(model: Transducer, num_hypotheses: int = 1, streaming: bool = True) -> Counter[str]:
    """Count decoding per second of audio; see `count_multiply_adds`.

    For each hypothesis, the joiner runs once per frame and the predictor once per token.

    Args:
      model: The model.
      num_hypotheses: Hypotheses that the search keeps; 1 is greedy search.
      streaming: Encode one chunk of a stream; otherwise a whole utterance.
    """
    num_frames = model.chunk_shift if streaming else _UTTERANCE_SECONDS * _FRAMES_PER_SECOND
    seconds = num_frames / _FRAMES_PER_SECOND
    x = _silence(model.chunk_window if streaming else num_frames)
    lens = torch.tensor([num_frames])

    def encode_and_join() -> None:
        frames = model.stream(x, lens, model.init_states(1))[0] if streaming else model.encode(x, lens)[0]
        projected = model.joiner.encoder_proj(frames).unsqueeze(2)
        model.joiner(projected, projected.expand(-1, -1, num_hypotheses, -1), project_input=False)

    def predict() -> None:
        model.joiner.decoder_proj(model.decoder(_tokens(num_hypotheses * _TOKENS_PER_SECOND)))

    counts = _divided(count_multiply_adds(model, encode_and_join), seconds)
    return counts + count_multiply_adds(model, predict)


def count_multiply_adds(model: nn.Module, run: Callable[[], Any]) -> Counter[str]:
    """Count the multiply-adds of `run`, without gradients.

    Returns:
      Multiply-adds by name of the parameter of `model` that is a factor of the products, `ACTIVATIONS` for none.
    """
    with torch.no_grad(), _CountingMode(model) as mode:
        run()
    return mode.counts


class _CountingMode(TorchDispatchMode):
    """Count products inside the context; parameters are recognized in views and in copies of other layouts."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self._owners = {parameter.data_ptr(): name for name, parameter in model.named_parameters()}
        self._copies: list[Tensor] = []  # kept, so that no other tensor gets their address

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        packet = func.overloadpacket
        if packet in _PRODUCTS:
            a, b = args[_PRODUCTS[packet] : _PRODUCTS[packet] + 2]
            self._add((a, b), a.numel() * (b.size(-1) if b.dim() > 1 else 1))
        elif packet is _aten.convolution:
            x, weight, transposed = args[0], args[1], args[6]
            self._add((x, weight), (x if transposed else out).numel() * weight[0].numel())
        else:
            self._follow_copy(args, out)
        return out

    def _add(self, factors: tuple[Tensor, Tensor], count: int) -> None:
        names = [self._owners[factor.data_ptr()] for factor in factors if factor.data_ptr() in self._owners]
        self.counts[names[0] if names else ACTIVATIONS] += count

    def _follow_copy(self, args: Any, out: Any) -> None:
        """Register the output if it has the entries of a parameter in another layout, such as a transposed copy."""
        tensors = [arg for arg in args if isinstance(arg, Tensor)]
        if isinstance(out, Tensor) and len(tensors) == 1 and tensors[0].numel() == out.numel():
            name = self._owners.get(tensors[0].data_ptr())
            if name is not None:
                self._owners[out.data_ptr()] = name
                self._copies.append(out)


def _silence(num_frames: int) -> Tensor:
    return torch.full((1, num_frames, NUM_MEL_BINS), LOG_EPS)


def _tokens(length: int) -> Tensor:
    return torch.ones(1, length, dtype=torch.int64)


def _divided(counts: Counter[str], seconds: float) -> Counter[str]:
    return Counter({name: round(count / seconds) for name, count in counts.items()})
