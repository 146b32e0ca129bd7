"""Readers of masks, checkpoints and packages for fuzzing, with their valid files; see `fuzzing.Case`."""

import io
import json
import tempfile
import zipfile
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path

import torch
from fuzzing import Case, Files, files_in
from safetensors.torch import save
from tiny_experiment import make_experiment, write_complementary_masks

from icefall_pathways.commands.export import Config, run
from icefall_pathways.experiment import checkpoints, icefall_checkpoints
from icefall_pathways.export.package import read_package
from icefall_pathways.files import sha256
from icefall_pathways.pathways.masks import PathwayMasks


@cache
def _experiment() -> Files:
    """Return the files of an experiment with masks, and of two packages of it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_experiment(folder)
        write_complementary_masks(folder / "exp")
        for precision in ("float32", "int8"):
            run(Config(folder / "exp", output_dir=folder / precision, format="package", precisions=(precision,)))
        return files_in(folder)


def _below(prefix: str) -> Files:
    return {name.removeprefix(prefix): data for name, data in _experiment().items() if name.startswith(prefix)}


def _with_hashes(contents: Files, header: str, update: str) -> Files:
    """Set the SHA-256 in a JSON file to those of the other files, if it is still a JSON object."""
    try:
        values = json.loads(contents[header])
    except (KeyError, ValueError, RecursionError):
        return contents
    if not isinstance(values, dict):
        return contents
    hashes = {}
    with tempfile.TemporaryDirectory() as name:
        for path, data in contents.items():
            (Path(name) / path).write_bytes(data)
            hashes[path] = sha256(Path(name) / path)
    values["sha256"] = hashes.get(update) if update else hashes
    return contents | {header: json.dumps(values).encode()}


def _load_masks(folder: Path) -> None:
    masks = PathwayMasks.load(folder / "masks.safetensors")
    masks.overlaps()
    assert all(0 <= masks.sparsity(language) <= 1 for language in masks.languages)


def _records(archive: bytes) -> Files:
    with zipfile.ZipFile(io.BytesIO(archive)) as source:
        return {name: source.read(name) for name in source.namelist()}


def _archive(records: Files) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for name, data in records.items():
            archive.writestr(zipfile.ZipInfo(name), data)  # without the time, so that inputs can be repeated
    return target.getvalue()


def _seal_checkpoint(contents: Files) -> Files:
    """Write a checkpoint of records, or of its options with the tensors of the valid one."""
    if "options.json" not in contents:
        return {"checkpoint-5.pt": _archive(contents)}
    stored = torch.load(io.BytesIO(_experiment()["exp/checkpoint-5.pt"]), weights_only=True)
    target = io.BytesIO()
    torch.save(stored | {"plain": contents["options.json"].decode("utf-8", "replace")}, target)
    return {"checkpoint-5.pt": target.getvalue()}


@cache
def _checkpoints() -> Sequence[Files]:
    archive = _experiment()["exp/checkpoint-5.pt"]
    plain = torch.load(io.BytesIO(archive), weights_only=True)["plain"]
    return [{"options.json": plain.encode()}, _records(archive)]


@cache
def _foreign() -> Sequence[Files]:
    weights = {"a.weight": torch.randn(3, 4), "a.bias": torch.randn(3)}
    files = []
    for content in ({"model": weights, "model_avg": weights, "sampler": {"x": 1}}, weights):
        target = io.BytesIO()
        torch.save(content, target)
        files.append(_records(target.getvalue()))
    return [*files, {"weights.safetensors": save(weights)}]


def _seal_foreign(contents: Files) -> Files:
    return contents if "weights.safetensors" in contents else {"epoch-1.pt": _archive(contents)}


def _foreign_path(folder: Path) -> Path:
    return next(iter(folder.iterdir()), folder / "epoch-1.pt")


def _read_package(folder: Path) -> None:
    package = read_package(folder)
    package.tokenizer.decode(package.tokenizer.encode(["un deux"]))


CASES = {
    "masks": Case(
        lambda: [{name: data for name, data in _below("exp/").items() if name.startswith("masks.")}],
        (_load_masks,),
        seal=partial(_with_hashes, header="masks.json", update="masks.safetensors"),
    ),
    "checkpoints": Case(
        _checkpoints, (checkpoints.load_model, icefall_checkpoints.is_foreign), seal=_seal_checkpoint, weight=0.7
    ),
    "foreign checkpoints": Case(
        _foreign,
        (
            lambda folder: icefall_checkpoints.read_weights(_foreign_path(folder)),
            lambda folder: icefall_checkpoints.is_foreign(_foreign_path(folder)),
        ),
        seal=_seal_foreign,
        weight=2,
    ),
    "packages": Case(
        lambda: [_below("float32/"), _below("int8/")],
        (_read_package,),
        seal=partial(_with_hashes, header="model.json", update=""),
        weight=0.7,
    ),
}
