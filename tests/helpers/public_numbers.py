"""Reference outputs of public implementations, from tests/fixtures (see its README)."""

import json
from pathlib import Path
from typing import Any

from gpu import default_device
from safetensors.torch import load_file

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"


def load_numbers(name: str) -> dict[str, Any]:
    """Return the fixture `name`: its JSON tree, into which the tensors of its safetensors file are inserted.

    The tensors are on the default device. A tensor's key is its path in the tree, separated by slashes.
    """
    tree: dict[str, Any] = json.loads((FIXTURES / f"{name}.json").read_text())
    for key, tensor in load_file(FIXTURES / f"{name}.safetensors").items():
        *parents, leaf = key.split("/")
        tensor = tensor.to(default_device())
        node: Any = tree
        for part in parents:
            node = node[int(part)] if isinstance(node, list) else node.setdefault(part, {})
        if isinstance(node, list):
            node[int(leaf)] = tensor
        else:
            node[leaf] = tensor
    return tree


def parameter_shapes(name: str) -> list[tuple[str, list[int]]]:
    """Return the parameter names and shapes of the public implementation's `name` model, in its order."""
    lines = (FIXTURES / f"state_dict_{name}.txt").read_text().splitlines()
    pairs = [line.split("\t") for line in lines]
    return [(key, [] if shape == "scalar" else [int(size) for size in shape.split(",")]) for key, shape in pairs]
