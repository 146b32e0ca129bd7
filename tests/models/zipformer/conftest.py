"""Reference outputs of icefall, and our model with the same weights."""

import pytest
import torch
from zipformer_reference import load


@pytest.fixture(scope="module")
def reference(device):
    return load("causal", torch.float32)


@pytest.fixture(scope="module")
def exact_reference(device):
    """Load the reference in float64. (Both implementations compute positional encodings in float32.)"""
    return load("causal", torch.float64)


@pytest.fixture(scope="module")
def noncausal_layer(device):
    """Load a model in which only the first layer has icefall's weights."""
    return load("noncausal_layer", torch.float32)


@pytest.fixture
def captured():
    """Return `captured(model, names)`, which records the outputs of these submodules by name as they run."""
    handles, outputs = [], {}

    def capture(model, names):
        for name in names:

            def keep(module, args, out, name=name):
                outputs[name] = out[0] if isinstance(out, tuple) else out

            handles.append(model.get_submodule(name).register_forward_hook(keep))
        return outputs

    yield capture
    for handle in handles:
        handle.remove()
