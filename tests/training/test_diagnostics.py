import re

import pytest
import tiny_run
import torch
from torch import nn

from icefall_pathways.training.diagnostics import Diagnostics, NonFiniteError, inf_check


class Divide(nn.Module):
    def forward(self, x):
        return x / 0


class Root(nn.Module):
    """A module with a finite output and an infinite derivative at 0."""

    def forward(self, x):
        return (x * 0).sqrt() * 2


@pytest.mark.parametrize(
    ("bad", "message"),
    [(Divide(), "^output of 1 is not finite"), (Root(), "^gradient of the output of 0 is not finite")],
)
def test_the_error_names_the_first_non_finite_module(bad, message):
    model = nn.Sequential(nn.Linear(3, 3), bad, nn.Linear(3, 3))
    with pytest.raises(NonFiniteError, match=message), inf_check(model):
        model(torch.randn(2, 3)).sum().backward()
    model[1] = nn.Identity()
    model(torch.randn(2, 3)).sum().backward()
    assert not any(module._forward_hooks for module in model.modules())


def test_gradients_may_overflow_with_a_loss_scaler():
    model = nn.Sequential(nn.Linear(3, 3), Root(), nn.Linear(3, 3))
    with inf_check(model, gradients=False):
        model(torch.randn(2, 3)).sum().backward()
        with pytest.raises(NonFiniteError, match="output of 0 is not finite"):
            model(torch.full((2, 3), float("inf")))


def test_diagnostics_report_root_mean_squares():
    model = nn.Sequential(nn.Linear(3, 2, bias=False))
    diagnostics = Diagnostics(model)
    inputs = [torch.randn(4, 3) for _ in range(2)]
    with diagnostics.collect():
        for x in inputs:
            (model(x) * 3).sum().backward()
    outputs = torch.cat([model(x) for x in inputs])
    report = diagnostics.report()
    expected = f"{float(outputs.square().mean().sqrt()):.3g}"
    assert re.search(rf"│ 0 +│ output +│ +{re.escape(expected)} ", report)
    assert re.search(r"│ 0 +│ gradient of the output +│ +3 +│ +3 ", report)
    assert re.search(rf"0\.weight +│ parameter +│ +{float(model[0].weight.square().mean().sqrt()):.3g} ", report)


def test_a_training_with_inf_check_stops_at_the_module(corpus, tmp_path):
    trainer = tiny_run.make_trainer(tiny_run.config(corpus, tmp_path, inf_check=True))
    trainer.state.model.joiner.output_linear.weight.data[0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match=r"output of joiner\.output_linear is not finite"):
        trainer.run()
    assert list(tmp_path.glob("batch-*.pt"))


def test_a_training_prints_diagnostics(corpus, tmp_path, capsys):
    trainer = tiny_run.make_trainer(tiny_run.config(corpus, tmp_path, print_diagnostics=True, num_updates=2))
    trainer.run()
    output = capsys.readouterr().out
    assert "joiner.output_linear.weight" in output and "gradient of the output" in output
    assert not list(tmp_path.glob("*.pt"))
