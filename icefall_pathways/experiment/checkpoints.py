"""Checkpoints: writing them, finding them, and making models of them.

A checkpoint is a dict of tensors: `model` (dense weights under the model's own names), `model_avg` (their running
average), `optimizer` (its state), `masks` and, of a run that needs them, each language's `gradients`; and of plain
data: `update`, `epoch`, `config`, `vocab_size` and more. On disk the plain data is one JSON string beside the tensors,
and the file is read with `weights_only=True` (which in torch 1.13 knows no floats), so a file from a stranger cannot
run code.
"""

import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from icefall_pathways.errors import first_line
from icefall_pathways.experiment import layout
from icefall_pathways.files import TEMPORARY_PREFIX, atomic_write, sha256
from icefall_pathways.models.config import ModelConfig
from icefall_pathways.models.transducer import Transducer, build_model
from icefall_pathways.optim.averaging import average_range
from icefall_pathways.options import from_dict
from icefall_pathways.pathways.masks import MasksHeader, PathwayMasks

Checkpoint = dict[str, Any]

_TENSORS = ("model", "model_avg", "optimizer", "masks")
_TENSORS_OF_SOME = ("gradients",)
_REQUIRED = (*_TENSORS, "update", "epoch", "config", "vocab_size")


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged, or of another model."""


def save(checkpoint: Checkpoint, path: Path) -> None:
    """Write a checkpoint so that a reader finds a whole one or none.

    Raises:
      CheckpointError: It could not be written; earlier ones are as they were.
    """
    tensors = {key: value for key, value in checkpoint.items() if key in _TENSORS + _TENSORS_OF_SOME}
    plain = {key: value for key, value in checkpoint.items() if key not in tensors}
    with atomic_write(path) as temporary:
        try:
            torch.save(tensors | {"plain": json.dumps(plain)}, temporary)
        except RuntimeError as error:  # which is what torch makes of a full disk
            raise CheckpointError(
                f"cannot write {path} ({first_line(error)}): make room on the disk if it is full, and run the "
                "same command again to go on from the checkpoint before"
            ) from error


def read(path: Path) -> Checkpoint:
    """Read a checkpoint onto the CPU.

    Raises:
      CheckpointError: The file is missing, cut short, holds more than plain data, or is no checkpoint of this project.
    """
    if not path.is_file():
        raise CheckpointError(f"no checkpoint {path}: {_found_in(path.parent)}")
    try:
        _check_uncompressed(path)
        stored = torch.load(path, map_location="cpu", weights_only=True)
        checkpoint = {**stored, **json.loads(stored["plain"])}
    except (RuntimeError, EOFError, OSError, ValueError, zipfile.BadZipFile, pickle.UnpicklingError) as error:
        reason = first_line(error)
        raise CheckpointError(
            f"cannot read checkpoint {path} ({path.stat().st_size} bytes): {reason}. "
            "It was cut short or is no plain-data checkpoint: remove it, and an earlier one is used"
        ) from error
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is no training checkpoint of this project: it has no plain data") from error
    missing = [key for key in _REQUIRED if key not in checkpoint]
    if missing:
        raise CheckpointError(f"{path} is no training checkpoint of this project: it lacks {', '.join(missing)}")
    return checkpoint


def newest(exp_dir: Path) -> tuple[Path, Checkpoint] | None:
    """The readable checkpoint with the most updates (an epoch's, if there are two); None where there is none at all.

    Raises:
      CheckpointError: There are checkpoints, and none of them is readable.
    """
    damaged: list[Path] = []
    kinds = [layout.batch_checkpoints(exp_dir), layout.epoch_checkpoints(exp_dir)]
    # Of each kind the last one: names of different kinds do not tell which is the later, nor do times of copied files.
    found = [last for paths in kinds if (last := _last_readable(paths, damaged)) is not None]
    if damaged and not found:
        names = ", ".join(path.name for path in damaged)
        raise CheckpointError(f"no checkpoint in {exp_dir} is readable ({names}): remove them to start anew")
    return max(reversed(found), key=lambda last: last[1]["update"], default=None)


def _last_readable(paths: list[Path], damaged: list[Path]) -> tuple[Path, Checkpoint] | None:
    """The last of `paths` that can be read; those after it are warned of and added to `damaged`."""
    for path in reversed(paths):
        try:
            return path, read(path)
        except CheckpointError as error:
            print(f"warning: {error}")
            damaged.append(path)
    return None


def remove_unfinished(exp_dir: Path) -> None:
    """Remove what writers that were killed have left behind; to be called while nobody writes there."""
    for path in exp_dir.glob(f"{TEMPORARY_PREFIX}*"):
        path.unlink(missing_ok=True)


def find(path: Path) -> tuple[Path, Checkpoint]:
    """The checkpoint at `path`, or the newest one if `path` is an experiment's folder.

    Raises:
      CheckpointError: There is none.
    """
    if not path.is_dir():
        return path, read(path)
    found = newest(path)
    if found is None:
        raise CheckpointError(f"no checkpoint in {path}: train a model there first, or name another folder")
    return found


def file_hash(path: Path) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of a file: what a masks file names its source by."""
    return sha256(path)[:16]


def load_model(
    exp_dir: Path, epoch: int = 0, iteration: int = 0, avg: int = 1, use_averaged_model: bool = True
) -> tuple[Transducer, dict[str, Any]]:
    """The model of an experiment, in eval mode on the CPU, and the experiment's options.

    Args:
      exp_dir: The experiment's folder.
      epoch: Use epoch-<epoch>.pt.
      iteration: Use checkpoint-<iteration>.pt; wins over `epoch`. Both 0: the newest checkpoint.
      avg: With `use_averaged_model`, average the weights over the training between the checkpoint and the one `avg`
        places before it of the same kind (from the start of the training if there is none). Without it, average the
        weights of the `avg` newest checkpoints up to the chosen one.
      use_averaged_model: See `avg`.

    Raises:
      CheckpointError: A checkpoint that this needs is missing or damaged.
    """
    if avg < 1:
        raise CheckpointError(f"--avg {avg}: expected at least 1")
    path, checkpoint = _chosen(exp_dir, epoch, iteration)
    model = build(checkpoint)
    if use_averaged_model:
        model.load_state_dict(running_average(path, checkpoint, avg))
    else:
        model.load_state_dict(_mean_of_weights(path, avg) if avg > 1 else checkpoint["model"])
    return model.eval(), checkpoint["config"]


def load_masks(exp_dir: Path, epoch: int = 0, iteration: int = 0) -> PathwayMasks | None:
    """The masks that a checkpoint was trained with; None if it does not say.

    They may be others than those in the experiment's folder: a training that changes its masks writes those at its end.

    Raises:
      CheckpointError: The checkpoint is missing or damaged.
    """
    _, checkpoint = _chosen(exp_dir, epoch, iteration)
    header = checkpoint.get("masks_header")
    if not header:
        return None
    header |= {name: tuple(header[name]) for name in ("languages", "roots")}
    return PathwayMasks(MasksHeader(**header), checkpoint["masks"])


def _chosen(exp_dir: Path, epoch: int, iteration: int) -> tuple[Path, Checkpoint]:
    if iteration > 0:
        return find(layout.batch_checkpoint(exp_dir, iteration))
    return find(layout.epoch_checkpoint(exp_dir, epoch) if epoch > 0 else exp_dir)


def build(checkpoint: Checkpoint) -> Transducer:
    """The model that a checkpoint describes, with the checkpoint's weights."""
    model = build_model(from_dict(ModelConfig, checkpoint["config"]["model"]), checkpoint["vocab_size"])
    model.load_state_dict(checkpoint["model"])
    return model


def running_average(path: Path, checkpoint: Checkpoint, avg: int) -> dict[str, torch.Tensor]:
    """The weights averaged over the training between a checkpoint and the one `avg` places before it of its kind."""
    earlier = layout.checkpoints_up_to(path)[:-1]
    if len(earlier) < avg:
        return checkpoint["model_avg"]
    start = read(earlier[-avg])
    return average_range(start["model_avg"], checkpoint["model_avg"], start["update"], checkpoint["update"])


def _mean_of_weights(path: Path, avg: int) -> dict[str, torch.Tensor]:
    paths = layout.checkpoints_up_to(path)
    if len(paths) < avg:
        raise CheckpointError(f"--avg {avg} needs {avg} checkpoints up to {path}: found {len(paths)}")
    states = [read(path)["model"] for path in paths[-avg:]]
    return {
        name: torch.stack([state[name].double() for state in states]).mean(dim=0).to(first.dtype)
        if first.is_floating_point()
        else first
        for name, first in states[-1].items()
    }


def _check_uncompressed(path: Path) -> None:
    """Check that what the archive holds is no larger than itself: torch compresses nothing."""
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if member.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"{member.filename} in it is compressed, and might grow to any size")


def _found_in(folder: Path) -> str:
    if not folder.is_dir():
        return f"there is no folder {folder}"
    names = [path.name for path in layout.batch_checkpoints(folder) + layout.epoch_checkpoints(folder)]
    return f"its folder holds {', '.join(names) if names else 'no checkpoint'}"
