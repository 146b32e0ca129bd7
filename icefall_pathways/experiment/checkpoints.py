"""Writing, finding and loading training checkpoints.

A checkpoint is a dict of

* tensors: `model` (dense weights under the parameter names of the model), `model_avg` (their running average),
  `optimizer` (its state), `masks` and, if the pruning schedule needs them, `gradients` per language;
* plain data: `update`, `epoch`, `config`, `vocab_size` and more.

On disk the plain data is one JSON string beside the tensors. The file is read with `weights_only=True`, so an untrusted
file cannot execute code. (JSON, because `weights_only=True` of torch 1.13 does not accept floats.)
"""

import json
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import torch

from icefall_pathways import torch_compat
from icefall_pathways.errors import as_damage, first_line
from icefall_pathways.experiment import layout
from icefall_pathways.experiment.icefall_checkpoints import read_structure
from icefall_pathways.files import TEMPORARY_PREFIX, atomic_write, sha256
from icefall_pathways.models.config import ModelConfig
from icefall_pathways.models.language_input import languages_of_vectors
from icefall_pathways.models.size_check import check_size
from icefall_pathways.models.transducer import Transducer, build_model
from icefall_pathways.optim.averaging import average_range, last_sample
from icefall_pathways.options import from_dict
from icefall_pathways.pathways.masks import MasksHeader, PathwayMasks

Checkpoint = dict[str, Any]

_TENSORS = ("model", "model_avg", "optimizer", "masks")
_OPTIONAL_TENSORS = ("gradients",)
_REQUIRED = (*_TENSORS, "update", "epoch", "config", "vocab_size")


class CheckpointError(ValueError):
    """A checkpoint is missing, damaged, or incompatible."""


class LoadedModel(NamedTuple):
    """A model loaded from an experiment folder.

    Attributes:
      model: In eval mode, on the CPU.
      config: The options of the training, see `options.to_dict`.
      masks: The masks of the checkpoint; None if it was trained without masks. They can differ from the masks file of
        the folder: a training that changes its masks writes that file at its end.
      path: The checkpoint.
    """

    model: Transducer
    config: dict[str, Any]
    masks: PathwayMasks | None
    path: Path


def save(checkpoint: Checkpoint, path: Path) -> None:
    """Write a checkpoint atomically.

    Raises:
      CheckpointError: The checkpoint cannot be written; existing checkpoints are unchanged.
    """
    tensors = {key: value for key, value in checkpoint.items() if key in _TENSORS + _OPTIONAL_TENSORS}
    plain = {key: value for key, value in checkpoint.items() if key not in tensors}
    with atomic_write(path) as temporary:
        try:
            torch_compat.save(tensors | {"plain": json.dumps(plain)}, temporary)
        except RuntimeError as error:  # torch raises it when the disk is full
            raise CheckpointError(
                f"cannot write {path} ({first_line(error)}): if the disk is full, free some space; then run the same "
                "command again to resume from the previous checkpoint"
            ) from error


def read(path: Path) -> Checkpoint:
    """Read a checkpoint onto the CPU.

    Raises:
      CheckpointError: The file is missing, truncated or damaged, contains more than plain data, or is from another
        project.
    """
    if not path.is_file():
        raise CheckpointError(f"no checkpoint {path}: {_describe_folder(path.parent)}")
    try:
        _check_archive(path)
        stored = torch.load(path, map_location="cpu", weights_only=True)
        checkpoint = {**stored, **json.loads(stored["plain"])}
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is not a training checkpoint of this project: it has no plain data") from error
    except MemoryError:
        raise
    except Exception as error:  # the restricted unpickler raises exceptions of many types for damaged data
        raise CheckpointError(
            f"cannot read checkpoint {path} ({path.stat().st_size} bytes): {first_line(error)}. "
            "It is truncated, damaged or not a plain-data checkpoint: remove it, and an earlier one is used"
        ) from error
    missing = [key for key in _REQUIRED if key not in checkpoint]
    if missing:
        raise CheckpointError(f"{path} is not a training checkpoint of this project: it lacks {', '.join(missing)}")
    return checkpoint


