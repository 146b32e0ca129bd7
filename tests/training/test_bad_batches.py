"""Non-finite losses and gradients, failing ranks, and killed loader workers."""

import os
import re
import signal
import time
from dataclasses import replace
from multiprocessing import active_children
from pathlib import Path

import pytest
import tiny_run
import torch
from ranks import fail, fork_ranks

from icefall_pathways.data.datamodule import DataError, SpeechDataModule
from icefall_pathways.data.loading import translate_worker_death
from icefall_pathways.data.tokenizer import Tokenizer
from icefall_pathways.experiment import checkpoints
from icefall_pathways.launch.failures import RankError
from icefall_pathways.launch.ranks import launch
from icefall_pathways.training import nonfinite
from icefall_pathways.training.callbacks import Callback
from icefall_pathways.training.nonfinite import BadBatchesError, read_batch
from icefall_pathways.training.objective import Objective


class NonFiniteObjective(Objective):
    """Make the losses of some updates NaN (`kind` "loss"), or their gradients infinite (`kind` "gradient")."""

    def __init__(self, trainer, updates, kind):
        super().__init__(trainer.config.training, trainer.rank.device)
        self.updates = updates
        self.kind = kind

    def __call__(self, batch, module, update):
        losses = super().__call__(batch, module, update)
        if update in self.updates and self.kind == "loss":
            losses["loss"] = losses["loss"] * float("nan")
        elif update in self.updates:
            losses["loss"].register_hook(lambda grad: grad * float("inf"))
        return losses


class FailingObjective(Objective):
    def __call__(self, batch, module, update):
        raise ZeroDivisionError


def train_with_a_failing_objective(config):
    trainer = tiny_run.make_trainer(config)
    trainer.update_step.objective = FailingObjective(config.training, trainer.rank.device)
    with pytest.raises(ZeroDivisionError):
        trainer.run()


def tensors_of(state, _):
    tensors = {name: value.clone() for name, value in state.model.state_dict().items()}
    for i, entries in enumerate(state.optimizer.state.values()):
        tensors |= {f"{i}/{key}": value.clone() for key, value in entries.items()}
    return tensors


@pytest.mark.parametrize("kind", ["loss", "gradient"])
def test_a_non_finite_update_is_skipped_reported_and_saved(corpus, tmp_path, kind, capsys):
    batches, tensors = tiny_run.BatchRecorder(), tiny_run.UpdateRecorder(tensors_of)
    trainer = tiny_run.make_trainer(tiny_run.config(corpus, tmp_path), callbacks=[batches, tensors])
    trainer.update_step.objective = NonFiniteObjective(trainer, {3}, kind)
    trainer.run()
    states = tensors.values
    assert all(torch.equal(states[2][name], states[3][name]) for name in states[2])
    assert not all(torch.equal(states[3][name], states[4][name]) for name in states[3])
    assert all(value.isfinite().all() for value in states[8].values())
    ((language, ids),) = batches.batches[2]
    assert f"update 3 skipped: the loss or its gradient is not finite. {language} cuts {', '.join(ids)}" in (
        capsys.readouterr().out
    )
    (path,) = tmp_path.glob("batch-*.pt")
    saved = read_batch(path)
    assert (saved["language"], saved["cuts"]) == (language, ids)
    assert saved["inputs"].shape[0] == len(saved["num_frames"]) == len(saved["text"]) == len(ids)


def test_too_many_consecutive_non_finite_updates_stop_the_training(corpus, tmp_path):
    trainer = tiny_run.make_trainer(tiny_run.config(corpus, tmp_path, max_bad_batches=1))
    trainer.update_step.objective = NonFiniteObjective(trainer, {2, 4, 6, 7}, "loss")
    with pytest.raises(BadBatchesError, match="2 consecutive updates, up to update 7"):
        trainer.run()
    model = torch.load(tmp_path / "bad-model-0.pt", weights_only=True)["model"]
    assert all(torch.equal(value, model[name]) for name, value in trainer.state.model.state_dict().items())
    assert len(list(tmp_path.glob("batch-*.pt"))) == 4
    assert checkpoints.newest(tmp_path)[0].name == "checkpoint-6.pt"


class NanInSecondCut(Callback):
    """Make the first feature of the second cut of a batch NaN, if there is one."""

    def on_update_start(self, state, batches, wait_seconds):
        for batch in batches:
            batch.inputs[1:2, 0, 0] = float("nan")


def test_cuts_with_non_finite_features_are_named(corpus, tmp_path, capsys):
    config = tiny_run.config(corpus, tmp_path, max_bad_batches=0)
    trainer = tiny_run.make_trainer(config, callbacks=[NanInSecondCut()])
    with pytest.raises(BadBatchesError):
        trainer.run()
    assert re.search(r"cuts ([\w-]+), ([\w-]+).*\(features not finite: \2\)", capsys.readouterr().out)


