"""Reference outputs of icefall, and our model with the same weights."""

from dataclasses import dataclass, fields
from typing import Any

from public_numbers import load_numbers

from icefall_pathways.models.config import ModelConfig
from icefall_pathways.models.transducer import Transducer, build_model


@dataclass
class Reference:
    """Reference outputs of icefall, and our model with the same weights, in eval mode."""

    numbers: dict[str, Any]
    model: Transducer

    def embed(self, x):
        return self.model.encoder_embed(x)

    def encode(self, x, run):
        """Encode embedded frames x as icefall does: without silence after the utterances."""
        chunk, left = run.removeprefix("chunk").split("_left")
        return self.model.encoder(x, self.numbers["embed_lens"], int(chunk), int(left))


def model_config(numbers):
    """Convert icefall's architecture options to ours."""
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
