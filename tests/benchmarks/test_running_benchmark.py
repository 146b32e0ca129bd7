import pytest
import tiny_run
import torch

from icefall_pathways.data.datamodule import SpeechDataModule
from icefall_pathways.data.tokenizer import Tokenizer
from icefall_pathways.launch.ranks import Rank
from icefall_pathways.models.transducer import build_model
from icefall_pathways.training.trainer import Trainer


def test_shares_of_all_parts_sum_to_one(load_benchmark, corpus, tmp_path):
    running = load_benchmark("running")
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
    assert not list(tmp_path.glob("*.pt")), "the benchmark must not save checkpoints"
