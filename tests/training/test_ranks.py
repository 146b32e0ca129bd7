"""Several ranks are equivalent to one rank with the same global batch."""

from contextlib import suppress
from dataclasses import replace

import pytest
import tiny_run
import torch
from ranks import fork_ranks
from test_resuming import assert_same_checkpoints

from icefall_pathways.experiment import checkpoints
from icefall_pathways.training import runs
from icefall_pathways.training.config import JointPruningConfig


@pytest.fixture(scope="module")
def ends(corpus, tmp_path_factory):
    """Return batches and final weights of each rank, by number of ranks, with four batches per update in total."""
    folder = tmp_path_factory.mktemp("ranks")
    results = {}
    for world_size in (1, 2, 4):
        config = tiny_run.config(
            corpus, folder / f"exp-{world_size}", num_updates=3, valid_interval=100, save_every_n=100
        )
        config = replace(
            config,
            training=replace(config.training, world_size=world_size, accum_grad=4 // world_size),
            data=replace(config.data, max_duration=4.0),
        )
        fork_ranks(_train, world_size, folder / f"forked-{world_size}", config, folder)
        paths = [folder / f"rank-{rank}-of-{world_size}.pt" for rank in range(world_size)]
        results[world_size] = [torch.load(path, weights_only=True) for path in paths]
    return results


def _train(rank, config, folder):
    recorder = tiny_run.BatchRecorder()
    trainer = tiny_run.make_trainer(config, rank, callbacks=[recorder])
    trainer.run()
    state = trainer.state
    end = {"seen": recorder.batches, "model": state.model.state_dict(), "average": state.average.state_dict()}
    torch.save(end, folder / f"rank-{rank.index}-of-{rank.world_size}.pt")


def test_the_global_batch_is_the_same_and_of_one_language(ends):
    batches = {
        world_size: [
            [ranks[rank]["seen"][update][i] for i in range(4 // world_size) for rank in range(world_size)]
            for update in range(3)
        ]
        for world_size, ranks in ends.items()
    }
    assert batches[1] == batches[2] == batches[4]
    for update in batches[1]:
        assert len({language for language, _ in update}) == 1
        ids = [cut_id for _, ids in update for cut_id in ids]
        assert len(ids) == len(set(ids)) >= 4
    assert len({update[0][0] for update in batches[1]}) > 1


@pytest.mark.parametrize("world_size", [2, 4])
def test_all_ranks_have_the_same_final_weights(ends, world_size):
    first, *others = ends[world_size]
    for other in others:
        for part in ("model", "average"):
            assert all(torch.equal(value, other[part][name]) for name, value in first[part].items())


@pytest.mark.parametrize("world_size", [2, 4])
def test_several_ranks_equal_gradient_accumulation_on_one(ends, world_size):
    """This includes dropout and SpecAugment: random numbers depend on the batch, not on the rank."""
    (single,), several = ends[1], ends[world_size][0]
    for name, value in single["model"].items():
        torch.testing.assert_close(several["model"][name], value, rtol=1e-4, atol=1e-5)


def _train_until(rank, config, update):
    """Train until the start of an update; 0 trains to the end."""
    with suppress(tiny_run.KilledError):
        runs.train_rank(rank, config, callbacks=[tiny_run.KillAt(update)])


def test_two_killed_and_resumed_ranks_equal_two_uninterrupted_ones(corpus, tmp_path):
    """This includes the state of each rank: its whitener probabilities and its gradient statistics."""
    config = replace(
        tiny_run.config(
            corpus, tmp_path / "uninterrupted", num_updates=6, ref_duration=0.01, valid_interval=3, world_size=2
        ),
        model=tiny_run.ZIPFORMER,
        pruning=JointPruningConfig("adaptive", prune_every=1, prune_ramp=2, prune_end=5),
    )
    fork_ranks(_train_until, 2, tmp_path / "uninterrupted-ranks", config, 0)
    killed = replace(config, training=replace(config.training, exp_dir=tmp_path / "killed"))
    for i, update in enumerate((4, 6, 0)):
        fork_ranks(_train_until, 2, tmp_path / f"killed-ranks-{i}", killed, update)
    end = checkpoints.read(tmp_path / "uninterrupted" / "checkpoint-6.pt")
    assert len(end["regularizers"]) == 2 and end["gradients"] and end["masks"]
    # A validation of the same weights in another process can differ in the last bits of float32.
    assert_same_checkpoints(tmp_path / "uninterrupted", tmp_path / "killed", 6, loss_tolerance=1e-6)
