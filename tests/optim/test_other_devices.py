"""Optimizers on other devices: torch's "meta" device, which only lacks values, represents a GPU."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from icefall_pathways.optim.masked_adamw import MaskedAdamW
from icefall_pathways.optim.scaled_adam import ScaledAdam
from icefall_pathways.pathways.masks import PathwayMasks


class Transfers(TorchDispatchMode):
    """Record synchronous copies from the CPU to the device."""

    def __init__(self):
        super().__init__()
        self.copies = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.removeprefix("aten::")
        # torch 1.13 passes integers to the overload for tensors.
        if name.startswith("bitwise") and func._overloadname == "Tensor" and isinstance(args[1], int):
            args = (args[0], torch.tensor(args[1], dtype=args[0].dtype))
        result = func(*args, **(kwargs or {}))
        copied = name in ("_to_copy", "copy_") and {"cpu", "meta"} == {
            tensor.device.type for tensor in (*args, result) if isinstance(tensor, torch.Tensor)
        }
        if copied:
            self.copies.append(name)
        return result

    def recording(self, make):
        """Wrap `torch.tensor`, whose copy to the device does not call an operator."""

        def make_and_record(data, **options):
            if torch.device(options.get("device") or "cpu").type == "meta":
                self.copies.append("tensor")
            return make(data, **options)

        return make_and_record


def step(model, optimizer, masks, no_gradient=()):
    for name, parameter in model.named_parameters():
        parameter.grad = None if name in no_gradient else torch.empty_like(parameter)
    optimizer.activate(masks, "en")
    optimizer.step()


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("no_gradient", [(), ("0.bias", "1.weight")])
@pytest.mark.parametrize("make", [MaskedAdamW, ScaledAdam])
def test_step_copies_nothing_to_the_device(make, no_gradient, masked, monkeypatch):
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)).to("meta")
    masks = PathwayMasks.dense(model, ["en"]) if masked else None
    optimizer = make(model.named_parameters())
    for _ in range(4):
        step(model, optimizer, masks, no_gradient)
    for _ in range(5):  # ScaledAdam updates scales in every fourth step
        with monkeypatch.context() as patch, Transfers() as transfers:
            patch.setattr(torch, "tensor", transfers.recording(torch.tensor))
            step(model, optimizer, masks, no_gradient)
        assert transfers.copies == []
    devices = {
        value.device.type for state in optimizer.state.values() for name, value in state.items() if name != "step"
    }
    assert devices == {"meta"}
