"""A folder with one model for all languages for sherpa-onnx, in the container of a multilingual NeMo transducer.

sherpa-onnx passes the language of each stream to models of this type. The other differences to its icefall-type models
are resolved inside the graphs:

- Features: see `nemo_features`.
- States: two tensors hold all states of the encoder.
- Language of the predictor: the encoder's frames have the index of the language as an additional channel, the predictor
  returns its output in every language, and the joiner selects one.
- Blank is the last token.
"""

import copy
import json
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from icefall_pathways.constants import SUBSAMPLING_FACTOR
from icefall_pathways.data.features import FbankConfig
from icefall_pathways.data.tokenizer import Tokenizer
from icefall_pathways.experiment import layout
from icefall_pathways.export.graphs import Predictor
from icefall_pathways.export.multilingual import Step, multilingual_graph
from icefall_pathways.export.multilingual_folder import DESCRIPTION_FILE, check_precision, encoder_step
from icefall_pathways.export.nemo_features import conversion_matrix, convert_features
from icefall_pathways.export.onnx import EXAMPLE_STREAMS, WeightsAsInputs, export_onnx, with_metadata, write_graphs
from icefall_pathways.export.precision import Precision
from icefall_pathways.export.sherpa import SherpaFiles
from icefall_pathways.export.tokens import VOCABULARY_FILE, write_token_files
from icefall_pathways.files import atomic_write
from icefall_pathways.models.joiner import Joiner
from icefall_pathways.models.transducer import Transducer
from icefall_pathways.pathways.activation import FoldedPathways
from icefall_pathways.pathways.masks import PathwayMasks

_PROMPT = "prompt_index"  # the name by which sherpa-onnx finds the input
_BLANK = "<blk>"


def export_sherpa_multilingual(
    folder: Path,
    model: Transducer,
    masks: PathwayMasks,
    tokenizer: Tokenizer,
    features: FbankConfig,
    precision: Precision = "float32",
) -> SherpaFiles:
    """Write the folder; existing files are replaced. The arguments are those of `export_multilingual`.

    Raises:
      ValueError: A weight is not finite in this precision, or the precision is int8.
    """
    check_precision(precision)
    (folder / DESCRIPTION_FILE).unlink(missing_ok=True)  # of an earlier export, whose graphs are replaced
    model, masks = copy.deepcopy(model).cpu(), masks.to("cpu")
    files = SherpaFiles(
        encoder=folder / "encoder.onnx",
        decoder=folder / "decoder.onnx",
        joiner=folder / "joiner.onnx",
        tokens=folder / layout.TOKENS_FILE,
        bpe_vocab=folder / VOCABULARY_FILE,
    )
    predictor_masks = masks.below("decoder.")
    graphs = {
        files.encoder: _encoder_graph(model, masks, features, precision),
        files.decoder: _predictor_graph(model, predictor_masks),
        files.joiner: _joiner_graph(model, len(masks.languages) if predictor_masks.names else 1),
    }
    write_graphs(graphs.items())
    write_token_files(tokenizer, folder)
    with atomic_write(files.tokens) as temporary:
        symbols = [*tokenizer.symbols[1:], _BLANK]
        temporary.write_text("".join(f"{symbol} {i}\n" for i, symbol in enumerate(symbols)), encoding="utf-8")
    return files


def _encoder_graph(model: Transducer, masks: PathwayMasks, features: FbankConfig, precision: Precision) -> bytes:
    encoder_masks = masks.below("encoder")
    step = encoder_step(model, encoder_masks, features)
    module = _NemoEncoder(step, conversion_matrix(features)).eval()
    x, x_lens, *states = step.inputs.values()
    inputs = {
        "audio_signal": x.transpose(1, 2).contiguous(),
        "length": x_lens,
        "cache_last_channel": module.packings[0].pack(states[:-1]),
        "cache_last_time": module.packings[1].pack(states[-1:]),
        "cache_last_channel_len": torch.zeros(len(x), dtype=torch.int64),
        _PROMPT: torch.zeros(len(x), dtype=torch.int64),
    }
    outputs = ["outputs", "encoded_lengths", *(f"{name}_next" for name in list(inputs)[2:5])]
    nemo = Step(module, step.owner, inputs, outputs, dict.fromkeys([*inputs, *outputs], 0), step.values)
    caches = ("cache_last_channel", "cache_last_time")
    languages = {language: index for index, language in enumerate(masks.languages)}
    metadata = {
        "vocab_size": model.joiner.output_linear.out_features - 1,  # without blank
        "window_size": model.chunk_window,
        "chunk_shift": model.chunk_shift,
        "subsampling_factor": SUBSAMPLING_FACTOR,
        "normalize_type": "NA",
        "pred_rnn_layers": 1,
        "pred_hidden": model.decoder.context_size,
        **{f"{name}_dim{axis}": inputs[name].size(axis) for name in caches for axis in (1, 2, 3)},
        "prompt_dictionary": json.dumps({**languages, "auto": 0}),
        "auto_prompt_id": 0,
        "comment": "a model of icefall_pathways in the container of a multilingual NeMo transducer",
    }
    return with_metadata(multilingual_graph(nemo, encoder_masks, precision, _PROMPT), metadata)


