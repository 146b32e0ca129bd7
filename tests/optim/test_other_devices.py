"""Optimizers on a device that is not the CPU: torch's "meta" stands for a GPU, it has everything but the numbers."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from icefall_pathways.optim.masked_adamw import MaskedAdamW
from icefall_pathways.optim.scaled_adam import ScaledAdam
from icefall_pathways.pathways.masks import PathwayMasks


class Transfers(TorchDispatchMode):
    """Notes what is sent from the CPU to the device while the CPU waits."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.removeprefix("aten::")
        if name.startswith("bitwise") and isinstance(args[1], int):  # which torch 1.13 does not turn into a tensor here
            args = (args[0], torch.tensor(args[1], dtype=args[0].dtype))
        result = func(*args, **(kwargs or {}))
        copied = name in ("_to_copy", "copy_") and {"cpu", "meta"} == {
            tensor.device.type for tensor in (*args, result) if isinstance(tensor, torch.Tensor)
        }
        if copied:
            self.found.append(name)
        return result

    def making(self, make):
        """`torch.tensor`, whose way to the device no operator tells of."""

        def noting(data, **options):
            if torch.device(options.get("device") or "cpu").type == "meta":
                self.found.append("tensor")
            return make(data, **options)

        return noting


def step(model, optimizer, masks, without=()):
    for name, parameter in model.named_parameters():
        parameter.grad = None if name in without else torch.empty_like(parameter)
    optimizer.activate(masks, "en")
    optimizer.step()


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("without", [(), ("0.bias", "1.weight")])
@pytest.mark.parametrize("make", [MaskedAdamW, ScaledAdam])
def test_a_step_stays_on_the_device_and_sends_nothing_there(make, without, masked, monkeypatch):
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)).to("meta")
    masks = PathwayMasks.dense(model, ["en"]) if masked else None
    optimizer = make(model.named_parameters())
    for _ in range(4):
        step(model, optimizer, masks, without)
    for _ in range(5):  # ScaledAdam changes its scales in every fourth step
        with monkeypatch.context() as patch, Transfers() as transfers:
            patch.setattr(torch, "tensor", transfers.making(torch.tensor))
            step(model, optimizer, masks, without)
        assert transfers.found == []
    devices = {
        value.device.type for state in optimizer.state.values() for name, value in state.items() if name != "step"
    }
    assert devices == {"meta"}
