"""A new encoder is one folder and one line of the registry: a toy encoder is registered and trained."""

import json
import runpy
import warnings
from dataclasses import dataclass, fields, replace

import pytest
import torch
from torch import Tensor, nn

from icefall_pathways.constants import SUBSAMPLING_FACTOR
from icefall_pathways.models.config import ModelConfig
from icefall_pathways.models.encoder import Encoder, pad_with_silence
from icefall_pathways.models.encoder_options import Architecture, EncoderOptions, parse_ints
from icefall_pathways.models.registry import ENCODERS, EncoderSpec
from icefall_pathways.models.transducer import build_model
from icefall_pathways.options import from_dict, parse, to_dict
from icefall_pathways.training.config import ExperimentConfig
from icefall_pathways.training.optimization import with_optimizer
from icefall_pathways.training.option_checks import check_training_options

_VOCAB_SIZE = 20
_CHUNK_FRAMES = 2  # encoder frames

# `config.json` as written before encoders had a registry.
_EMFORMER_JSON = """{
  "zipformer": "default", "downsampling_factor": "", "encoder_unmasked_dim": "", "feedforward_dim": "", "num_heads": "",
  "query_head_dim": "", "value_head_dim": "", "pos_head_dim": "", "pos_dim": "", "front_end_channels": "",
  "causal": true, "chunk_size": "16,32,64,-1", "left_context_frames": "64,128,256,-1", "nhead": 2,
  "dim_feedforward": 16, "segment_length": 16, "left_context_length": 16, "right_context_length": 8, "memory_size": 0,
  "dropout": 0.1, "subsampling_channels": "2,4", "encoder_type": "emformer", "num_encoder_layers": "2",
  "encoder_dim": "16", "cnn_module_kernel": "", "decoder_dim": 16, "joiner_dim": 16, "context_size": 2,
  "ctc_head": false}"""
_ZIPFORMER_JSON = '{"encoder_type": "zipformer", "zipformer": "tiny", "chunk_size": "16", "left_context_frames": "64"}'


@dataclass(frozen=True)
class ToyOptions(EncoderOptions):
    """Options of the toy encoder."""

    toy_hidden_dim: int = 8
    """Toy: hidden width."""


@dataclass(frozen=True)
class ToyConfig:
    """Validated architecture of the toy encoder."""

    dim: int
    hidden_dim: int


def resolve_toy(options: ToyOptions) -> Architecture[ToyConfig]:
    if options.toy_hidden_dim < 1:
        raise ValueError(f"toy_hidden_dim is {options.toy_hidden_dim}: expected a positive number")
    (dim,) = parse_ints("encoder_dim", options.encoder_dim) or (16,)
    return Architecture(ToyConfig(dim, options.toy_hidden_dim), decoder_dim=16, joiner_dim=16)


