"""The public implementation's weights and numbers, and a model of ours with those weights."""

from dataclasses import dataclass, fields
from typing import Any

from public_numbers import load_numbers

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
        """Encode embedded frames x as the public implementation does: without silence after the utterances."""
        chunk, left = run.removeprefix("chunk").split("_left")
        return self.model.encoder(x, self.numbers["embed_lens"], int(chunk), int(left))


def model_config(numbers):
    """Return our architecture options for those of the public implementation."""
    config = numbers["config"]
    names = {field.name for field in fields(ModelConfig)}
    options = {key: value if key == "causal" else str(value) for key, value in config.items() if key in names}
    options |= {key: int(config[key]) for key in ("decoder_dim", "joiner_dim", "context_size")}
    return ModelConfig(encoder_type="zipformer", **options)


def load(name, dtype):
    """Load the fixture `name` into a model; parameters that the fixture lacks keep their random values."""
    numbers = load_numbers(name)
    model = build_model(model_config(numbers), int(numbers["config"]["vocab_size"])).to(dtype).eval()
    weights = {key: value.to(dtype) for key, value in numbers["state_dict"].items()}
    unknown = set(weights) - set(model.state_dict())
    assert not unknown, f"the model has no parameters {sorted(unknown)}"
    model.load_state_dict(model.state_dict() | weights)
    return Reference(numbers, model)
