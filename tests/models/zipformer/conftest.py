"""The public implementation's weights and numbers, and a model of ours with those weights."""

import pytest
import torch
from zipformer_reference import load


@pytest.fixture(scope="session", params=["causal", "noncausal"])
def reference(request, fixtures_dir):
    return load(fixtures_dir, request.param, torch.float32)


@pytest.fixture(scope="session", params=["causal", "noncausal"])
def exact_reference(request, fixtures_dir):
    """In float64. (The code of distances is computed in float32, there as here.)"""
    return load(fixtures_dir, request.param, torch.float64)


@pytest.fixture(scope="session")
def causal_reference(fixtures_dir):
    return load(fixtures_dir, "causal", torch.float32)


@pytest.fixture
def captured():
    """`captured(model, names)`: what those submodules give, by name, as they run."""
    handles, found = [], {}

    def capture(model, names):
        for name in names:

            def keep(module, args, out, name=name):
                found[name] = out[0] if isinstance(out, tuple) else out

            handles.append(model.get_submodule(name).register_forward_hook(keep))
        return found

    yield capture
    for handle in handles:
        handle.remove()
