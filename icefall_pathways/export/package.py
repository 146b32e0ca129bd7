"""Pathways package: a folder with one model for all its languages, small enough to be shared.

```
FOLDER/
  model.json             model card: languages, architecture, word error rates, options of the training, license
  pathways.safetensors   entropy-coded masks, and the weights that at least one language uses
  bpe.model, tokens.txt  tokenizer
  language_id.json       calibrated language identification, if the experiment has it
```

Reading executes nothing: the files are JSON, safetensors and a SentencePiece model. Their SHA-256 are in the card.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, get_args

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from icefall_pathways.data.features import FbankConfig
from icefall_pathways.data.level import LevelNorm
from icefall_pathways.data.tokenizer import Tokenizer
from icefall_pathways.errors import as_damage, root_cause
from icefall_pathways.experiment import layout
from icefall_pathways.experiment.model_files import copy_tokenizer
from icefall_pathways.export.code_coding import decode_codes, encode_codes
from icefall_pathways.export.model_card import CARD_FILE, FORMAT, VERSION, check_card, feature_options
from icefall_pathways.export.packed_weights import pack_weights, unpack_weights
from icefall_pathways.export.precision import PRECISIONS, Precision
from icefall_pathways.files import atomic_write, read_json, sha256, write_json
from icefall_pathways.languages import codes_of
from icefall_pathways.models.config import ModelConfig
from icefall_pathways.models.language_input import language_of_vector
from icefall_pathways.models.size_check import check_size
from icefall_pathways.models.transducer import Transducer, build_model
from icefall_pathways.options import from_dict
from icefall_pathways.pathways.finite import check_finite
from icefall_pathways.pathways.masks import MasksHeader, PathwayMasks, code_type
from icefall_pathways.pathways.prunable import prunable_parameters

WEIGHTS_FILE = "pathways.safetensors"

_CODES = "codes."  # prefix of the tensors of the masks
_ADVICE = "copy the whole package again, or export it again"


class PackageError(ValueError):
    """A package is incomplete or damaged, or was written by another version."""


class Package(NamedTuple):
    """A package in memory.

    Attributes:
      card: The model card.
      model: The transducer in eval mode, on the CPU; weights that no language uses are 0.
      masks: The sub-networks of the languages.
      tokenizer: The tokenizer.
    """

    card: dict[str, Any]
    model: Transducer
    masks: PathwayMasks
    tokenizer: Tokenizer


def is_package(folder: Path) -> bool:
    """Return True if the folder is a package, complete or not."""
    return (folder / CARD_FILE).is_file() or (folder / WEIGHTS_FILE).is_file()


def write_package(
    folder: Path,
    card: Mapping[str, Any],
    model: Transducer,
    masks: PathwayMasks,
    tokenizer: Tokenizer,
    precision: Precision = "float32",
) -> list[Path]:
    """Write a package; existing files are replaced.

    Args:
      folder: The folder.
      card: See `make_card`.
      model: The transducer.
      masks: The masks of the languages of the package; see `PathwayMasks.restrict`.
      tokenizer: The tokenizer of the model.
      precision: Precision of the weights. With float32, every pathway has the same bits.

    Returns:
      The paths of all written files.

    Raises:
      ValueError: The tokenizer belongs to another model, a used weight is not finite, or too large for the precision.
      MasksError: A language uses no weight.
    """
    if reason := tokenizer.mismatch(model.joiner.output_linear.out_features, None):
        raise ValueError(f"{reason}: pass the SentencePiece model of its training to --bpe-model")
    masks.check_not_empty()
    codes = {name: masks.codes[name].cpu() for name in prunable_parameters(model, masks.header.roots)}
    others = {name for name in model.state_dict() if language_of_vector(name) not in (None, *masks.languages)}
    weights = {name: weight.cpu() for name, weight in model.state_dict().items() if name not in others}
    tensors = {_CODES + name: tensor for name, tensor in encode_codes(list(codes.values())).items()}
    tensors |= pack_weights(weights, codes, precision)
    tokenizer_files = copy_tokenizer(tokenizer.model_path, folder)
    with atomic_write(folder / WEIGHTS_FILE) as temporary:
        save_file(tensors, temporary)
        hashes = {WEIGHTS_FILE: sha256(temporary), layout.BPE_MODEL_FILE: sha256(folder / layout.BPE_MODEL_FILE)}
        # The card first, so that weights never exist without it.
        write_json(folder / CARD_FILE, {**card, "precision": precision, "sha256": hashes})
    return [folder / CARD_FILE, folder / WEIGHTS_FILE, *tokenizer_files]


def read_package(folder: Path) -> Package:
    """Read a package.

    Raises:
      PackageError: The package is incomplete or damaged, or was written by another version.
    """
    card = _read_card(folder)
    tokenizer = _read_tokenizer(folder, card["vocab_size"])
    with as_damage(folder / WEIGHTS_FILE, PackageError, _ADVICE):
        tensors = load_file(folder / WEIGHTS_FILE)
    with as_damage(folder / CARD_FILE, PackageError, _ADVICE):
        header = _read_header(card)
        config = from_dict(ModelConfig, card["model"])
        check_size(config, card["vocab_size"], sum(tensor.numel() for tensor in tensors.values()))
        model = build_model(config, card["vocab_size"], header.languages)
        masked = {name: parameter.shape for name, parameter in prunable_parameters(model, header.roots).items()}
    with as_damage(folder / WEIGHTS_FILE, PackageError, _ADVICE):
        masks = _read_masks(header, masked, tensors)
        shapes = {name: weight.shape for name, weight in model.state_dict().items()}
        weights = unpack_weights(tensors, shapes, masks.codes, card["precision"])
        check_finite(weights, {})
        model.load_state_dict(weights)
    return Package(card, model.eval(), masks, tokenizer)


def _read_card(folder: Path) -> dict[str, Any]:
    """Read the card, and check that this version supports it and that the files have the hashes in it."""
    for name in (CARD_FILE, WEIGHTS_FILE, layout.BPE_MODEL_FILE):
        if not (folder / name).is_file():
            raise PackageError(f"{folder} has no {name}: copy the whole package again")
    with as_damage(folder / CARD_FILE, PackageError, _ADVICE):
        card = read_json(folder / CARD_FILE)
    if not isinstance(card, dict) or card.get("format") != FORMAT:
        raise PackageError(f"{folder / CARD_FILE} is not the card of a package: expected format {FORMAT!r}")
    if card.get("version") != VERSION:
        raise PackageError(
            f"{folder} has version {card.get('version')!r} of the format, and this program reads version {VERSION}: "
            "use the version of icefall_pathways that wrote it"
        )
    with as_damage(folder / CARD_FILE, PackageError, _ADVICE):
        check_card(card)
    if card["precision"] not in PRECISIONS:
        raise PackageError(f"{folder} has precision {card['precision']!r}: expected {', '.join(PRECISIONS)}")
    supported = [feature_options(FbankConfig(level_norm=level_norm)) for level_norm in get_args(LevelNorm)]
    if card["features"] not in supported:
        raise PackageError(f"{folder} has features {card['features']}: this version computes {supported}")
    for name in (WEIGHTS_FILE, layout.BPE_MODEL_FILE):
        if card["sha256"].get(name) != sha256(folder / name):
            raise PackageError(
                f"{folder / name} is damaged or truncated (its SHA-256 is not the one in {CARD_FILE}): copy it again"
            )
    return card


def _read_tokenizer(folder: Path, vocab_size: int) -> Tokenizer:
    path = folder / layout.BPE_MODEL_FILE
    try:
        tokenizer = Tokenizer(path)
    except ValueError as error:
        raise PackageError(f"{path} is damaged ({root_cause(error)}): {_ADVICE}") from error
    if reason := tokenizer.mismatch(vocab_size, folder / layout.TOKENS_FILE):
        raise PackageError(f"{path} is the tokenizer of another model ({reason}): {_ADVICE}")
    return tokenizer


def _read_header(card: Mapping[str, Any]) -> MasksHeader:
    """Return the header of the masks, and check its languages."""
    known = {name: value for name, value in card["masks"].items() if name in MasksHeader.__dataclass_fields__}
    header = MasksHeader(**known | {name: tuple(known[name]) for name in ("languages", "roots")})
    for expected in (codes_of(header.languages), card.get("languages", header.languages)):
        if {*expected} != {*header.languages}:
            raise ValueError(f"masks.languages is {' '.join(header.languages)}, expected {' '.join(expected)}")
    return header


def _read_masks(header: MasksHeader, shapes: Mapping[str, torch.Size], tensors: Mapping[str, Tensor]) -> PathwayMasks:
    coded = {name.removeprefix(_CODES): tensor for name, tensor in tensors.items() if name.startswith(_CODES)}
    codes = decode_codes(coded, list(shapes.values()), code_type(len(header.languages)))
    masks = PathwayMasks(header, dict(zip(shapes, codes, strict=True)))
    masks.check_granularity()
    masks.check_not_empty()
    return masks
