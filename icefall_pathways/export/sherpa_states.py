"""Encoder states as sherpa-onnx keeps them between chunks, and the metadata from which it creates them.

sherpa-onnx has a fixed set of streaming encoders. It creates the initial states as zeros, with shapes that follow from
the metadata of the encoder's file, and passes the outputs of a chunk to the next one in the same order.

The states include the level of each stream (N,), see `data.level.normalize_frames`: the encoder's graph normalizes the
features, since sherpa-onnx does not.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from icefall_pathways.models.emformer.streaming_encoder import EmformerEncoder
from icefall_pathways.models.encoder import Encoder
from icefall_pathways.models.transducer import Transducer
from icefall_pathways.models.zipformer.layer import STATE_AXES, STATES_PER_LAYER
from icefall_pathways.models.zipformer.streaming_encoder import ZipformerEncoder

# The loader of `zipformer2` has no metadata for the channels of the subsampling's state.
_EMBED_CHANNELS = 128

# Packing of the frame counter and the level of a Zipformer.
_COUNTER_RANGE = 2**32
_LEVEL_UNITS = 2.0**24

_LAYER_STATES = ("cached_key", "cached_nonlin_attn", "cached_val1", "cached_val2", "cached_conv1", "cached_conv2")


class SherpaStates(ABC):
    """Conversion of a model's states to those of one of sherpa-onnx's encoders.

    Attributes:
      model_type: The encoder's name in sherpa-onnx.
      comment: Stored in the file.
      metadata: Shapes that the loader reads.
      names: Names of the states.
      axes: Axis of the streams of each state.
    """

    model_type: str
    comment: str

    def __init__(self, metadata: dict[str, object], names: Sequence[str], axes: Sequence[int]) -> None:
        self.metadata = metadata
        self.names = list(names)
        self.axes = list(axes)

    @abstractmethod
    def pack(self, states: list[Tensor], level: Tensor) -> list[Tensor]:
        """Convert states of the model (`Transducer.stream`) and levels (N,) to states of sherpa-onnx."""

    @abstractmethod
    def unpack(self, states: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
        """Convert states of sherpa-onnx to states of the model and levels (N,); the inverse of `pack`."""


class Zipformer2States(SherpaStates):
    """States of the Zipformer: the model's own, with more channels of the subsampling's state where it has fewer.

    `processed_lens` holds the frame counter in its low 32 bits, and the level, in units of 2^-24, in its high ones.

    Args:
      encoder: The Zipformer with its present chunk size and left context.
      channels: Channels of the subsampling.

    Raises:
      ValueError: sherpa-onnx does not support the number of channels.
    """

    model_type = "zipformer2"
    comment = "streaming zipformer2"

    def __init__(self, encoder: ZipformerEncoder, channels: int) -> None:
        config = encoder.config
        if channels > _EMBED_CHANNELS:
            raise ValueError(
                f"the subsampling of this Zipformer has {channels} channels, and sherpa-onnx supports at most "
                f"{_EMBED_CHANNELS}: train with a smaller last value of --front-end-channels"
            )
        names = [f"{name}_{i}" for i in range(sum(config.num_encoder_layers)) for name in _LAYER_STATES]
        assert len(_LAYER_STATES) == STATES_PER_LAYER
        lists = {
            "num_encoder_layers": config.num_encoder_layers,
            "encoder_dims": config.encoder_dim,
            "cnn_module_kernels": config.cnn_module_kernel,
            "left_context_len": [encoder.left_context_frames // factor for factor in config.downsampling_factor],
            "query_head_dims": config.query_head_dim,
            "value_head_dims": config.value_head_dim,
            "num_heads": config.num_heads,
        }
        super().__init__(
            {name: ",".join(map(str, values)) for name, values in lists.items()},
            [*names, "embed_states", "processed_lens"],
            [*STATE_AXES * sum(config.num_encoder_layers), 0, 0],
        )
        self._channels = channels

    def pack(self, states: list[Tensor], level: Tensor) -> list[Tensor]:
        """Pad the channels of the subsampling's state, and pack the frame counter and the level into int64."""
        *caches, embed, processed_lens = states
        missing = _EMBED_CHANNELS - self._channels
        packed = (level.double() * _LEVEL_UNITS).round().long() * _COUNTER_RANGE + processed_lens.long()
        return [*caches, F.pad(embed, (0, 0, 0, 0, 0, missing)) if missing else embed, packed]

    def unpack(self, states: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
        """Select the used channels of the subsampling's state, and unpack the frame counter, int32, and the level."""
        *caches, embed, packed = states
        units = packed.div(_COUNTER_RANGE, rounding_mode="trunc")
        processed_lens = (packed - units * _COUNTER_RANGE).int()
        return [*caches, embed[:, : self._channels], processed_lens], units.double() / _LEVEL_UNITS


class LstmStates(SherpaStates):
    """States of the Emformer, flattened into the two states of sherpa-onnx's LSTM, which has no Emformer.

    `h` (layers, N, S) holds the memory bank, the left context and the inputs of the convolution of each layer; `c`
    (layers, N, 2) the number of processed frames, up to the largest one that has an effect, so that float32 is exact,
    and the level.

    Args:
      encoder: The Emformer.

    Raises:
      ValueError: The Emformer has no state, which the LSTM cannot express.
    """

    model_type = "lstm"
    comment = (
        "a streaming Emformer in the container of sherpa-onnx's lstm, which has no loader for Emformers: "
        "state h holds the attention and convolution caches of each layer, and c the number of processed frames "
        "and the level of the features"
    )

    def __init__(self, encoder: EmformerEncoder) -> None:
        states = encoder.get_init_states(1)[:-1]
        self._shapes = [tuple(state.shape[2:]) for state in states]
        self._layers = len(encoder.emformer_layers)
        self._sizes = [rows * dim for rows, dim in self._shapes]
        if not sum(self._sizes):
            raise ValueError(
                "this Emformer has no left context, memory or convolution, and sherpa-onnx needs a state: train with "
                "--left-context-length of at least 4"
            )
        self._max_frames = max(encoder.left_context_length, encoder.max_memory_size * encoder.segment_length)
        super().__init__(
            {"num_encoder_layers": self._layers, "d_model": sum(self._sizes), "rnn_hidden_size": 2}, ["h", "c"], [1, 1]
        )

    def pack(self, states: list[Tensor], level: Tensor) -> list[Tensor]:
        """Concatenate the caches of each layer; see the class."""
        *caches, frames = states
        h = torch.cat([cache.flatten(2) for cache, size in zip(caches, self._sizes, strict=True) if size], dim=2)
        c = torch.stack([frames.clamp(max=self._max_frames).to(h.dtype), level.to(h.dtype)], dim=1)
        return [h.transpose(0, 1), c.repeat(self._layers, 1, 1)]

    def unpack(self, states: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
        """Split the caches of each layer; the inverse of `pack`."""
        h, c = states
        batch, start, caches = h.transpose(0, 1), 0, []
        for size, shape in zip(self._sizes, self._shapes, strict=True):
            if size:
                flat = batch[:, :, start : start + size]
                caches.append(flat.reshape(-1, self._layers, *shape))
            else:
                caches.append(batch.new_zeros(batch.size(0), self._layers, *shape))
            start += size
        return [*caches, c[0, :, 0].long()], c[0, :, 1]


def sherpa_states(model: Transducer) -> SherpaStates:
    """Return the conversion of the states of a model.

    Raises:
      ValueError: sherpa-onnx has no encoder for the model.
    """
    for encoder_class, build in _BUILDERS.items():
        if isinstance(model.encoder, encoder_class):
            return build(model)
    raise ValueError(
        f"sherpa-onnx cannot run {type(model.encoder).__name__}: expected one of "
        f"{', '.join(cls.__name__ for cls in _BUILDERS)}; add a class to {__name__}"
    )


def _zipformer(model: Transducer) -> SherpaStates:
    assert isinstance(model.encoder, ZipformerEncoder)
    channels = model.get_submodule("encoder_embed").channels
    assert isinstance(channels, int)
    return Zipformer2States(model.encoder, channels)


def _emformer(model: Transducer) -> SherpaStates:
    assert isinstance(model.encoder, EmformerEncoder)
    return LstmStates(model.encoder)


_BUILDERS: dict[type[Encoder], Callable[[Transducer], SherpaStates]] = {
    ZipformerEncoder: _zipformer,
    EmformerEncoder: _emformer,
}
