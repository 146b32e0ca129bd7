"""The benchmark that watches a training as it runs."""

import importlib.util
import sys
from pathlib import Path

import pytest
import tiny_run
import torch

from icefall_pathways.data.datamodule import SpeechDataModule
from icefall_pathways.data.tokenizer import Tokenizer
from icefall_pathways.models.transducer import build_model
from icefall_pathways.training.launch.ranks import Rank
from icefall_pathways.training.trainer import Trainer

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


def test_the_parts_of_updates_make_up_their_time(corpus, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    spec = importlib.util.spec_from_file_location("running_benchmark", FOLDER / "running.py")
    running = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, running)
    spec.loader.exec_module(running)
    config = tiny_run.config(corpus, tmp_path, ctc_loss_scale=0.0, num_updates=10**6)
    tokenizer = Tokenizer(config.training.bpe_model)
    model = build_model(config.model, 20)
    trainer = Trainer(config, model, SpeechDataModule(config.data, tokenizer), tokenizer, Rank())
    before = [parameter.clone() for parameter in model.parameters()]
    timer = running.UpdateTimer(trainer, warm_up=2, seconds=0.2)
    with pytest.raises(running.DoneError):
        trainer.run()
    assert any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert set(timer.shares) == set(running.PARTS)
    assert sum(timer.shares.values()) == pytest.approx(1.0)
    assert all(share > 0 for share in timer.shares.values())
    assert timer.update_seconds > 0
    assert not list(tmp_path.glob("*.pt")), "it saves nothing"
