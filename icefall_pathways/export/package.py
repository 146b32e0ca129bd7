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

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, get_args

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from icefall_pathways.data.features import FbankConfig
from icefall_pathways.data.level import LevelNorm
from icefall_pathways.data.tokenizer import Tokenizer, write_tokens
from icefall_pathways.errors import first_line
from icefall_pathways.experiment import layout
from icefall_pathways.export.code_coding import decode_codes, encode_codes
from icefall_pathways.export.model_card import FORMAT, VERSION, feature_options
from icefall_pathways.export.packed_weights import pack_weights, unpack_weights
from icefall_pathways.export.precision import PRECISIONS, Precision
from icefall_pathways.files import atomic_write, read_json, sha256, write_json
from icefall_pathways.models.config import ModelConfig
from icefall_pathways.models.language_input import language_of_vector
from icefall_pathways.models.size_check import check_size
from icefall_pathways.models.transducer import Transducer, build_model
from icefall_pathways.options import from_dict
from icefall_pathways.pathways.masks import MasksHeader, PathwayMasks, code_type
from icefall_pathways.pathways.prunable import prunable_parameters

CARD_FILE = "model.json"
WEIGHTS_FILE = "pathways.safetensors"

_CODES = "codes."  # prefix of the tensors of the masks


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
) -> None:
    """Write a package; existing files are replaced.

    Args:
      folder: The folder.
      card: See `make_card`.
      model: The transducer.
      masks: The masks of the languages of the package; see `PathwayMasks.restrict`.
      tokenizer: The tokenizer of the model.
      precision: Precision of the weights. With float32, every pathway has the same bits.

    Raises:
      ValueError: A weight is not finite in this precision.
    """
    codes = {name: masks.codes[name].cpu() for name in prunable_parameters(model, masks.header.roots)}
    others = {name for name in model.state_dict() if language_of_vector(name) not in (None, *masks.languages)}
    weights = {name: weight.cpu() for name, weight in model.state_dict().items() if name not in others}
    tensors = {_CODES + name: tensor for name, tensor in encode_codes(list(codes.values())).items()}
    tensors |= pack_weights(weights, codes, precision)
    with atomic_write(folder / layout.BPE_MODEL_FILE) as temporary:
        shutil.copyfile(tokenizer.model_path, temporary)
    write_tokens(folder / layout.BPE_MODEL_FILE, folder / layout.TOKENS_FILE)
    with atomic_write(folder / WEIGHTS_FILE) as temporary:
        save_file(tensors, temporary)
        hashes = {WEIGHTS_FILE: sha256(temporary), layout.BPE_MODEL_FILE: sha256(folder / layout.BPE_MODEL_FILE)}
        # The card first, so that weights never exist without it.
        write_json(folder / CARD_FILE, {**card, "precision": precision, "sha256": hashes})


def read_package(folder: Path) -> Package:
    """Read a package.

    Raises:
      PackageError: The package is incomplete or damaged, or was written by another version.
    """
    card = _read_card(folder)
    try:
        tensors = load_file(folder / WEIGHTS_FILE)
        config = from_dict(ModelConfig, card["model"])
        check_size(config, card["vocab_size"], sum(tensor.numel() for tensor in tensors.values()))
        model = build_model(config, card["vocab_size"], [*map(str, card["masks"]["languages"])])
        masks = _read_masks(model, card["masks"], tensors)
        shapes = {name: weight.shape for name, weight in model.state_dict().items()}
        model.load_state_dict(unpack_weights(tensors, shapes, masks.codes, card["precision"]))
    except (SafetensorError, OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        raise PackageError(
            f"{folder} is not a valid package ({type(error).__name__}: {first_line(error)}): download it again, or "
            "export it again"
        ) from error
    return Package(card, model.eval(), masks, Tokenizer(folder / layout.BPE_MODEL_FILE))


def _read_card(folder: Path) -> dict[str, Any]:
    """Read the card, and check that this version supports it and that the files have the hashes in it."""
    for name in (CARD_FILE, WEIGHTS_FILE, layout.BPE_MODEL_FILE):
        if not (folder / name).is_file():
            raise PackageError(f"{folder} has no {name}: copy the whole package again")
    card = read_json(folder / CARD_FILE)
    if not isinstance(card, dict) or card.get("format") != FORMAT:
        raise PackageError(f"{folder / CARD_FILE} is not the card of a package: expected format {FORMAT!r}")
    if card.get("version") != VERSION:
        raise PackageError(
            f"{folder} has version {card.get('version')!r} of the format, and this program reads version {VERSION}: "
            "use the version of icefall_pathways that wrote it"
        )
    if card.get("precision") not in PRECISIONS:
        raise PackageError(f"{folder} has precision {card.get('precision')!r}: expected {', '.join(PRECISIONS)}")
    supported = [feature_options(FbankConfig(level_norm=level_norm)) for level_norm in get_args(LevelNorm)]
    if card.get("features") not in supported:
        raise PackageError(f"{folder} has features {card.get('features')}: this version computes {supported}")
    hashes = card.get("sha256")
    for name in (WEIGHTS_FILE, layout.BPE_MODEL_FILE):
        if not isinstance(hashes, dict) or hashes.get(name) != sha256(folder / name):
            raise PackageError(
                f"{folder / name} is damaged or truncated (its SHA-256 is not the one in {CARD_FILE}): copy it again"
            )
    return card


def _read_masks(model: Transducer, header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> PathwayMasks:
    values = {**header, **{name: tuple(map(str, header[name])) for name in ("languages", "roots")}}
    masks_header = MasksHeader(**values)
    PathwayMasks(masks_header)  # checks the languages
    shapes = {name: parameter.shape for name, parameter in prunable_parameters(model, masks_header.roots).items()}
    coded = {name.removeprefix(_CODES): tensor for name, tensor in tensors.items() if name.startswith(_CODES)}
    codes = decode_codes(coded, list(shapes.values()), code_type(len(masks_header.languages)))
    masks = PathwayMasks(masks_header, dict(zip(shapes, codes, strict=True)))
    masks.check_granularity()
    return masks
