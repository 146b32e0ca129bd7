"""A folder with one ONNX model for all languages, for ONNX Runtime without torch.

```
FOLDER/
  encoder.onnx   one chunk of features of every stream, with the language of each stream as an input
  decoder.onnx   predictor, with the language of each stream as an input
  joiner.onnx    token logits
  tokens.txt     symbols and ids
  onnx.json      languages, chunk, states, features: see `docs/guide/export.md`
```
"""

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from icefall_pathways.constants import SUBSAMPLING_FACTOR
from icefall_pathways.data.features import FbankConfig
from icefall_pathways.data.level import normalize_frames
from icefall_pathways.data.tokenizer import Tokenizer, write_tokens
from icefall_pathways.experiment import layout
from icefall_pathways.export.graphs import Predictor, joiner_graph
from icefall_pathways.export.model_card import feature_options
from icefall_pathways.export.multilingual import Step, multilingual_graph
from icefall_pathways.export.onnx import EXAMPLE_STREAMS, write_graphs
from icefall_pathways.export.precision import Precision
from icefall_pathways.files import write_json
from icefall_pathways.models.folding import example_chunk, fold
from icefall_pathways.models.transducer import Transducer
from icefall_pathways.pathways.activation import language_values
from icefall_pathways.pathways.masks import PathwayMasks

#: Description of the models; its format and version distinguish it from other JSON files.
DESCRIPTION_FILE = "onnx.json"
FORMAT, VERSION = "icefall_pathways onnx", 1

_LEVEL = "level"


def export_multilingual(
    folder: Path,
    model: Transducer,
    masks: PathwayMasks,
    tokenizer: Tokenizer,
    features: FbankConfig,
    precision: Precision = "float32",
) -> list[Path]:
    """Write the folder; existing files are replaced.

    Args:
      folder: See the module.
      model: The transducer, in eval mode.
      masks: The masks of the languages; see `PathwayMasks.restrict`.
      tokenizer: The tokenizer of the model.
      features: The features that the model was trained on.
      precision: float32 or float16, in which weights are stored; the computation is in float32.

    Returns:
      The paths of the three graphs.

    Raises:
      ValueError: A weight is not finite in this precision, or the precision is int8.
    """
    check_precision(precision)
    model, masks = copy.deepcopy(model).cpu(), masks.to("cpu")
    encoder = encoder_step(model, masks, features)
    graphs = {
        folder / "encoder.onnx": multilingual_graph(encoder, masks.below("encoder"), precision),
        folder / "decoder.onnx": multilingual_graph(predictor_step(model), masks.below("decoder."), precision),
        folder / "joiner.onnx": joiner_graph(model),
    }
    write_graphs(graphs.items())
    write_tokens(tokenizer.model_path, folder / layout.TOKENS_FILE)
    write_json(folder / DESCRIPTION_FILE, _describe(model, masks, encoder, features, precision))
    return list(graphs)


def encoder_step(model: Transducer, masks: PathwayMasks, features: FbankConfig) -> Step:
    """Return the encoder for one chunk, with the normalization of features and the joiner's projection.

    Inputs: `x` (N, chunk_window, 80), not normalized, `x_lens` (N,) and the states; outputs: `encoder_out`
    (N, chunk_shift / 4, joiner_dim), `encoder_out_lens` (N,) and the new states. The states are those of the model,
    and, with level normalization, `level` (N,) float64; all are zero at the start of a stream.
    """
    parameters, values = dict(model.named_parameters()), language_values(model, masks.languages)
    folded = fold(model, {name: parameters[name] for name in (*masks.names, *values)}, as_inputs=True).model
    x, x_lens, states = example_chunk(model, EXAMPLE_STREAMS)
    names, axes = [f"state_{index}" for index in range(len(states))], [*model.encoder.state_axes]
    normalizes = features.level_norm != "none"
    if normalizes:
        level = torch.zeros(EXAMPLE_STREAMS, dtype=torch.float64)
        names, axes, states = [*names, _LEVEL], [*axes, 0], [*states, level]
    assert not any(state.any() for state in states)  # clients start with zeros
    inputs = {"x": x, "x_lens": x_lens, **dict(zip(names, states, strict=True))}
    outputs = ["encoder_out", "encoder_out_lens", *(f"new_{name}" for name in names)]
    module = _Encoder(folded, normalizes).eval()
    all_axes = dict(zip([*inputs, *outputs], [0, 0, *axes] * 2, strict=True))
    return Step(module, folded, inputs, outputs, all_axes, values)


def predictor_step(model: Transducer) -> Step:
    """Return the predictor, with the joiner's projection.

    Input: `y` (N, context_size) int64, the last tokens, negative before the first; output: `decoder_out`
    (N, joiner_dim).
    """
    y = torch.zeros(EXAMPLE_STREAMS, model.decoder.context_size, dtype=torch.int64)
    module = Predictor(model).eval()
    return Step(module, module, {"y": y}, ["decoder_out"], {"y": 0, "decoder_out": 0})


def check_precision(precision: Precision) -> None:
    """Check that a graph of all languages can have the precision.

    Raises:
      ValueError: It is int8.
    """
    if precision == "int8":
        raise ValueError(
            "--precisions int8: a model for all languages has float32 or float16 weights; --format sherpa-onnx has int8"
        )


def _describe(
    model: Transducer, masks: PathwayMasks, encoder: Step, features: FbankConfig, precision: Precision
) -> dict[str, Any]:
    states = [name for name in encoder.inputs if name not in ("x", "x_lens")]
    return {
        "format": FORMAT,
        "version": VERSION,
        "precision": precision,
        "languages": list(masks.languages),
        "features": feature_options(features),
        "chunk_shift": model.chunk_shift,
        "chunk_window": model.chunk_window,
        "subsampling_factor": SUBSAMPLING_FACTOR,
        "context_size": model.decoder.context_size,
        "blank_id": model.decoder.blank_id,
        "states": [_describe_state(name, encoder.inputs[name], encoder.axes[name]) for name in states],
    }


def _describe_state(name: str, example: Tensor, axis: int) -> dict[str, Any]:
    shape = ["N" if index == axis else size for index, size in enumerate(example.shape)]
    return {"name": name, "dtype": str(example.numpy().dtype), "shape": shape, "stream_axis": axis}


class _Encoder(nn.Module):
    """`Transducer.stream` for features that are not normalized, followed by the joiner's projection."""

    def __init__(self, model: Transducer, normalizes: bool) -> None:
        super().__init__()
        self.model = model
        self.normalizes = normalizes

    def forward(self, x: Tensor, x_lens: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        if not self.normalizes:
            out, lens, new_states = self.model.stream(x, x_lens, list(states))
            return self.model.joiner.encoder_proj(out), lens, *new_states
        x, levels = normalize_frames(x, states[-1])
        level = levels[:, self.model.chunk_shift - 1]  # the frames after it are the first ones of the next chunk
        out, lens, new_states = self.model.stream(x, x_lens, list(states[:-1]))
        return self.model.joiner.encoder_proj(out), lens, *new_states, level
