"""The model card of a package: architecture, training options and word error rates."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from icefall_pathways.data.features import FbankConfig
from icefall_pathways.experiment import layout
from icefall_pathways.experiment.result_summary import read_summary
from icefall_pathways.files import read_json
from icefall_pathways.json_types import ANY_KEY, NUMERIC, check_types
from icefall_pathways.pathways.masks import PathwayMasks

#: File name of the card in a package.
CARD_FILE = "model.json"
#: Value of `format`, which distinguishes the cards of packages from other JSON files.
FORMAT = "icefall_pathways package"
#: Version of the format; readers reject others.
VERSION = 1

_REQUIRED = ("model", "vocab_size", "masks", "features", "precision", "sha256")
_TYPES: dict[str, Any] = {
    "license": str,
    "languages": {ANY_KEY: {"sparsity": NUMERIC, "word_error_rates": {ANY_KEY: NUMERIC}}},
    "union_density": NUMERIC,
    "model": {},
    "vocab_size": int,
    "masks": {
        "languages": [str],
        "method": str,
        "granularity": str,
        "target_sparsity": NUMERIC,
        "source": str,
        "roots": [str],
        "allocation": str,
        "layer_sparsity": str,
    },
    "features": {},
    "training_options": {"data": {"narrowband_perturb": NUMERIC}},
    "precision": str,
    "sha256": {ANY_KEY: str},
}


def make_card(
    masks: PathwayMasks,
    options: Mapping[str, Any],
    features: FbankConfig,
    vocab_size: int,
    exp_dir: Path,
    license_name: str,
) -> dict[str, Any]:
    """Return the card of a model, without the hashes of the files.

    Args:
      masks: The masks of the languages.
      options: The options of the training, with the architecture under `model`.
      features: The features that the model was trained on.
      vocab_size: Number of tokens.
      exp_dir: The experiment folder, with the results of decoding, if it has any.
      license_name: License of the weights, for example "CC-BY-4.0".
    """
    return {
        "format": FORMAT,
        "version": VERSION,
        "license": license_name,
        "languages": {
            language: {"sparsity": masks.sparsity(language), "word_error_rates": _results(exp_dir, language)}
            for language in masks.languages
        },
        "union_density": masks.union_density(),
        "model": options["model"],
        "vocab_size": vocab_size,
        "masks": asdict(masks.header) | {"languages": list(masks.languages), "roots": list(masks.header.roots)},
        "features": feature_options(features),
        "training_options": dict(options) | _command(exp_dir),
    }


def check_card(card: Mapping[str, Any]) -> None:
    """Check that a card has all fields that readers need, and the types of all known fields; others are ignored.

    Raises:
      ValueError: A field is missing or has another type; the message names it.
    """
    if missing := [name for name in _REQUIRED if name not in card]:
        raise ValueError(f"it lacks {', '.join(missing)}")
    check_types(card, _TYPES)


def feature_options(features: FbankConfig) -> dict[str, Any]:
    """Return the options that define features; the device is not one of them."""
    return {name: value for name, value in asdict(features).items() if name != "device"}


def _command(exp_dir: Path) -> dict[str, str]:
    """Return the command of the training, under `command`; nothing for packages, whose options have it already."""
    path = exp_dir / layout.CONFIG_FILE
    command = read_json(path).get("command") if path.is_file() else None
    return {} if command is None else {"command": command}


def _results(exp_dir: Path, language: str) -> dict[str, float]:
    """Return the word error rates of a language in percent, by the name of the file that has them.

    For a package, include those in its card; results of decoding with the package itself take precedence.
    """
    card = exp_dir / CARD_FILE
    languages = read_json(card).get("languages", {}) if card.is_file() else {}
    return languages.get(language, {}).get("word_error_rates", {}) | {
        str(path.relative_to(exp_dir)): summary["languages"][language]["wer"]
        for path, summary in _summaries(exp_dir)
        if language in summary["languages"]
    }


def _summaries(exp_dir: Path) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    for path in sorted(exp_dir.glob("**/wer-summary-all-*.json")):
        yield path, read_summary(path)
