"""Optimizers, and schedules of the regularizers."""

from dataclasses import replace

import pytest
import tiny_run
import torch
from tiny_run import ZIPFORMER
from torch import nn

from icefall_pathways.models.config import ModelConfig
from icefall_pathways.models.regularizers import Scheduled
from icefall_pathways.optim.masked_adamw import MaskedAdamW
from icefall_pathways.optim.scaled_adam import ScaledAdam
from icefall_pathways.training import runs
from icefall_pathways.training.config import ExperimentConfig, TrainingConfig
from icefall_pathways.training.optimization import build_optimizer, with_optimizer
from icefall_pathways.training.update import regularizer_position


@pytest.mark.parametrize(
    ("encoder", "options", "expected"),
    [
        ("emformer", {}, ("adamw", 0.0015)),
        ("zipformer", {}, ("scaled-adam", 0.045)),
        ("emformer", {"optimizer": "scaled-adam"}, ("scaled-adam", 0.045)),
        ("zipformer", {"optimizer": "adamw"}, ("adamw", 0.0015)),
        ("zipformer", {"base_lr": 0.01}, ("scaled-adam", 0.01)),
    ],
)
def test_the_encoder_determines_the_default_optimizer(encoder, options, expected):
    config = ExperimentConfig(TrainingConfig(**options), model=ModelConfig(encoder_type=encoder))
    resolved = with_optimizer(config).training
    assert (resolved.optimizer, resolved.base_lr) == expected
    optimizer = build_optimizer(nn.Linear(2, 2).named_parameters(), resolved)
    assert type(optimizer) is {"adamw": MaskedAdamW, "scaled-adam": ScaledAdam}[expected[0]]
    assert optimizer.defaults["lr"] == expected[1]


@pytest.mark.parametrize(("optimizer", "option"), [("adamw", "clip_norm"), ("scaled-adam", "clipping_scale")])
def test_each_optimizer_clips_the_gradient(optimizer, option):
    """A spike does not appear in the second moment."""
    moments = {}
    for limit in (0.0, 2.0):
        layer = nn.Linear(2, 2, bias=False)
        options = TrainingConfig(optimizer=optimizer, **{option: limit})
        chosen = build_optimizer(layer.named_parameters(), options)
        for step in range(20):
            layer.weight.grad = torch.full((2, 2), 100.0 if step == 19 else 1.0)
            chosen.step()
        moments[limit] = float(chosen.state[layer.weight]["exp_avg_sq"].max())
    assert moments[2.0] < 1 and moments[0.0] > 100


def test_regularizer_schedules_start_at_0_or_after_their_end_for_trained_weights(corpus, tmp_path):
    """A mask search, or a training from a dense model, must not drop as much as the first updates do."""
    config = replace(tiny_run.config(corpus, tmp_path / "new", num_updates=1, ref_duration=0.1), model=ZIPFORMER)

    def positions(state, _):
        return {module.position for module in state.model.modules() if isinstance(module, Scheduled)}

    new, trained = tiny_run.UpdateRecorder(positions), tiny_run.UpdateRecorder(positions)
    runs.train(config, [new])
    training = replace(config.training, exp_dir=tmp_path / "trained", init_from=tmp_path / "new")
    runs.train(replace(config, training=training), [trained])
    assert new.values == {1: {0.0}}
    assert all(position >= 50_000.0 for position in trained.values[1])


def test_regularizer_schedules_move_with_the_audio_of_every_ten_updates(corpus, tmp_path):
    config = tiny_run.config(corpus, tmp_path, ref_duration=3.0)  # batches of 6 s
    assert [regularizer_position(config, 2, update) for update in (1, 10, 11, 21)] == [0, 0, 40, 80]
