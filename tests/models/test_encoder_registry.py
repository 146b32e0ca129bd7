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
    """The running mean of the encoder frames so far, through a hidden layer."""

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
        return self.chunk_shift

    @property
    def state_axes(self) -> list[int]:
        return [0, 0]

    def encode(self, encoder_embed: nn.Module, x: Tensor, x_lens: Tensor) -> Tensor:
        frames = -(-x.size(1) // SUBSAMPLING_FACTOR)
        x = pad_with_silence(x, x_lens, SUBSAMPLING_FACTOR * frames)
        return self._run(encoder_embed, x, self.init_states(encoder_embed, x.size(0), x.device, x.dtype))[0]

    def init_states(self, encoder_embed, batch_size, device, dtype) -> list[Tensor]:
        sums = torch.zeros(batch_size, 1, self.output_dim, device=device, dtype=dtype)
        return [sums, torch.zeros(batch_size, 1, 1, device=device, dtype=dtype)]

    def stream(self, encoder_embed, x, x_lens, states) -> tuple[Tensor, list[Tensor]]:
        return self._run(encoder_embed, pad_with_silence(x, x_lens, x.size(1)), states)

    def _run(self, encoder_embed: nn.Module, x: Tensor, states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        sums, counts = states
        sums = sums + encoder_embed(x.unflatten(1, (-1, SUBSAMPLING_FACTOR)).flatten(2)).cumsum(dim=1)
        counts = counts + torch.arange(1, sums.size(1) + 1, device=x.device).view(1, -1, 1)
        return self.layers(sums / counts), [sums[:, -1:], counts[:, -1:]]


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


@torch.no_grad()
def test_streams_of_a_registered_encoder_equal_encode(model_config):
    model = build_model(model_config(encoder_type="toy"), _VOCAB_SIZE).eval()
    x, x_lens, _, _ = _batch()
    expected, lens = model.encode(x, x_lens)
    states, chunks, streamed_lens = model.init_states(2), [], torch.zeros(2, dtype=torch.int64)
    for start in range(0, x.size(1), model.chunk_shift):
        chunk_lens = (x_lens - start).clamp(0, model.chunk_window)
        chunk, num_frames, states = model.stream(x[:, start : start + model.chunk_window], chunk_lens, states)
        streamed_lens += num_frames
        chunks.append(chunk)
    torch.testing.assert_close(torch.cat(chunks, dim=1), expected, atol=1e-5, rtol=0)
    assert torch.equal(streamed_lens, lens)


def test_encoders_share_only_the_options_of_the_base_class():
    shared = {field.name for field in fields(EncoderOptions)}
    own = [field.name for spec in ENCODERS.values() for field in fields(spec.options) if field.name not in shared]
    assert len(own) == len(set(own))


@pytest.mark.parametrize("text, encoder", [(_EMFORMER_JSON, "EmformerEncoder"), (_ZIPFORMER_JSON, "ZipformerEncoder")])
def test_config_written_before_the_registry_loads(text, encoder):
    config = from_dict(ModelConfig, json.loads(text))
    assert type(build_model(config, _VOCAB_SIZE).encoder).__name__ == encoder
    assert {**to_dict(config), **json.loads(text)} == to_dict(config)