def test_an_exception_saves_the_batch_and_the_model(corpus, tmp_path):
    train_with_a_failing_objective(tiny_run.config(corpus, tmp_path))
    assert len(list(tmp_path.glob("batch-*.pt"))) == 1 and (tmp_path / "bad-model-0.pt").exists()


def test_float16_on_a_cpu_raises(corpus, tmp_path):
    with pytest.raises(ValueError, match="--use-fp16 needs CUDA"):
        tiny_run.make_trainer(tiny_run.config(corpus, tmp_path, use_fp16=True))


def test_a_killed_loader_worker_raises_a_data_error(corpus, tmp_path):
    config = tiny_run.config(corpus, tmp_path)
    data = SpeechDataModule(replace(config.data, num_workers=1), Tokenizer(config.training.bpe_model))
    batches = data.train_batches(0, 100, 42)
    next(batches)
    with pytest.raises(DataError, match=r"a data loader worker has died.*--num-workers"), translate_worker_death():
        for child in active_children():
            os.kill(child.pid, signal.SIGKILL)
        list(batches)
    batches.close()
    assert not active_children()


@pytest.mark.parametrize("hook", ["on_update_start", "on_backward_end", "on_update_end"])
def test_a_loader_worker_killed_during_or_after_an_update_does_not_save_the_batch(corpus, tmp_path, hook):
    def kill_workers(*_):
        for child in active_children():
            os.kill(child.pid, signal.SIGKILL)
        time.sleep(60)  # torch interrupts it

    config = tiny_run.config(corpus, tmp_path)
    callback = type("KillWorkers", (Callback,), {hook: kill_workers})()
    trainer = tiny_run.make_trainer(replace(config, data=replace(config.data, num_workers=1)), callbacks=[callback])
    with pytest.raises(DataError, match=r"a data loader worker has died.*--num-workers"):
        trainer.run()
    assert not list(tmp_path.glob("b*-*.pt"))


def test_the_first_error_is_raised_if_the_batch_cannot_be_saved(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(nonfinite, "save_batch", lambda *_: Path("/dev/full").write_text("x"))
    train_with_a_failing_objective(tiny_run.config(corpus, tmp_path))
    (log,) = (tmp_path / "log").iterdir()
    assert "cannot save the batch and the model: [Errno 28] No space left" in log.read_text()


def test_all_ranks_skip_an_update_with_a_non_finite_loss_on_one(corpus, tmp_path):
    config = tiny_run.config(corpus, tmp_path, num_updates=5)
    fork_ranks(_train_with_a_nan_loss, 2, tmp_path, config, tmp_path)
    ranks = [torch.load(tmp_path / f"rank-{rank}.pt", weights_only=True) for rank in range(2)]
    assert ranks[0]["skipped"] == ranks[1]["skipped"] == [3]
    assert all(torch.equal(ranks[0]["model"][name], ranks[1]["model"][name]) for name in ranks[0]["model"])
    assert all(value.isfinite().all() for value in ranks[0]["model"].values())
    (saved,) = tmp_path.glob("batch-*.pt")
    logs = [path.read_text() for path in (tmp_path / "log").iterdir()]
    assert all(f"rank 1: {read_batch(saved)['language']} cuts" in text for text in logs) and len(logs) == 2
    assert not any("rank 0:" in text for text in logs)


def _train_with_a_nan_loss(rank, config, folder):
    stepped = tiny_run.UpdateRecorder(lambda _, result: result.stepped)
    trainer = tiny_run.make_trainer(config, rank, callbacks=[stepped])
    if rank.index == 1:
        trainer.update_step.objective = NonFiniteObjective(trainer, {3}, "loss")
    trainer.run()
    result = {
        "model": trainer.state.model.state_dict(),
        "skipped": [u for u, done in stepped.values.items() if not done],
    }
    torch.save(result, f"{folder}/rank-{rank.index}.pt")


def test_the_first_failure_of_a_rank_is_reported_and_stops_all_ranks(free_port, capfd):
    start = time.monotonic()
    with pytest.raises(RankError, match=r"(?s)rank 1 failed.*in fail.*ZeroDivisionError"):
        launch(fail, 2, free_port, "exception")
    assert time.monotonic() - start < 45
    assert "rank 0 failed" not in capfd.readouterr().err


def test_user_actionable_errors_of_ranks_have_no_traceback(free_port):
    with pytest.raises(ValueError, match=r"^rank 1: use another option$"):
        launch(fail, 2, free_port, "error")


def test_the_error_for_a_killed_rank_names_it(free_port):
    with pytest.raises(ChildProcessError, match=r"^rank 1 was killed by SIGKILL, as the kernel does when memory"):
        launch(fail, 2, free_port, "killed")


def test_a_port_in_use_raises(free_port):
    store = torch.distributed.TCPStore("127.0.0.1", free_port, is_master=True, wait_for_workers=False)
    with pytest.raises(ValueError, match=f"cannot listen on port {free_port}.*--master-port"):
        launch(fail, 2, free_port, "error")
    del store
