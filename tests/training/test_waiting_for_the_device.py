"""Where an update reads a value of a tensor: on a GPU, the host waits there until the GPU has computed it."""

import traceback
from collections import Counter
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_run
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import icefall_pathways
from icefall_pathways.models.config import ModelConfig
from icefall_pathways.models.transducer import build_model
from icefall_pathways.optim import scaled_adam
from icefall_pathways.pathways.masks import PathwayMasks
from icefall_pathways.training import runs
from icefall_pathways.training.callbacks import Callback

LIBRARY = str(Path(icefall_pathways.__file__).parent)
ZIPFORMER = ModelConfig(encoder_type="zipformer", zipformer="tiny")

# Operators whose result, or its size, depends on values that have to be there.
READING = ("_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "repeat_interleave", "_unique2", "equal")

# What reads values of tensors that are on the CPU whatever the model's device: (file, function).
OF_THE_HOST = {
    ("regularizers.py", "sample"),  # a number drawn on the CPU, for every rank and device the same
    ("streaming_encoder.py", "_draw"),  # so is this one
    ("batch.py", "total_tokens"),  # number of tokens of the batch, which the data loader gives
    ("objective.py", "seconds_of"),  # lengths of the batch, which the data loader gives
    ("losses.py", "boundaries"),  # lengths and numbers of tokens
    ("scaled_adam.py", "_clipping_factor"),  # the number of the step, which its state keeps on the CPU
    ("scaled_adam.py", "_update_group"),
    ("scaled_adam.py", "_growth"),
}
# Checks inside of k2, once in each of its two losses: the library can do nothing about them.
OF_K2 = {("losses.py", "simple_loss"): 1, ("losses.py", "pruned_loss"): 1}


class Readings(TorchDispatchMode):
    """Counts what reads values, by the file and the function of the library that it comes from."""

    def __init__(self):
        super().__init__()
        self.places = Counter()

    def note(self):
        frames = [frame for frame in traceback.extract_stack() if frame.filename.startswith(LIBRARY)]
        self.places[Path(frames[-1].filename).name, frames[-1].name] += 1

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.removeprefix("aten::")
        by_mask = name in ("index", "index_put", "index_put_", "_index_put_impl_") and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        if by_mask or name in READING:
            self.note()
        if (
            name.startswith("bitwise") and func._overloadname == "Tensor" and isinstance(args[1], int)
        ):  # which torch 1.13 does not turn into a tensor here
            args = (args[0], torch.tensor(args[1], dtype=args[0].dtype))
        return func(*args, **(kwargs or {}))

    @contextmanager
    def watching(self, monkeypatch):
        """Count inside: operators, and methods that are none."""
        with monkeypatch.context() as patch, self:
            for method in ("tolist", "numpy", "cpu"):
                patch.setattr(torch.Tensor, method, self.noted(getattr(torch.Tensor, method)))
            yield self

    def noted(self, method):
        def noting(*args, **kwargs):
            self.note()
            return method(*args, **kwargs)

        return noting


@pytest.fixture
def readings(monkeypatch):
    return ReadingsOfUpdates(monkeypatch)


class ReadingsOfUpdates(Callback):
    """Count from the start of an update until its losses have been added to the metrics."""

    def __init__(self, monkeypatch):
        self.places = {}
        self._monkeypatch = monkeypatch
        self._stack = ExitStack()

    def on_update_start(self, state, batches, wait_seconds):
        self.places[state.update] = self._stack.enter_context(Readings().watching(self._monkeypatch)).places

    def on_update_end(self, state, result):
        self._stack.close()


def waiting(places):
    """Those that read what a GPU would have to compute first."""
    return {place: number for place, number in places.items() if place not in OF_THE_HOST}


def make_masks(model, path):
    masks = PathwayMasks.dense(build_model(model, 20), ["en", "fr"], runs.PRUNE_SCOPES["encoder-predictor"])
    for name, code in masks.codes.items():
        masks.set_mask(name, "en", torch.rand(code.shape) < 0.5)
    masks.save(path)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("model", [tiny_run.MODEL, ZIPFORMER], ids=["emformer", "zipformer"])
def test_an_update_waits_once(corpus, tmp_path, readings, model, masked):
    options = {"masks": tmp_path / "masks.safetensors"} if masked else {}
    if masked:
        make_masks(model, options["masks"])
    config = tiny_run.config(
        corpus, tmp_path / "exp", "en fr", ref_duration=0.01, valid_interval=100, log_interval=100, **options
    )
    runs.train(replace(config, model=model), [readings])
    assert len(readings.places) == 8
    for update in range(4, 8):  # the optimizer sets up its state in the first updates, and the last one logs
        assert waiting(readings.places[update]) == {("update.py", "sync_flags"): 1} | OF_K2, update


def test_more_batches_in_an_update_wait_no_longer(corpus, tmp_path, readings):
    config = tiny_run.config(
        corpus, tmp_path / "exp", "en", accum_grad=2, valid_interval=100, log_interval=100, num_updates=6
    )
    runs.train(replace(config, model=ZIPFORMER), [readings])
    of_k2 = {place: 2 * number for place, number in OF_K2.items()}
    assert waiting(readings.places[5]) == {("update.py", "sync_flags"): 1} | of_k2


def test_the_optimizer_reads_a_median_every_hundredth_time(monkeypatch):
    """Not in `OF_THE_HOST`: see `ScaledAdam._threshold`."""
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = scaled_adam.ScaledAdam([("w", parameter)])
    waited = []
    for step in range(301):
        parameter.grad = torch.randn(3)
        with Readings().watching(monkeypatch) as reading:
            optimizer.step()
        if step > 40 and waiting(reading.places):
            waited.append(step)
    assert waited == [100, 200, 300]