def newest(exp_dir: Path) -> tuple[Path, Checkpoint] | None:
    """Read the newest readable checkpoint, by its number of updates; return None if the folder has no checkpoint.

    An epoch checkpoint takes precedence over a batch checkpoint with the same number of updates. Damaged checkpoints
    are skipped with a warning.

    Raises:
      CheckpointError: None of the checkpoints is readable.
    """
    # Neither the names of the two kinds nor the modification times of copied files show which one is newer.
    kinds = [layout.epoch_checkpoints(exp_dir), layout.batch_checkpoints(exp_dir)]
    damaged: list[Path] = []
    while any(kinds):
        paths = max((paths for paths in kinds if paths), key=lambda paths: _num_updates(paths[-1]))
        path = paths.pop()
        try:
            return path, read(path)
        except CheckpointError as error:
            print(f"warning: {error}")
            damaged.append(path)
    if damaged:
        names = ", ".join(path.name for path in damaged)
        raise CheckpointError(f"no checkpoint in {exp_dir} is readable ({names}): remove them to start from scratch")
    return None


def read_description(exp_dir: Path) -> dict[str, Any]:
    """Return the plain data of the last checkpoint of an experiment, without reading its tensors.

    Raises:
      CheckpointError: There is none, or it is damaged.
    """
    paths = layout.batch_checkpoints(exp_dir) or layout.epoch_checkpoints(exp_dir)
    if not paths:
        raise CheckpointError(f"no checkpoint in {exp_dir}: train a model there first, or use another folder")
    with as_damage(paths[-1], CheckpointError, "use another checkpoint, or copy it again"):
        return _plain_data(paths[-1])


def _plain_data(path: Path) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(read_structure(path)["plain"])
    return plain


def _num_updates(path: Path) -> float:
    """Return the number of updates of a checkpoint without reading its tensors; infinity if it is damaged."""
    try:
        return float(_plain_data(path)["update"])
    except (ValueError, OSError, LookupError, TypeError, RecursionError):
        return float("inf")  # `read` explains the damage


def find(path: Path) -> tuple[Path, Checkpoint]:
    """Read the checkpoint at `path`, or the newest one if `path` is an experiment folder.

    Raises:
      CheckpointError: There is none, or it is damaged.
    """
    if not path.is_dir():
        return path, read(path)
    checkpoint = newest(path)
    if checkpoint is None:
        raise CheckpointError(f"no checkpoint in {path}: train a model there first, or use another folder")
    return checkpoint


def remove_temporary_files(exp_dir: Path) -> None:
    """Remove the temporary files of killed processes. No other process may be writing to the folder."""
    for path in exp_dir.glob(f"{TEMPORARY_PREFIX}*"):
        path.unlink(missing_ok=True)