class _Packing:
    """Conversion of states to one tensor (N, 1, 1, S) float32, and back.

    Args:
      examples: The states.
      axes: The axis with the streams of each.
    """

    def __init__(self, examples: Sequence[Tensor], axes: Sequence[int]) -> None:
        self._axes, self._dtypes = axes, [state.dtype for state in examples]
        self._shapes = [tuple(s.transpose(0, axis).shape[1:]) for s, axis in zip(examples, axes, strict=True)]
        self._sizes = [math.prod(shape) for shape in self._shapes]

    def pack(self, states: Sequence[Tensor]) -> Tensor:
        """Concatenate the states."""
        parts = zip(states, self._axes, self._sizes, strict=True)
        flat = [state.transpose(0, axis).float().reshape(-1, size) for state, axis, size in parts if size]
        return torch.cat(flat, dim=1)[:, None, None]

    def unpack(self, packed: Tensor) -> list[Tensor]:
        """Split the states; the inverse of `pack`."""
        flat, states, start = packed[:, 0, 0], [], 0
        for axis, dtype, shape, size in zip(self._axes, self._dtypes, self._shapes, self._sizes, strict=True):
            piece = flat[:, start : start + size]
            state = piece.reshape(-1, *shape) if size else flat.new_zeros(flat.size(0), *shape)
            states.append(state.transpose(0, axis).to(dtype))
            start += size
        return states


class _NemoEncoder(nn.Module):
    """The encoder of `step` with the inputs and outputs of NeMo's encoders.

    `cache_last_time` holds the last state, and `cache_last_channel` all others.
    """

    def __init__(self, step: Step, matrix: Tensor) -> None:
        super().__init__()
        self.module = step.module
        states = list(step.inputs)[2:]
        self.packings = [
            _Packing([step.inputs[name] for name in names], [step.axes[name] for name in names])
            for names in (states[:-1], states[-1:])
        ]
        self.register_buffer("matrix", matrix)

    def forward(
        self, audio_signal: Tensor, length: Tensor, channel: Tensor, time: Tensor, count: Tensor, language: Tensor
    ) -> tuple[Tensor, ...]:
        x = convert_features(audio_signal.transpose(1, 2), self.get_buffer("matrix"))
        first, second = self.packings
        out, lens, *states = self.module(x, length, *first.unpack(channel), *second.unpack(time))
        index = language.to(out.dtype)[:, None, None].expand(-1, 1, int(out.size(1)))
        frames = torch.cat([out.transpose(1, 2), index], dim=1)
        return frames, lens, first.pack(states[:-1]), second.pack(states[-1:]), count + 1


def _predictor_graph(model: Transducer, masks: PathwayMasks) -> bytes:
    pathways, context_size = FoldedPathways(model, masks), model.decoder.context_size
    weights = [[pathways.weights(language)[name] for name in masks.names] for language in masks.languages]
    inputs = {
        "targets": torch.zeros(EXAMPLE_STREAMS, 1, dtype=torch.int32),
        "target_length": torch.ones(EXAMPLE_STREAMS, dtype=torch.int32),
        "context": torch.zeros(1, EXAMPLE_STREAMS, context_size),
        "unused": torch.zeros(1, EXAMPLE_STREAMS, context_size),
    }
    outputs = ["outputs", "prednet_lengths", "new_context", "new_unused"]
    axes = dict(zip([*inputs, *outputs], [0, 0, 1, 1] * 2, strict=True))
    module = _NemoPredictor(Predictor(model), masks.names, weights if masks.names else [[]])
    return export_onnx(module.eval(), inputs, outputs, axes)


class _NemoPredictor(nn.Module):
    """The predictor in every language, one after the other in the channels.

    The state is the context, with tokens increased by one: it is zero before the first token.
    """

    def __init__(self, predictor: Predictor, names: Sequence[str], weights: Sequence[Sequence[Tensor]]) -> None:
        super().__init__()
        self.module = WeightsAsInputs(predictor, predictor, names)
        self.vocab_size = predictor.decoder.embedding.num_embeddings
        self.weights = weights

    def forward(
        self, targets: Tensor, target_length: Tensor, context: Tensor, unused: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        token = torch.remainder(targets.long() + 1, self.vocab_size)  # blank is the last token here, and 0 in the model
        y = torch.cat([context[0, :, 1:].long() - 1, token], dim=1)
        outputs = torch.cat([self.module(y, *weights) for weights in self.weights], dim=1)
        # Sums: an output cannot be an input.
        return outputs.unsqueeze(2), target_length + 0, (y + 1).float().unsqueeze(0), unused + 0


def _joiner_graph(model: Transducer, num_outputs: int) -> bytes:
    width = model.joiner.output_linear.in_features
    inputs = {
        "encoder_outputs": torch.zeros(EXAMPLE_STREAMS, width + 1, 1),
        "decoder_outputs": torch.zeros(EXAMPLE_STREAMS, num_outputs * width, 1),
    }
    axes = dict.fromkeys([*inputs, "outputs"], 0)
    return export_onnx(_NemoJoiner(model.joiner, num_outputs).eval(), inputs, ["outputs"], axes)


class _NemoJoiner(nn.Module):
    """The joiner for one frame; selects the output of the predictor in the language of the frame."""

    def __init__(self, joiner: Joiner, num_outputs: int) -> None:
        super().__init__()
        self.joiner, self.num_outputs = joiner, num_outputs

    def forward(self, encoder_outputs: Tensor, decoder_outputs: Tensor) -> Tensor:
        width = self.joiner.output_linear.in_features
        frames, language = encoder_outputs[:, :width, 0], encoder_outputs[:, width:, 0].long()
        predicted = decoder_outputs.reshape(-1, self.num_outputs, width)
        if self.num_outputs > 1:
            predicted = predicted.gather(1, language.unsqueeze(2).expand(-1, 1, width))
        logits = self.joiner(frames, predicted[:, 0], project_input=False)
        return torch.cat([logits[:, 1:], logits[:, :1]], dim=1)[:, None, None]  # blank is the last token
