"""The GPU in tests."""

from importlib.util import find_spec

import torch

#: There is a GPU; conftest.py hides it from tests that do not request it.
HAS_CUDA = torch.cuda.is_available()

#: Triton is installed. It comes with torch for CUDA; beside torch for CPUs it would take 1 GB, for one test.
HAS_TRITON = find_spec("triton") is not None

#: Tensors can be created on another device than the CPU by default, since torch 2.0.
HAS_DEFAULT_DEVICE = hasattr(torch, "set_default_device")


def default_device() -> torch.device:
    """Return the device on which tensors are created, see the fixture `device`."""
    return torch.empty(0).device
