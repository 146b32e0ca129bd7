"""Synchronization points: an update reads tensor values, for which the host waits for the GPU, in known places only."""

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
from icefall_pathways.models.losses import resolve_rnnt_loss
from icefall_pathways.models.transducer import build_model
from icefall_pathways.optim import scaled_adam
from icefall_pathways.pathways.masks import PathwayMasks
from icefall_pathways.training import runs
from icefall_pathways.training.callbacks import Callback

LIBRARY = str(Path(icefall_pathways.__file__).parent)

# Operators whose result, or its size, depends on tensor values.
READERS = (
    "_local_scalar_dense",
    "nonzero",
    "is_nonzero",
    "masked_select",
    "repeat_interleave",
    "_unique2",
    "equal",
)

# Functions that read tensors which are on the CPU, whatever the device of the model: (file, function).
HOST_READS = {
    ("regularizers.py", "sample"),  # a random number drawn on the CPU, the same for each rank and device
    ("streaming_encoder.py", "_sample"),  # a random number drawn on the CPU, too
    ("batch.py", "total_tokens"),  # numbers of tokens of the batch, from the data loader
    ("batch.py", "seconds"),  # lengths of the batch, from the data loader
    ("losses.py", "boundaries"),  # lengths and numbers of tokens
    ("scaled_adam.py", "_clipping_factor"),  # step count, which the optimizer state keeps on the CPU
    ("scaled_adam.py", "_update_group"),
    ("scaled_adam.py", "_growth"),
}
# Validation inside k2, once in each of its two losses; it cannot be switched off.
K2_READS = {("losses.py", "simple_loss"): 1, ("losses.py", "pruned_loss"): 1}
if resolve_rnnt_loss("auto") == "builtin":
    K2_READS = {}


class ValueReads(TorchDispatchMode):
    """Count operators that read values, by file and function of the calling library code."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def _add(self):
        frames = [frame for frame in traceback.extract_stack() if frame.filename.startswith(LIBRARY)]
        self.counts[Path(frames[-1].filename).name, frames[-1].name] += 1

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.removeprefix("aten::")
        by_mask = name in ("index", "index_put", "index_put_", "_index_put_impl_") and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        if by_mask or name in READERS:
            self._add()
        if (
            name.startswith("bitwise") and func._overloadname == "Tensor" and isinstance(args[1], int)
        ):  # torch 1.13 does not convert it to a tensor here
            args = (args[0], torch.tensor(args[1], dtype=args[0].dtype))
        return func(*args, **(kwargs or {}))

    @contextmanager
    def counting(self, monkeypatch):
        """Count operators in this context, and methods that read values without an operator."""
        with monkeypatch.context() as patch, self:
            for method in ("tolist", "numpy", "cpu"):
                patch.setattr(torch.Tensor, method, self._counted(getattr(torch.Tensor, method)))
            yield self

    def _counted(self, method):
        def counted(*args, **kwargs):
            self._add()
            return method(*args, **kwargs)

        return counted


@pytest.fixture
def reads(monkeypatch):
    return ReadsOfUpdates(monkeypatch)


class ReadsOfUpdates(Callback):
    """Count from the start of an update until its losses have been added to the metrics."""

    def __init__(self, monkeypatch):
        self.counts = {}
        self._monkeypatch = monkeypatch
        self._stack = ExitStack()

    def on_update_start(self, state, batches, wait_seconds):
        self.counts[state.update] = self._stack.enter_context(ValueReads().counting(self._monkeypatch)).counts

    def on_update_end(self, state, result):
        self._stack.close()


def device_reads(counts):
    """Return the counts of code that reads results of the device."""
    return {key: count for key, count in counts.items() if key not in HOST_READS}


def make_masks(model, path):
    masks = PathwayMasks.dense(build_model(model, 20), ["en", "fr"], runs.PRUNE_SCOPES["encoder-predictor"])
    for name, code in masks.codes.items():
        masks.set_mask(name, "en", torch.rand(code.shape) < 0.5)
    masks.save(path)


def updates_only(corpus, exp_dir, languages, **options):
    """Return a configuration whose updates neither log nor write a checkpoint, except the last one of an epoch."""
    return tiny_run.config(
        corpus, exp_dir, languages, valid_interval=100, log_interval=100, save_every_n=100, **options
    )


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("model", [tiny_run.MODEL, tiny_run.ZIPFORMER], ids=["emformer", "zipformer"])
def test_an_update_synchronizes_once(corpus, tmp_path, reads, model, masked):
    options = {"masks": tmp_path / "masks.safetensors"} if masked else {}
    if masked:
        make_masks(model, options["masks"])
    config = updates_only(corpus, tmp_path / "exp", "en fr", ref_duration=0.01, **options)
    runs.train(replace(config, model=model), [reads])
    assert len(reads.counts) == 8
    for update in range(4, 8):  # the optimizer sets up its state in the first updates, and the last one logs
        assert device_reads(reads.counts[update]) == {("update.py", "sync_flags"): 1} | K2_READS, update


def test_the_builtin_loss_does_not_synchronize(corpus, tmp_path, reads):
    config = updates_only(corpus, tmp_path / "exp", "en", rnnt_loss="builtin", num_updates=6)
    runs.train(config, [reads])
    assert device_reads(reads.counts[4]) == {("update.py", "sync_flags"): 1}


def test_gradient_accumulation_does_not_synchronize_more_often(corpus, tmp_path, reads):
    config = updates_only(corpus, tmp_path / "exp", "en", accum_grad=2, num_updates=6)
    runs.train(replace(config, model=tiny_run.ZIPFORMER), [reads])
    k2_reads = {key: 2 * count for key, count in K2_READS.items()}
    assert device_reads(reads.counts[5]) == {("update.py", "sync_flags"): 1} | k2_reads


def test_the_optimizer_reads_a_median_every_100_updates(monkeypatch):
    """Not in `HOST_READS`: see `ScaledAdam._threshold`."""
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = scaled_adam.ScaledAdam([("w", parameter)])
    updates = []
    for step in range(301):
        parameter.grad = torch.randn(3)
        with ValueReads().counting(monkeypatch) as reads:
            optimizer.step()
        if step > 40 and device_reads(reads.counts):
            updates.append(step)
    assert updates == [100, 200, 300]
