"""The public implementation's weights and numbers, and a model of ours with those weights."""

from dataclasses import dataclass, fields
from typing import Any

import pytest
import torch

from icefall_pathways.models.config import ModelConfig
from icefall_pathways.models.transducer import Transducer, build_model


@dataclass
class Reference:
    """Numbers of the public implementation, and our model with its weights, in eval mode."""

    numbers: dict[str, Any]
    model: Transducer

    def embed(self, x):
        return self.model.encoder_embed(x)

    def encode(self, x, run):
        """Encode embedded frames x as the public implementation does: without silence behind the utterances."""
        chunk, left = run.removeprefix("chunk").split("_left")
        return self.model.encoder(x, self.numbers["embed_lens"], int(chunk), int(left))


def load(fixtures_dir, name, dtype):
    numbers = torch.load(fixtures_dir / f"{name}.pt", map_location="cpu")
    config = numbers["config"]
    names = {field.name for field in fields(ModelConfig)}
    options = {key: value if key == "causal" else str(value) for key, value in config.items() if key in names}
    options |= {key: int(config[key]) for key in ("decoder_dim", "joiner_dim", "context_size")}
    model = build_model(ModelConfig(encoder_type="zipformer", **options), int(config["vocab_size"])).to(dtype).eval()
    model.load_state_dict({key: value.to(dtype) for key, value in numbers["state_dict"].items()})
    return Reference(numbers, model)


@pytest.fixture(scope="session", params=["causal", "noncausal"])
def reference(request, fixtures_dir):
    return load(fixtures_dir, request.param, torch.float32)


@pytest.fixture(scope="session", params=["causal", "noncausal"])
def exact_reference(request, fixtures_dir):
    """In float64. (The code of distances is computed in float32, there as here.)"""
    return load(fixtures_dir, request.param, torch.float64)


@pytest.fixture(scope="session")
def causal_reference(fixtures_dir):
    return load(fixtures_dir, "causal", torch.float32)


@pytest.fixture
def captured():
    """`captured(model, names)`: what those submodules give, by name, as they run."""
    handles, found = [], {}

    def capture(model, names):
        for name in names:

            def keep(module, args, out, name=name):
                found[name] = out[0] if isinstance(out, tuple) else out

            handles.append(model.get_submodule(name).register_forward_hook(keep))
        return found

    yield capture
    for handle in handles:
        handle.remove()
