"""Training on a GPU: mixed precision, loss scaling, masks, resuming, and a process group with NCCL."""

import subprocess
import sys
from dataclasses import replace

import pytest
import tiny_run
import torch
from test_torchrun import RECIPE, to_arguments

from icefall_pathways.experiment import checkpoints
from icefall_pathways.models.transducer import build_model
from icefall_pathways.pathways.masks import PathwayMasks
from icefall_pathways.training import runs
from icefall_pathways.training.metrics import read_metrics

pytestmark = pytest.mark.usefixtures("cuda")

MODELS = {"emformer": tiny_run.MODEL, "zipformer": tiny_run.ZIPFORMER}
PRECISIONS = {"float32": {}, "float16": {"use_fp16": True}, "bfloat16": {"use_bf16": True}}
# Relative difference of losses from those on the CPU. In float16, updates are skipped until the loss scale is small.
# The Zipformer draws other random numbers on a GPU.
TOLERANCES = {"float32": 0.01, "float16": 0.2, "bfloat16": 0.05}
ZIPFORMER_TOLERANCE = 0.2


def make_masks(model, path):
    masks = PathwayMasks.dense(build_model(model, 20), ["en", "fr", "it"], runs.PRUNE_SCOPES["encoder-predictor"])
    for name, code in masks.codes.items():
        for language in masks.languages:
            masks.set_mask(name, language, torch.rand(code.shape) < 0.5)
    masks.save(path)


def end_of(config):
    runs.train(config)
    return checkpoints.newest(config.training.exp_dir)[1]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_training_with_masks_is_close_to_the_cpu_and_resumes(corpus, tmp_path, monkeypatch, model, precision):
    make_masks(model, tmp_path / "masks.safetensors")

    def config(name, **options):
        options = {"valid_interval": 100, "log_interval": 8, "masks": tmp_path / "masks.safetensors"} | options
        return replace(tiny_run.config(corpus, tmp_path / name, rnnt_loss="builtin", **options), model=model)

    options = PRECISIONS[precision]
    on_gpu = end_of(config("gpu", **options))
    if precision == "float16":
        assert on_gpu["scaler"]["scale"] > 0
    killed = config("killed", **options)
    tiny_run.train_until(killed, 6)
    again = end_of(killed)
    for name, value in on_gpu["model"].items():
        assert value.isfinite().all() and value.dtype not in (torch.float16, torch.bfloat16), name
        # Not equal: sums on a GPU are in random order.
        assert (again["model"][name] - value).norm() <= 0.02 * value.norm() + 1e-3, name

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    end_of(config("cpu"))
    tolerance = ZIPFORMER_TOLERANCE if model.encoder_type == "zipformer" else TOLERANCES[precision]
    losses = {
        name: sum(r["loss"] for r in read_metrics(tmp_path / name / "metrics.jsonl") if r["kind"] == "valid")
        for name in ("gpu", "cpu")
    }
    assert losses["gpu"] == pytest.approx(losses["cpu"], rel=tolerance)


def test_torchrun_trains_with_nccl(corpus, tmp_path, free_port):
    config = tiny_run.config(corpus, tmp_path / "exp", num_updates=4, valid_interval=4, use_fp16=True)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "1", "--master_port", str(free_port)]
    result = subprocess.run(
        [*command, str(RECIPE / "train.py"), *to_arguments(config)], capture_output=True, text=True, timeout=200
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert checkpoints.newest(tmp_path / "exp")[1]["update"] == 4
