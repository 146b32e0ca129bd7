"""The three graphs of a transducer with the weights of one language: encoder, predictor and joiner.

Inputs, outputs and metadata are those of sherpa-onnx and of icefall's exported streaming models.
"""

import torch
from torch import Tensor, nn

from icefall_pathways.data.level import LevelNorm, normalize_frames
from icefall_pathways.export.onnx import EXAMPLE_STREAMS, export_onnx, with_metadata
from icefall_pathways.export.sherpa_states import SherpaStates, sherpa_states
from icefall_pathways.models.folding import example_chunk, fold
from icefall_pathways.models.joiner import Joiner
from icefall_pathways.models.transducer import Transducer

_AUTHOR = {"version": "1", "model_author": "icefall_pathways"}


def encoder_graph(model: Transducer, level_norm: LevelNorm = "none") -> bytes:
    """Export the streaming encoder, including the normalization of features and the joiner's projection.

    Inputs: `x` (N, chunk_window, 80) and the states; outputs: `encoder_out` (N, chunk_shift / 4, joiner_dim) and the
    new states. Their names, shapes and order are those of `sherpa_states`.

    Args:
      model: A transducer in eval mode on a CPU, with the weights of the language.
      level_norm: Normalization of the features that the model was trained on; `x` is not normalized.

    Raises:
      ValueError: sherpa-onnx has no encoder for the model.
    """
    states = sherpa_states(model)
    x, _, native = example_chunk(model, EXAMPLE_STREAMS)
    inputs = {"x": x, **dict(zip(states.names, states.pack(native, torch.zeros(EXAMPLE_STREAMS)), strict=True))}
    outputs = ["encoder_out", *(f"new_{name}" for name in states.names)]
    axes = dict(zip([*inputs, *outputs], [0, *states.axes] * 2, strict=True))
    graph = export_onnx(_SherpaEncoder(fold(model, {}).model, states, level_norm).eval(), inputs, outputs, axes)
    chunk = {"T": model.chunk_window, "decode_chunk_len": model.chunk_shift, "level_norm": level_norm}
    return with_metadata(
        graph, {"model_type": states.model_type, **_AUTHOR, "comment": states.comment, **chunk, **states.metadata}
    )


def predictor_graph(model: Transducer) -> bytes:
    """Export the predictor, including the joiner's projection.

    Input: `y` (N, context_size) int64, the last tokens, negative before the first; output: `decoder_out`
    (N, joiner_dim).
    """
    context_size = model.decoder.context_size
    graph = export_onnx(
        Predictor(model).eval(),
        {"y": torch.zeros(EXAMPLE_STREAMS, context_size, dtype=torch.int64)},
        ["decoder_out"],
        {"y": 0, "decoder_out": 0},
    )
    return with_metadata(graph, {**_AUTHOR, "context_size": context_size, "vocab_size": _vocab_size(model)})


def joiner_graph(model: Transducer) -> bytes:
    """Export the joiner without its projections.

    Inputs: `encoder_out` and `decoder_out` (N, joiner_dim); output: `logit` (N, vocab_size).
    """
    projected = torch.zeros(EXAMPLE_STREAMS, model.joiner.output_linear.in_features)
    graph = export_onnx(
        _Joiner(model.joiner).eval(),
        {"encoder_out": projected, "decoder_out": projected.clone()},
        ["logit"],
        dict.fromkeys(("encoder_out", "decoder_out", "logit"), 0),
    )
    return with_metadata(graph, {**_AUTHOR, "joiner_dim": projected.size(1)})


def _vocab_size(model: Transducer) -> int:
    return model.joiner.output_linear.out_features


class _SherpaEncoder(nn.Module):
    """`Transducer.stream` for full chunks, with the states of sherpa-onnx and features that are not normalized."""

    def __init__(self, model: Transducer, states: SherpaStates, level_norm: LevelNorm) -> None:
        super().__init__()
        self.model = model
        self.states = states
        self.normalizes = level_norm != "none"

    def forward(self, x: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        lens = torch.full((x.size(0),), self.model.chunk_window, dtype=torch.int64)
        native, level = self.states.unpack(states)
        if self.normalizes:
            x, levels = normalize_frames(x, level)
            level = levels[:, self.model.chunk_shift - 1]  # the frames after it are the first ones of the next chunk
        out, _, new_states = self.model.stream(x, lens, native)
        return self.model.joiner.encoder_proj(out), *self.states.pack(new_states, level)


class Predictor(nn.Module):
    """The predictor for one token, with the joiner's projection; parameters of the predictor have their names.

    Args:
      model: The transducer, whose modules are shared.
    """

    def __init__(self, model: Transducer) -> None:
        super().__init__()
        self.decoder, self.projection = model.decoder, model.joiner.decoder_proj

    def forward(self, y: Tensor) -> Tensor:
        """Return the projected output (N, joiner_dim) for the last tokens (N, context_size)."""
        projected: Tensor = self.projection(self.decoder(y, need_pad=False).squeeze(1))
        return projected


class _Joiner(nn.Module):
    def __init__(self, joiner: Joiner) -> None:
        super().__init__()
        self.joiner = joiner

    def forward(self, encoder_out: Tensor, decoder_out: Tensor) -> Tensor:
        logits: Tensor = self.joiner(encoder_out, decoder_out, project_input=False)
        return logits
