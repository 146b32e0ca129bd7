"""icefall checkpoint of one language, for icefall's own scripts."""

from pathlib import Path

from icefall_pathways import torch_compat
from icefall_pathways.data.features import FbankConfig
from icefall_pathways.export.language_model import language_model
from icefall_pathways.files import atomic_write
from icefall_pathways.models.language_input import language_of_vector
from icefall_pathways.models.zipformer.streaming_encoder import ZipformerEncoder
from icefall_pathways.pathways.activation import FoldedPathways

PRETRAINED_FILE = "pretrained.pt"

_AUXILIARY = "ctc_output."  # icefall's model has other names for it, and none without --use-ctc


def export_icefall(pathways: FoldedPathways, language: str, folder: Path) -> Path:
    """Write `LANGUAGE/pretrained.pt`: a dict with the weights of a language under `model`, the mask multiplied in.

    Args:
      pathways: The languages' sub-networks of a transducer, none of which is active.
      language: The language.
      folder: The folder; an existing file is replaced.

    Raises:
      ValueError: The encoder is not a Zipformer, whose parameters have icefall's names.
      MasksError: There is no pathway for the language.
    """
    model = language_model(pathways, language)
    if not isinstance(model.encoder, ZipformerEncoder):
        raise ValueError(
            f"icefall has no scripts for {type(model.encoder).__name__}: train with --encoder-type zipformer, or use "
            "another --format"
        )
    weights = {
        name: weight
        for name, weight in model.state_dict().items()
        if not name.startswith(_AUXILIARY) and language_of_vector(name) is None
    }
    path = folder / language / PRETRAINED_FILE
    with atomic_write(path) as temporary:
        torch_compat.save({"model": weights}, temporary)
    return path


def features_note(features: FbankConfig) -> str:
    """Return which features the checkpoints expect, and what icefall's scripts compute instead."""
    plain = (
        f"{features.num_bins} log-mel filter bank energies of samples in [-1, 1] at {features.sample_rate} Hz, from "
        f"{features.low_freq:g} to {features.sample_rate / 2 + features.high_freq:g} Hz, without dither, with "
        f"snip_edges=False (if pretrained.py does not set opts.mel_opts.high_freq, set it to {features.high_freq:g})"
    )
    if features.level_norm == "none":
        return f"the checkpoint expects {plain}"
    return (
        f"the checkpoint expects normalize_level(x, '{features.level_norm}') of icefall_pathways.data.level, where x "
        f"are {plain}; icefall's scripts do not normalize the level: add this call before the encoder, or train with "
        "--level-norm none"
    )
