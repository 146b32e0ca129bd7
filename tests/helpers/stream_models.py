"""Small random transducers for streaming tests."""

import torch

from icefall_pathways.models.config import ModelConfig
from icefall_pathways.models.transducer import Transducer, build_model

SMALL = {
    "num_encoder_layers": 2,
    "encoder_dim": 16,
    "nhead": 2,
    "dim_feedforward": 16,
    "subsampling_channels": "2,4",
    "decoder_dim": 16,
    "joiner_dim": 16,
    "segment_length": 16,
    "left_context_length": 16,
    "right_context_length": 8,
}


MODELS = {
    "emformer": SMALL,
    "emformer-memory": SMALL | {"cnn_module_kernel": 5, "memory_size": 2},
    "emformer-no-look-ahead": SMALL | {"right_context_length": 0},
    "emformer-ctc": SMALL | {"ctc_head": True},
    "zipformer": {"encoder_type": "zipformer", "zipformer": "tiny"},
}


def make_model(kind: str, vocab_size: int = 20) -> Transducer:
    """Return one of `MODELS`, with larger weights, so that its output depends on the audio."""
    model = build_model(ModelConfig(**MODELS[kind]), vocab_size).eval()
    with torch.no_grad():
        model.joiner.encoder_proj.weight *= 8  # the output of small random weights hardly depends on the audio
        model.joiner.output_linear.weight *= 8
        model.decoder.embedding.weight[0].normal_()  # so that a pathway has an effect before the first token too
    return model
