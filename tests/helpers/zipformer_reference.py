"""The public implementation's weights and numbers, and a model of ours with those weights."""

from dataclasses import dataclass, fields
from typing import Any

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


def model_config(numbers):
    """Our options of the architecture that the numbers come from."""
    config = numbers["config"]
    names = {field.name for field in fields(ModelConfig)}
    options = {key: value if key == "causal" else str(value) for key, value in config.items() if key in names}
    options |= {key: int(config[key]) for key in ("decoder_dim", "joiner_dim", "context_size")}
    return ModelConfig(encoder_type="zipformer", **options)


def load(fixtures_dir, name, dtype):
    numbers = torch.load(fixtures_dir / f"{name}.pt", map_location="cpu")
    model = build_model(model_config(numbers), int(numbers["config"]["vocab_size"])).to(dtype).eval()
    model.load_state_dict({key: value.to(dtype) for key, value in numbers["state_dict"].items()})
    return Reference(numbers, model)