class ToyEncoder(Encoder):
    """The mean of the frames so far and of one frame of look-ahead, through a hidden layer."""

    def __init__(self, config: ToyConfig) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(config.dim, config.hidden_dim), nn.Tanh(), nn.Linear(config.hidden_dim, config.dim)
        )

    @property
    def output_dim(self) -> int:
        return self.layers[0].in_features

    @property
    def chunk_shift(self) -> int:
        return SUBSAMPLING_FACTOR * _CHUNK_FRAMES

    @property
    def chunk_window(self) -> int:
        return self.chunk_shift + SUBSAMPLING_FACTOR

    @property
    def state_axes(self) -> list[int]:
        return [0, 0]

    def encode(self, encoder_embed: nn.Module, x: Tensor, x_lens: Tensor) -> Tensor:
        frames = -(-x.size(1) // SUBSAMPLING_FACTOR)
        x = pad_with_silence(x, x_lens, SUBSAMPLING_FACTOR * (frames + 1))
        return self._run(encoder_embed, x, self.init_states(encoder_embed, x.size(0), x.device, x.dtype))[0]

    def init_states(self, encoder_embed, batch_size, device, dtype) -> list[Tensor]:
        sums = torch.zeros(batch_size, 1, self.output_dim, device=device, dtype=dtype)
        return [sums, torch.zeros(batch_size, 1, 1, device=device, dtype=dtype)]

    def stream(self, encoder_embed, x, x_lens, states) -> tuple[Tensor, list[Tensor]]:
        return self._run(encoder_embed, pad_with_silence(x, x_lens, x.size(1)), states)

    def _run(self, encoder_embed: nn.Module, x: Tensor, states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        sums, counts = states
        frames = encoder_embed(x.unflatten(1, (-1, SUBSAMPLING_FACTOR)).flatten(2))
        sums = sums + frames[:, :-1].cumsum(dim=1)
        counts = counts + torch.arange(1, sums.size(1) + 1, device=x.device).view(1, -1, 1)
        return self.layers((sums + frames[:, 1:]) / (counts + 1)), [sums[:, -1:], counts[:, -1:]]


def build_toy(config: ToyConfig, num_bins: int) -> tuple[nn.Module, ToyEncoder]:
    return nn.Linear(SUBSAMPLING_FACTOR * num_bins, config.dim), ToyEncoder(config)


@pytest.fixture
def model_config(monkeypatch) -> type[ModelConfig]:
    """`ModelConfig` as its module defines it when the registry has a line for the toy encoder."""
    monkeypatch.setitem(ENCODERS, "toy", EncoderSpec(ToyOptions, resolve_toy, build_toy))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*found in sys.modules")  # a second copy is intended
        return runpy.run_module("icefall_pathways.models.config")["ModelConfig"]


def _batch() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return torch.randn(2, 40, 80), torch.tensor([40, 29]), torch.tensor([[3, 4, 5], [6, 7, 0]]), torch.tensor([3, 2])


def test_options_of_a_registered_encoder_are_command_line_options(model_config):
    config = parse(model_config, "A model.", ["--encoder-type", "toy", "--toy-hidden-dim", "4", "--encoder-dim", "12"])
    assert config.architecture == Architecture(ToyConfig(dim=12, hidden_dim=4), decoder_dim=16, joiner_dim=16)
    with pytest.raises(ValueError, match="toy_hidden_dim is 0: expected a positive number"):
        model_config(encoder_type="toy", toy_hidden_dim=0)


def test_config_of_a_registered_encoder_survives_a_json_round_trip(model_config):
    config = model_config(encoder_type="toy", toy_hidden_dim=4)
    assert from_dict(model_config, json.loads(json.dumps(to_dict(config)))) == config


def test_training_uses_optimizer_and_options_of_a_registered_encoder(model_config):
    config = with_optimizer(ExperimentConfig(model=model_config(encoder_type="toy", toy_hidden_dim=4)))
    assert config.training.optimizer == "scaled-adam"
    check_training_options(config, None)
    with pytest.raises(ValueError, match="--nhead has no effect with --encoder-type toy"):
        check_training_options(replace(config, model=model_config(encoder_type="toy", nhead=2)), None)


def test_training_a_registered_encoder_decreases_the_loss(model_config):
    model = build_model(model_config(encoder_type="toy"), _VOCAB_SIZE)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    batch, losses = _batch(), []
    for _ in range(20):
        loss = model(*batch)
        optimizer.zero_grad()
        (loss.simple + loss.pruned).backward()
        optimizer.step()
        losses.append(float(loss.pruned.detach()))
    assert losses[-1] < 0.5 * losses[0]


def _chunk(model, x: Tensor, length: int, index: int) -> tuple[Tensor, Tensor]:
    """Return chunk `index` of an utterance x (1, T, F) as `stream` expects it: (1, chunk_window, F), and its length."""
    start = index * model.chunk_shift
    chunk = x[:, start : start + model.chunk_window]
    padded = nn.functional.pad(chunk, (0, 0, 0, model.chunk_window - chunk.size(1)), value=torch.inf)
    return padded, torch.tensor([length - start]).clamp(0, model.chunk_window)


def _advance(model, utterances, index: list[int], states: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Encode chunk `index` of every utterance in one batch; return the valid frames of each, and the new states."""
    chunks = [_chunk(model, x, x.size(1), i) for x, i in zip(utterances, index, strict=True)]
    x, x_lens = (torch.cat(tensors) for tensors in zip(*chunks, strict=True))
    out, num_frames, states = model.stream(x, x_lens, states)
    return [frames[:count] for frames, count in zip(out, num_frames.tolist(), strict=True)], states


def _encode(model, x: Tensor) -> Tensor:
    return model.encode(x, torch.tensor([x.size(1)]))[0][0]


@torch.no_grad()
def test_streams_of_different_lengths_equal_encode(model_config):
    model = build_model(model_config(encoder_type="toy"), _VOCAB_SIZE).eval()
    utterances = [torch.randn(1, length, 80) for length in (40, 29, 3)]
    states, streamed = model.init_states(3), [[], [], []]
    for index in range(-(-40 // model.chunk_shift)):
        frames, states = _advance(model, utterances, [index] * 3, states)
        for stream, new in zip(streamed, frames, strict=True):
            stream.append(new)
    for stream, x in zip(streamed, utterances, strict=True):
        torch.testing.assert_close(torch.cat(stream), _encode(model, x), atol=1e-5, rtol=0)


@torch.no_grad()
def test_streams_of_different_age_share_a_batch(model_config):
    model = build_model(model_config(encoder_type="toy"), _VOCAB_SIZE).eval()
    old, new = torch.randn(1, 40, 80), torch.randn(1, 21, 80)
    states, streamed = model.init_states(1), [[], []]
    for index in range(2):
        (frames,), states = _advance(model, [old], [index], states)
        streamed[0].append(frames)
    axes, start = model.encoder.state_axes, model.init_states(1)
    states = [torch.cat(pair, dim=axis) for *pair, axis in zip(states, start, axes, strict=True)]
    for index in range(3):
        frames, states = _advance(model, [old, new], [index + 2, index], states)
        for stream, added in zip(streamed, frames, strict=True):
            stream.append(added)
    for stream, x in zip(streamed, (old, new), strict=True):
        torch.testing.assert_close(torch.cat(stream), _encode(model, x), atol=1e-5, rtol=0)


@torch.no_grad()
def test_padding_has_no_effect_on_encoded_frames(model_config):
    model = build_model(model_config(encoder_type="toy"), _VOCAB_SIZE).eval()
    x = torch.randn(1, 29, 80)
    padded = nn.functional.pad(x, (0, 0, 0, 11), value=torch.inf)
    out, lens = model.encode(padded, torch.tensor([29]))
    torch.testing.assert_close(out[0, : int(lens)], _encode(model, x), atol=1e-5, rtol=0)


def test_encoders_share_only_the_options_of_the_base_class():
    shared = {field.name for field in fields(EncoderOptions)}
    own = [field.name for spec in ENCODERS.values() for field in fields(spec.options) if field.name not in shared]
    assert len(own) == len(set(own))


@pytest.mark.parametrize("text, encoder", [(_EMFORMER_JSON, "EmformerEncoder"), (_ZIPFORMER_JSON, "ZipformerEncoder")])
def test_config_written_before_the_registry_loads(text, encoder):
    config = from_dict(ModelConfig, json.loads(text))
    assert type(build_model(config, _VOCAB_SIZE).encoder).__name__ == encoder
    assert {**to_dict(config), **json.loads(text)} == to_dict(config)
