"""Tokenizer and feature options of a model, stored in its experiment folder.

With them and the checkpoints, which store the architecture, the folder is self-contained: it can be moved or copied to
another machine.
"""

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from icefall_pathways.data.features import FbankConfig
from icefall_pathways.data.level import LevelNorm
from icefall_pathways.data.tokenizer import Tokenizer, write_tokens
from icefall_pathways.experiment import layout
from icefall_pathways.files import atomic_write, read_json, write_json

DEFAULT_BPE_MODEL = Path("data/lang_bpe_500/bpe.model")


def store_model_files(exp_dir: Path, bpe_model: Path, fbank: FbankConfig) -> None:
    """Copy the tokenizer and write the feature options to an experiment folder.

    A folder with checkpoints is left unchanged: its files belong to the run that is resumed.

    Raises:
      ValueError: The SentencePiece model is missing or damaged.
    """
    if layout.has_checkpoints(exp_dir):
        return
    Tokenizer(bpe_model)  # raises if it is missing or damaged
    copy_tokenizer(bpe_model, exp_dir)
    write_json(exp_dir / layout.FEATURES_FILE, _feature_options(fbank))


def copy_tokenizer(bpe_model: Path, folder: Path) -> list[Path]:
    """Copy a SentencePiece model to a folder, write its `tokens.txt` there, and return both paths."""
    copied, tokens = folder / layout.BPE_MODEL_FILE, folder / layout.TOKENS_FILE
    with atomic_write(copied) as temporary:
        shutil.copyfile(bpe_model, temporary)
    write_tokens(copied, tokens)
    return [copied, tokens]


def stored_tokenizer(path: Path) -> Path | None:
    """Return the SentencePiece model stored in an experiment folder, or next to a checkpoint; None if there is none."""
    folder = path if path.is_dir() else path.parent
    bpe_model = folder / layout.BPE_MODEL_FILE
    return bpe_model if bpe_model.is_file() else None


def choose_tokenizer(exp_dir: Path, given: Path | None, init_from: Path | None) -> Path:
    """Return the SentencePiece model of a training: the first of these.

    1. `given`, the value of --bpe-model, if it is not None.
    2. The model stored in `exp_dir`, if a run is resumed there.
    3. The model stored in `init_from` or next to it, if it is not None.
    4. The model of the recipe, `DEFAULT_BPE_MODEL`.
    """
    candidates = [given]
    if layout.has_checkpoints(exp_dir):
        candidates.append(stored_tokenizer(exp_dir))
    if init_from is not None:
        candidates.append(stored_tokenizer(init_from))
    return next((path for path in candidates if path is not None), DEFAULT_BPE_MODEL)


def find_tokenizer(exp_dir: Path, recorded: Path) -> Path:
    """Return the SentencePiece model stored in an experiment folder, else the one at the path in its options.

    Raises:
      ValueError: Neither exists.
    """
    stored = stored_tokenizer(exp_dir)
    if stored is None and not recorded.is_file():
        raise ValueError(
            f"no SentencePiece model for {exp_dir}: neither {exp_dir / layout.BPE_MODEL_FILE} nor {recorded} (the path "
            "at training) exists; copy the file used in training to the experiment folder, or specify it with "
            "--bpe-model (in Python: bpe_model)"
        )
    return stored or recorded


def stored_level_norm(exp_dir: Path) -> LevelNorm:
    """Return the level normalization of the features in an experiment folder: none if it is of an earlier version."""
    path = exp_dir / layout.FEATURES_FILE
    level_norm: LevelNorm = _read_feature_options(path)["level_norm"] if path.is_file() else "none"
    return level_norm


def check_features(exp_dir: Path, fbank: FbankConfig) -> None:
    """Check that a model was trained on the features that this version computes.

    Experiment folders of version 0.1 pass: they do not store feature options.

    Args:
      exp_dir: The experiment folder.
      fbank: The features that this version computes for the model.

    Raises:
      ValueError: The feature options differ, or their file is damaged.
    """
    path = exp_dir / layout.FEATURES_FILE
    if not path.is_file():
        return
    stored, expected = _read_feature_options(path), _feature_options(fbank)
    if stored != expected:
        names = sorted(name for name in {*stored, *expected} if stored.get(name) != expected.get(name))
        differences = ", ".join(f"{name}={stored.get(name)} instead of {expected.get(name)}" for name in names)
        raise ValueError(
            f"{path}: the model was trained on other features than this version computes ({differences}); use the "
            "version of icefall_pathways that trained it"
        )


def _read_feature_options(path: Path) -> dict[str, Any]:
    stored = read_json(path)
    if not isinstance(stored, dict):
        raise ValueError(f"{path}: expected the feature options, found {stored!r}: restore the file")
    return {"level_norm": "none"} | stored  # versions up to 0.1 did not normalize


def _feature_options(fbank: FbankConfig) -> dict[str, Any]:
    """Return the options that define the features; the device is not one of them."""
    return {name: value for name, value in asdict(fbank).items() if name != "device"}
