"""Training with --rnnt-loss k2 and builtin."""

import sys
from dataclasses import replace

import pytest
import tiny_run
from optional_packages import import_k2

from icefall_pathways.files import read_json
from icefall_pathways.models.losses import resolve_rnnt_loss
from icefall_pathways.training import runs


@pytest.fixture
def without_k2(monkeypatch):
    """Make the import of k2 fail."""
    monkeypatch.setitem(sys.modules, "k2", None)
    resolve_rnnt_loss.cache_clear()
    yield
    resolve_rnnt_loss.cache_clear()


def losses_of_updates(corpus, exp_dir, model, **options):
    """Train, and return the losses per token of each update by name."""
    recorder = tiny_run.UpdateRecorder(
        lambda state, result: {
            name: value.item() / result.batches[0].total_tokens for name, value in result.losses[0].items()
        }
    )
    options = {"valid_interval": 100, "save_every_n": 100, "valid_wer_cuts": 0, "ref_duration": 0.01} | options
    config = tiny_run.config(corpus, exp_dir, "en", **options)
    runs.train(replace(config, model=model), [recorder])
    return recorder.values


@pytest.mark.parametrize(
    ("model", "options"),
    [(tiny_run.MODEL, {}), (tiny_run.MODEL, {"use_bf16": True, "am_scale": 0.1}), (tiny_run.ZIPFORMER, {})],
    ids=["emformer", "emformer bf16", "zipformer"],
)
def test_training_with_either_loss_is_equal(corpus, tmp_path, model, options):
    import_k2()
    expected, actual = (
        losses_of_updates(corpus, tmp_path / name, model, num_updates=12, rnnt_loss=name, **options)
        for name in ("k2", "builtin")
    )
    assert len(expected) == 12 and expected[12]["simple_loss"] < 0.9 * expected[1]["simple_loss"]
    tolerance = 1e-3 if options.get("use_bf16") else 2e-4  # rounding grows over the updates
    for update, losses in expected.items():
        assert actual[update] == pytest.approx(losses, rel=tolerance), update


@pytest.mark.usefixtures("without_k2")
def test_training_does_not_need_k2_and_stores_the_loss_it_used(corpus, tmp_path):
    config = tiny_run.config(corpus, tmp_path / "exp", "en fr", num_updates=2)
    runs.train(config)
    assert read_json(tmp_path / "exp" / "config.json")["training"]["rnnt_loss"] == "builtin"
    with pytest.raises(ValueError, match="--rnnt-loss k2 needs k2, which cannot be imported"):
        runs.train(tiny_run.config(corpus, tmp_path / "k2", "en fr", num_updates=2, rnnt_loss="k2"))


def test_a_run_resumes_with_the_other_loss_and_a_warning(corpus, tmp_path, capsys):
    import_k2()
    config = tiny_run.config(corpus, tmp_path / "exp", "en fr", num_updates=4)
    tiny_run.train_until(config, 3)
    assert "warning" not in capsys.readouterr().out
    runs.train(replace(config, training=replace(config.training, rnnt_loss="builtin")))
    printed = capsys.readouterr().out
    assert "warning: resuming with different options or data: --rnnt-loss builtin (was k2)" in printed