def file_hash(path: Path) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 of a file."""
    return sha256(path)[:16]


def load_model(
    exp_dir: Path, epoch: int = 0, iteration: int = 0, avg: int = 1, use_averaged_model: bool = True
) -> LoadedModel:
    """Load the model of an experiment folder.

    Args:
      exp_dir: The experiment folder.
      epoch: Use epoch-<epoch>.pt.
      iteration: Use checkpoint-<iteration>.pt; takes precedence over `epoch`. If both are 0, use the newest checkpoint.
      avg: With `use_averaged_model`, average the weights over all updates between the checkpoint and the `avg`-th one
        of its kind before it, see `start_of_average`. Otherwise, average the weights of the
        `avg` newest checkpoints up to the chosen one.
      use_averaged_model: See `avg`.

    Raises:
      CheckpointError: A required checkpoint is missing or damaged.
    """
    if avg < 1:
        raise CheckpointError(f"--avg {avg}: expected at least 1")
    if iteration > 0:
        path, checkpoint = find(layout.batch_checkpoint(exp_dir, iteration))
    else:
        path, checkpoint = find(layout.epoch_checkpoint(exp_dir, epoch) if epoch > 0 else exp_dir)
    with as_damage(path, CheckpointError, "use another checkpoint, or copy it again"):
        model = build(checkpoint)
        if use_averaged_model:
            model.load_state_dict(running_average(path, checkpoint, avg))
        elif avg > 1:
            model.load_state_dict(_mean_of_checkpoints(path, checkpoint, avg))
        return LoadedModel(model.eval(), checkpoint["config"], _masks_of(checkpoint), path)


def build(checkpoint: Checkpoint) -> Transducer:
    """Build the model of a checkpoint and load its weights.

    Damaged options cause exceptions of many types.
    """
    config = from_dict(ModelConfig, checkpoint["config"]["model"])
    check_size(config, checkpoint["vocab_size"], sum(weight.numel() for weight in checkpoint["model"].values()))
    model = build_model(config, checkpoint["vocab_size"], languages_of_vectors(checkpoint["model"]))
    model.load_state_dict(checkpoint["model"])
    return model


def running_average(path: Path, checkpoint: Checkpoint, avg: int, option: str = "--avg") -> dict[str, torch.Tensor]:
    """Return the weights averaged over all updates since the checkpoint that `start_of_average` returns.

    If none of these updates is a multiple of --average-period, return the weights of `checkpoint`.

    Raises:
      CheckpointError: The checkpoint of `start_of_average` is missing or damaged.
    """
    start_path = start_of_average(path, avg, option)
    start = None if start_path is None else read(start_path)
    period = checkpoint["config"]["training"]["average_period"]
    first = 0 if start is None else last_sample(start["update"], period)
    last = last_sample(checkpoint["update"], period)
    if first == last:
        return checkpoint["model"]
    if start is None:
        return checkpoint["model_avg"]
    return average_range(start["model_avg"], checkpoint["model_avg"], first, last)


def start_of_average(path: Path, avg: int, option: str = "--avg") -> Path | None:
    """Return the `avg`-th checkpoint of the same kind before `path`; None: average since the start of the training.

    The average over the first `avg` checkpoints starts with the training. So does the default, `avg` = 1, if no earlier
    checkpoint exists. Errors name the command-line `option`.

    Raises:
      CheckpointError: `avg` is at least 2, and a checkpoint that the average needs does not exist.
    """
    paths = _checkpoints_to_average(path, avg, option)
    if len(paths) > avg:
        return paths[-avg - 1]
    if avg > 1:
        first, second = (int(each.stem.rsplit("-", 1)[1]) for each in paths[:2])
        if first > second - first:  # earlier checkpoints were removed
            raise CheckpointError(
                f"{option} {avg} needs the checkpoint before {paths[0]}, where the average starts: it does not exist; "
                f"use a smaller {option}"
            )
    return None


def _checkpoints_to_average(path: Path, avg: int, option: str) -> list[Path]:
    """Return the checkpoints of the kind of `path` up to it; check that there are at least `avg`."""
    paths = layout.checkpoints_up_to(path)
    if len(paths) < avg:
        raise CheckpointError(f"{option} {avg} needs {avg} checkpoints up to {path}: found {len(paths)}")
    return paths


def _mean_of_checkpoints(path: Path, checkpoint: Checkpoint, avg: int) -> dict[str, torch.Tensor]:
    paths = _checkpoints_to_average(path, avg, "--avg")
    states = [*(read(earlier)["model"] for earlier in paths[-avg:-1]), checkpoint["model"]]
    return {
        name: torch.stack([state[name].double() for state in states]).mean(dim=0).to(value.dtype)
        if value.is_floating_point()
        else value
        for name, value in checkpoint["model"].items()
    }


def _masks_of(checkpoint: Checkpoint) -> PathwayMasks | None:
    header = checkpoint.get("masks_header")
    if not header:
        return None
    header = header | {name: tuple(header[name]) for name in ("languages", "roots")}
    return PathwayMasks(MasksHeader(**header), checkpoint["masks"])


def _check_archive(path: Path) -> None:
    """Check that the archive is not compressed, and that its records have the checksums that it states.

    torch writes uncompressed archives, so that a small file cannot expand to any size, and does not compare checksums.
    """
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if member.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"{member.filename} in it is compressed, and might expand to any size")
        damaged = archive.testzip()
    if damaged is not None:
        raise ValueError(f"{damaged} in it is damaged: its checksum (CRC-32) is not the one that the archive states")


def _describe_folder(folder: Path) -> str:
    if not folder.is_dir():
        return f"there is no folder {folder}"
    names = [path.name for path in layout.batch_checkpoints(folder) + layout.epoch_checkpoints(folder)]
    return f"its folder holds {', '.join(names) if names else 'no checkpoint'}"
