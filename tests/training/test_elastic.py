"""Runs resume with other numbers of ranks: with the same batches, or, on request, with batches of another size."""

from dataclasses import replace

import pytest
import tiny_run
import torch
from ranks import fork_ranks

from icefall_pathways.experiment import checkpoints
from icefall_pathways.training import runs
from icefall_pathways.training.config import JointPruningConfig

UPDATES = 6


def config_of(corpus, exp_dir, world_size, accum_grad, **options):
    config = tiny_run.config(corpus, exp_dir, **{"num_updates": UPDATES, "valid_interval": 100} | options)
    return replace(
        config,
        training=replace(config.training, world_size=world_size, accum_grad=accum_grad),
        data=replace(config.data, max_duration=4.0),
    )


def _train(rank, config, folder):
    recorder = tiny_run.BatchRecorder()
    trainer = tiny_run.make_trainer(config, rank, callbacks=[recorder])
    trainer.run()
    torch.save(recorder.batches, folder / f"rank-{rank.index}.pt")


def train(config, folder):
    """Train on `world_size` ranks; return the batches of each update in their order over all ranks."""
    world_size, accum_grad = config.training.world_size, config.training.accum_grad
    fork_ranks(_train, world_size, folder, config, folder)
    ranks = [torch.load(folder / f"rank-{rank}.pt", weights_only=True) for rank in range(world_size)]
    return [
        [batches[rank][i] for i in range(accum_grad) for rank in range(world_size)]
        for batches in zip(*ranks, strict=True)
    ]


@pytest.fixture(scope="module")
def uninterrupted(corpus, tmp_path_factory):
    """Return the batches and the final checkpoint of a run of one rank with four batches per update."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    batches = train(config_of(corpus, folder / "exp", 1, 4), folder)
    return batches, checkpoints.newest(folder / "exp")[1]


@pytest.mark.parametrize(("before", "after"), [((1, 4), (4, 1)), ((4, 1), (2, 2))])
def test_other_number_of_ranks_continues_with_the_same_batches(corpus, tmp_path, uninterrupted, before, after):
    first = train(config_of(corpus, tmp_path / "exp", *before, num_updates=UPDATES // 2), tmp_path / "before")
    rest = train(config_of(corpus, tmp_path / "exp", *after), tmp_path / "after")
    batches, final = uninterrupted
    assert first + rest == batches
    # Up to the order in which gradients are summed.
    for name, weight in checkpoints.newest(tmp_path / "exp")[1]["model"].items():
        torch.testing.assert_close(weight, final["model"][name], rtol=1e-3, atol=1e-4)


def test_other_batch_size_keeps_the_position_in_epoch_and_data(corpus, tmp_path, capsys):
    """An epoch of 12 updates is left after 6; with batches half as many, it has 24 and is continued after 12."""
    config = config_of(corpus, tmp_path, 1, 2, num_updates=0, num_epochs=2)
    per_epoch = tiny_run.make_trainer(config).state.updates_per_epoch
    stop = per_epoch // 2
    tiny_run.train_until(replace(config, training=replace(config.training, save_every_n=stop)), stop + 1)
    stored = checkpoints.newest(tmp_path)[1]

    config = config_of(corpus, tmp_path, 1, 1, num_updates=0, num_epochs=2, allow_new_batch_size=True)
    trainer = tiny_run.make_trainer(config)
    trainer.checkpoint.resume(trainer.state)
    state = trainer.state
    printed = capsys.readouterr().out
    assert "1 batches per update (were 2)" in printed
    assert f"updates have 4 s of audio from update {stop + 1} on (were 8 s): epoch 1 continues" in printed
    assert state.scaled_update == 2 * stop and state.num_updates == 2 * state.updates_per_epoch - stop
    for code, progress in state.state_dict()["progress"].items():
        assert progress == pytest.approx(stored["progress"][code], abs=0.1)
    recorder = tiny_run.UpdateRecorder(lambda state, _: (state.epoch, state.is_end_of_epoch))
    runs.train(config, [recorder])
    ends = [update for update, (_, is_end) in recorder.values.items() if is_end]
    assert ends == [state.updates_per_epoch - stop, 2 * state.updates_per_epoch - stop]
    assert (tmp_path / "epoch-1.pt").exists() and (tmp_path / "epoch-2.pt").exists()


def test_position_after_a_change_of_batch_size_survives_a_restart(corpus, tmp_path):
    batches = {}
    for name, stops in {"uninterrupted": [], "restarted": [6]}.items():
        runs.train(config_of(corpus, tmp_path / name, 1, 2, num_updates=3))
        config = config_of(corpus, tmp_path / name, 1, 3, num_updates=8, save_every_n=1)
        config = replace(config, training=replace(config.training, allow_new_batch_size=True))
        for stop in stops:
            tiny_run.train_until(config, stop)
        config = replace(config, training=replace(config.training, allow_new_batch_size=not stops))
        recorder = tiny_run.BatchRecorder()
        runs.train(config, [recorder])
        batches[name] = recorder.batches
    assert batches["restarted"] == batches["uninterrupted"][2:]


def test_masks_that_change_with_epochs_forbid_another_batch_size(corpus, tmp_path):
    pruning = JointPruningConfig(prune_method="gradual", prune_every=1)
    config = replace(config_of(corpus, tmp_path, 1, 1, num_updates=0, num_epochs=1), pruning=pruning)
    tiny_run.train_until(replace(config, training=replace(config.training, save_every_n=1)), 3)
    larger = replace(config, training=replace(config.training, accum_grad=2, allow_new_batch_size=True))
    with pytest.raises(ValueError, match="specify --num-updates"):
        runs.train(larger)


def test_a_checkpoint_with_the_state_of_the_previous_sampler_resumes_and_reports_the_new_order(
    corpus, tmp_path, uninterrupted, capsys
):
    """It continues after the update at which it stopped, with the batches that this version draws for the next one."""
    train(config_of(corpus, tmp_path / "exp", 1, 4, num_updates=UPDATES // 2), tmp_path)
    path, checkpoint = checkpoints.newest(tmp_path / "exp")
    for key in ("batch_offsets", "progress", "update_offset"):
        del checkpoint[key]
    checkpoints.save(checkpoint | {"pass_lengths": {"en": [7, 7], "fr": [3]}}, path)
    recorder = tiny_run.BatchRecorder()
    tiny_run.make_trainer(config_of(corpus, tmp_path / "exp", 1, 4), callbacks=[recorder]).run()
    assert recorder.batches == uninterrupted[0][UPDATES // 2 :]
    assert "training cuts from here on in the order of the current version" in capsys.readouterr().out
