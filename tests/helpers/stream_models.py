"""Small random transducers for streaming tests."""

import torch

from icefall_pathways.models.config import ModelConfig
from icefall_pathways.models.transducer import Transducer, build_model
from icefall_pathways.pathways.activation import FoldedPathways
from icefall_pathways.pathways.language_parameters import language_dependent_modules

LANGUAGES = ("en", "fr", "it", "nl", "pt-BR")
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
    """Return one of `MODELS`, with larger weights, so that its output depends on the audio.

    With the suffix "-language", the language is an input of the model.
    """
    name, is_plain = kind.removesuffix("-language"), not kind.endswith("-language")
    model = build_model(ModelConfig(**MODELS[name], language_input=not is_plain), vocab_size, LANGUAGES).eval()
    with torch.no_grad():
        for _, module, _ in language_dependent_modules(model):
            for parameter in module.parameters():
                parameter.normal_(std=0.5)
        model.joiner.encoder_proj.weight *= 8  # the output of small random weights hardly depends on the audio
        model.joiner.output_linear.weight *= 8
        model.decoder.embedding.weight[0].normal_()  # so that a pathway has an effect before the first token too
    return model


@torch.inference_mode()
def spread_tokens(pathways: FoldedPathways, never: tuple[int, ...] = ()) -> None:
    """Change the joiner's output layer so that noise gives many tokens in every pathway, none of `never`."""
    model, layer = pathways.model, pathways.model.joiner.output_linear
    x = torch.randn(4, model.chunk_window * 4, 80) * 3 - 8
    logits = []
    for language in pathways.masks.languages:
        with pathways.activate(language):
            frames, _ = model.encode(x, torch.full((4,), x.size(1)))
            predicted = model.decoder(torch.randint(0, layer.out_features, (4, frames.size(1))))
            logits.append(model.joiner(frames, predicted).flatten(0, 1))
    scale = 5 / torch.cat(logits).std(dim=0).clamp(min=1e-3)
    layer.weight *= scale[:, None]
    layer.bias.copy_((layer.bias - torch.cat(logits).mean(dim=0)) * scale)
    layer.bias[list(never)] = -1e4
