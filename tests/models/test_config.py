import dataclasses

import pytest

from icefall_pathways.models.config import ModelConfig
from icefall_pathways.options import parse


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"segment_length": 30}, "segment_length is 30: expected a multiple of 4"),
        ({"left_context_length": 2}, "left_context_length is 2: expected a multiple of 4"),
        ({"right_context_length": -4}, "right-context-length is -4: expected at least 0"),
        ({"encoder_dim": 100}, r"encoder_dim is 100: expected a multiple of nhead \(8\)"),
        ({"decoder_dim": 30}, "decoder_dim is 30: expected a multiple of 4"),
        ({"encoder_type": "lstm"}, "encoder_type is 'lstm': expected emformer"),
        ({"dropout": 1.0}, "dropout is 1.0: expected at least 0 and less than 1"),
        ({"num_encoder_layers": 0}, "num-encoder-layers is 0: expected at least 1"),
        ({"subsampling_channels": "8"}, "subsampling_channels is '8': expected two positive numbers"),
        ({"subsampling_channels": "8,-1"}, "expected two positive numbers"),
    ],
)
def test_error_names_the_option_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        ModelConfig(**options)


def test_every_option_has_a_default_and_a_help_text(capsys):
    with pytest.raises(SystemExit):
        parse(ModelConfig, "A model.", ["--help"])
    help_text = capsys.readouterr().out
    for field in dataclasses.fields(ModelConfig):
        assert field.default is not dataclasses.MISSING
        assert "--" + field.name.replace("_", "-") in help_text
    assert "kernel of the causal convolution" in " ".join(help_text.replace("│", " ").lower().split())


def test_emformer_options_are_parsed_into_numbers():
    config = ModelConfig(encoder_dim="64", subsampling_channels="8, 32").architecture.encoder
    assert (config.num_encoder_layers, config.encoder_dim, config.subsampling_channels) == (12, 64, (8, 32))
