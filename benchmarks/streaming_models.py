"""Models of the sizes of published ones, with random weights, for benchmarks of streaming."""

from icefall_pathways.models.config import ModelConfig

VOCAB_SIZE = 500

_EMFORMER = {"segment_length": 32, "left_context_length": 128, "right_context_length": 8, "cnn_module_kernel": 15}
_ZIPFORMER = {"encoder_type": "zipformer", "chunk_size": "16", "left_context_frames": "128"}
_HEAD = {"decoder_dim": 256, "joiner_dim": 256}
MODELS = {
    "emformer-5M": ModelConfig(
        num_encoder_layers=6, encoder_dim=224, nhead=4, dim_feedforward=896, **_EMFORMER, **_HEAD
    ),
    "emformer-20M": ModelConfig(
        num_encoder_layers=12, encoder_dim=320, nhead=4, dim_feedforward=1280, **_EMFORMER, **_HEAD
    ),
    "zipformer-5M": ModelConfig(zipformer="small", **_ZIPFORMER),
    "zipformer-20M": ModelConfig(zipformer="medium", **_ZIPFORMER),
    "zipformer-66M": ModelConfig(zipformer="default", **_ZIPFORMER),
}
