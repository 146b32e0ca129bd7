"""Training in bfloat16 on a CPU, which does not support training in float16."""

from dataclasses import replace

import pytest
import tiny_run
import torch

from icefall_pathways.experiment import checkpoints
from icefall_pathways.training import runs
from icefall_pathways.training.metrics import read_metrics


def end_of(config):
    runs.train(config)
    return checkpoints.newest(config.training.exp_dir)[1]


@pytest.mark.parametrize("model", [tiny_run.MODEL, tiny_run.ZIPFORMER], ids=["emformer", "zipformer"])
def test_training_in_bfloat16_is_close_to_float32(corpus, tmp_path, model):
    """The results differ slightly, so bfloat16 is used. Weights and state stay in float32; resuming is exact."""

    def config(name, use):
        options = {"use_bf16": use, "valid_interval": 100, "log_interval": 8}
        return replace(tiny_run.config(corpus, tmp_path / name, "en fr", **options), model=model)

    full, half = end_of(config("full", False)), end_of(config("half", True))
    assert all(value.dtype != torch.bfloat16 for value in half["model"].values())
    assert all(value.dtype != torch.bfloat16 for state in half["optimizer"].values() for value in state.values())
    weights = [torch.cat([value.flatten().float() for value in end["model"].values()]) for end in (full, half)]
    assert not torch.equal(*weights)
    assert (weights[0] - weights[1]).norm() < 0.05 * weights[0].norm()
    losses = [
        sum(r["loss"] for r in read_metrics(tmp_path / name / "metrics.jsonl") if r["kind"] == "train")
        for name in ("full", "half")
    ]
    assert losses[1] == pytest.approx(losses[0], rel=0.05)
    killed = config("killed", True)
    tiny_run.train_until(killed, 6)
    again = end_of(killed)
    assert all(torch.equal(value, again["model"][name]) for name, value in half["model"].items())
