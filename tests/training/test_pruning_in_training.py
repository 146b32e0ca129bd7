"""Masks that change during training: gradual and adaptive pruning of all languages, rewinding in a search."""

from dataclasses import replace

import pytest
import tiny_run
import torch
from drawn_masks import random_masks

from icefall_pathways.experiment import checkpoints, layout
from icefall_pathways.launch.ranks import launch
from icefall_pathways.models.transducer import build_model
from icefall_pathways.pathways.granularity import num_kept
from icefall_pathways.pathways.masks import PathwayMasks
from icefall_pathways.training import runs
from icefall_pathways.training.callbacks import Callback
from icefall_pathways.training.config import JointPruningConfig, PruningConfig
from icefall_pathways.training.metrics import read_metrics
from icefall_pathways.training.pruning_callback import PruningCallback
from icefall_pathways.training.pruning_plan import joint_plan

LANGUAGES = ["en", "fr", "it"]


def adaptive(corpus, exp_dir, **options):
    options = {
        "prune_method": "adaptive",
        "prune_every": 1,
        "prune_ramp": 3,
        "prune_end": 6,
        "prune_exchange": 0.5,
    } | options
    return replace(tiny_run.config(corpus, exp_dir, valid_interval=100), pruning=JointPruningConfig(**options))


def checkpoint(exp_dir, update):
    return checkpoints.read(layout.batch_checkpoint(exp_dir, update))


def assert_target(masks, sparsity=0.7):
    for name, code in masks.codes.items():
        for language in masks.languages:
            assert int(masks.mask(name, language).sum()) == num_kept(code.numel(), sparsity)


def test_a_resumed_adaptive_training_equals_an_uninterrupted_one(corpus, tmp_path):
    uninterrupted = adaptive(corpus, tmp_path / "uninterrupted", prune_by="sensitivity", regrow="gradient")
    runs.train(uninterrupted)
    killed = replace(uninterrupted, training=replace(uninterrupted.training, exp_dir=tmp_path / "killed"))
    tiny_run.train_until(killed, 6)
    runs.train(killed)
    a, b = checkpoint(tmp_path / "uninterrupted", 8), checkpoint(tmp_path / "killed", 8)
    for part in ("model", "model_avg", "masks"):
        assert all(torch.equal(a[part][name], b[part][name]) for name in a[part]), part
    for index, state in a["optimizer"].items():
        assert all(torch.equal(value, b["optimizer"][index][key]) for key, value in state.items())
    for language, squares in a["gradients"].items():
        assert all(torch.equal(square, b["gradients"][language][name]) for name, square in squares.items())


class FixedLossScaler:
    """Loss scaler with a fixed factor, for a CPU, where torch has none; reading the factor is an error."""

    def scale(self, tensor):
        return tensor * 1024

    def unscale_(self, optimizer):
        for parameter in (p for group in optimizer.param_groups for p in group["params"] if p.grad is not None):
            parameter.grad /= 1024

    def get_scale(self):
        raise AssertionError("reading the factor waits for the device")

    def is_enabled(self):
        return True

    def update(self): ...

    def state_dict(self):
        return {}


class UseScaler(Callback):
    def on_train_start(self, state):
        state.scaler = FixedLossScaler()


def test_gradient_statistics_do_not_depend_on_the_loss_scaler(corpus, tmp_path):
    config = adaptive(corpus, tmp_path / "plain", prune_start=2)
    config = replace(config, training=replace(config.training, num_updates=6, save_every_n=1))
    runs.train(config)
    scaled = replace(config, training=replace(config.training, exp_dir=tmp_path / "scaled"))
    runs.train(scaled, [UseScaler()])
    a, b = (checkpoint(tmp_path / name, 2)["gradients"] for name in ("plain", "scaled"))
    assert a and a.keys() == b.keys()
    for language, squares in a.items():
        for name, square in squares.items():
            assert square.any()
            torch.testing.assert_close(b[language][name], square)


def test_dynamic_pathways_reach_the_target_sparsity_with_a_mask_per_language(corpus, tmp_path):
    config = adaptive(corpus, tmp_path, prune_by="sensitivity")
    runs.train(config)
    masks = PathwayMasks.load(tmp_path / "masks.safetensors")
    assert_target(masks)
    assert masks.header.method == "adaptive" and masks.header.target_sparsity == 0.7
    assert masks.overlap("en", "fr") < 0.95
    last = checkpoint(tmp_path, 8)["masks"]
    assert all(torch.equal(code, last[name]) for name, code in masks.codes.items())
    assert all(torch.equal(code, last[name]) for name, code in checkpoint(tmp_path, 6)["masks"].items())
    between = checkpoints.load_model(tmp_path, iteration=4).masks
    assert between.header.languages == masks.languages
    assert any(not torch.equal(code, last[name]) for name, code in between.codes.items())
    runs.train(config)  # a finished training does not change
    assert_target(PathwayMasks.load(tmp_path / "masks.safetensors"))


def test_masks_of_the_target_sparsity_need_no_ramp(corpus, tmp_path):
    model = build_model(tiny_run.MODEL, 20)
    masks = PathwayMasks.dense(model, LANGUAGES, runs.PRUNE_SCOPES["encoder"])
    for name, code in masks.codes.items():
        for language in LANGUAGES:
            order = torch.randperm(code.numel()) < num_kept(code.numel(), 0.7)
            masks.set_mask(name, language, order.view(code.shape))
    plan = joint_plan(JointPruningConfig("adaptive", prune_every=2), masks, 16)
    assert [plan.schedule.sparsity_after(update) for update in (1, 2, 4, 12, 14)] == [None, 0.7, 0.7, 0.7, None]
    middle = joint_plan(JointPruningConfig("adaptive", sparsity=0.9, prune_every=2), masks, 16)
    assert 0.7 < middle.schedule.sparsity_after(2) < 0.9 == middle.schedule.sparsity_after(12)


def test_gradual_pruning_only_removes_entries_of_the_initial_masks(corpus, tmp_path):
    model = build_model(replace(tiny_run.MODEL, ctc_head=True), 20)
    initial = random_masks(model, LANGUAGES, runs.PRUNE_SCOPES["encoder"])
    initial.save(tmp_path / "masks.safetensors")
    config = tiny_run.config(corpus, tmp_path / "exp", masks=tmp_path / "masks.safetensors")
    pruning = JointPruningConfig("gradual", sparsity=0.9, prune_every=2)
    runs.train(replace(config, pruning=pruning))
    masks = PathwayMasks.load(tmp_path / "exp" / "masks.safetensors")
    assert_target(masks, 0.9)
    for name in masks.names:
        assert all(not (masks.mask(name, code) & ~initial.mask(name, code)).any() for code in LANGUAGES)


def test_languages_share_a_mask_with_prune_for_all_languages(corpus, tmp_path):
    pruning = JointPruningConfig("gradual", prune_for="all-languages", prune_every=2)
    runs.train(replace(tiny_run.config(corpus, tmp_path), pruning=pruning))
    masks = PathwayMasks.load(tmp_path / "masks.safetensors")
    assert_target(masks)
    assert masks.share_mask(LANGUAGES)


def test_pruning_after_the_last_update_raises():
    masks = PathwayMasks.dense(build_model(tiny_run.MODEL, 20), LANGUAGES)
    with pytest.raises(ValueError, match="--prune-end 9 comes after the last of 8 updates"):
        joint_plan(JointPruningConfig("adaptive", prune_end=9), masks, 8)


class BeforePruning(Callback):
    """Copy the masks and the first moments before they change."""

    def on_update_end(self, state, result):
        self.codes = {name: code.clone() for name, code in state.masks.codes.items()}
        self.moments = {
            name: state.optimizer.state[parameter]["exp_avg"].clone()
            for name, parameter in state.model.named_parameters()
        }


class AfterPruning(Callback):
    """Check the optimizer state of regrown entries: no language used them before pruning, and one uses them after."""

    def __init__(self, before):
        self.before = before
        self.num_regrown = 0

    def on_update_end(self, state, result):
        for name, parameter in state.model.named_parameters():
            if name not in state.masks.codes:
                continue
            regrown = (state.masks.codes[name] != 0) & (self.before.codes[name] == 0)
            entries = state.optimizer.state[parameter]
            self.num_regrown += int(regrown.sum())
            if regrown.any():
                assert all(not entries[key][regrown].any() for key in ("exp_avg", "exp_avg_sq", "step"))
                assert torch.equal(entries["exp_avg"][~regrown], self.before.moments[name][~regrown])


def test_the_optimizer_state_of_regrown_entries_is_reset_and_that_of_others_kept(corpus, tmp_path):
    options = {"sparsity": 0.9, "prune_ramp": 1, "prune_end": 8, "prune_by": "magnitude", "regrow": "gradient"}
    config = adaptive(corpus, tmp_path, **options)
    masks = PathwayMasks.dense(build_model(tiny_run.MODEL, 20), LANGUAGES, runs.PRUNE_SCOPES["encoder-predictor"])
    masks.header = config.pruning.shape(masks.header)
    trainer = tiny_run.make_trainer(config, masks=masks, plan=joint_plan(config.pruning, masks, 8))
    before = BeforePruning()
    after = AfterPruning(before)
    position = next(i for i, callback in enumerate(trainer.callbacks) if isinstance(callback, PruningCallback))
    trainer.callbacks[position : position + 1] = [before, trainer.callbacks[position], after]
    trainer.run()
    assert after.num_regrown > 10


def test_two_ranks_have_the_same_masks(corpus, tmp_path, free_port):
    config = adaptive(corpus, tmp_path, prune_by="sensitivity", regrow="gradient")
    config = replace(config, training=replace(config.training, world_size=2, master_port=free_port))
    launch(_record, 2, free_port, config, str(tmp_path))
    ranks = [torch.load(tmp_path / f"rank-{rank}.pt", weights_only=True) for rank in range(2)]
    assert any(not torch.equal(x, y) for x, y in zip(*(r["own"] for r in ranks), strict=True))
    for before, after in zip(*(r["masks"] for r in ranks), strict=True):
        assert all(torch.equal(code, after[name]) for name, code in before.items())
    assert all(torch.equal(value, ranks[1]["model"][name]) for name, value in ranks[0]["model"].items())


def _record(rank, config, folder):
    """Train, and save the final weights of this rank, and after each update the masks and its gradient statistics."""
    recorder = RankRecorder()
    runs.train_rank(rank, config, callbacks=[recorder])
    result = {"masks": recorder.masks, "own": recorder.statistics, "model": recorder.model}
    torch.save(result, f"{folder}/rank-{rank.index}.pt")


class RankRecorder(Callback):
    def __init__(self):
        self.masks, self.statistics = [], []
        self.model = {}

    def on_update_end(self, state, result):  # before the checkpoint, which sums the statistics on rank 0
        self.masks.append({name: code.clone() for name, code in state.masks.codes.items()})
        self.statistics += [next(iter(squares.values())).clone() for squares in state.gradients.state_dict().values()]

    def on_train_end(self, state, error):
        self.model = state.model.state_dict()


@pytest.fixture(scope="module")
def dense(corpus, tmp_path_factory):
    exp_dir = tmp_path_factory.mktemp("exp") / "dense"
    runs.train(tiny_run.config(corpus, exp_dir, num_updates=4, keep_last_k=5))
    return exp_dir


def search(corpus, dense, exp_dir, **pruning):
    pruning = {"sparsity": 0.7, "prune_rounds": 2, "updates_per_round": 2} | pruning
    return tiny_run.search(corpus, exp_dir, PruningConfig(**pruning), "en", init_from=dense / "checkpoint-4.pt")


def test_rewinding_restores_the_named_checkpoint_and_restarts_the_learning_rate(corpus, dense, tmp_path):
    config = search(
        corpus, dense, tmp_path, prune_method="lth", rewind_to=dense / "checkpoint-2.pt", updates_per_round=3
    )
    runs.find_masks(
        replace(config, training=replace(config.training, lr_schedule="linear", lr_warmup=0, log_interval=1))
    )
    early, late = (checkpoint(dense, update)["model"] for update in (2, 4))
    final = checkpoint(tmp_path / "en", 6)["model"]
    assert all(torch.equal(final[name], early[name]) for name in final)
    assert any(not torch.equal(final[name], late[name]) for name in final)
    assert not (tmp_path / "en" / "checkpoint-0.pt").exists()
    rates = [r["lr"] for r in read_metrics(tmp_path / "en" / "metrics.jsonl") if r["kind"] == "train"]
    assert rates[:3] == rates[3:] and rates[0] > rates[1] > rates[2] > 0


def test_a_gradual_search_reaches_the_sparsity(corpus, dense, tmp_path):
    runs.find_masks(
        search(
            corpus, dense, tmp_path, prune_method="gradual", prune_by="sensitivity", prune_rounds=3, updates_per_round=1
        )
    )
    masks = PathwayMasks.load(tmp_path / "masks.safetensors")
    assert_target(masks)
    assert masks.header.method == "gradual"


@pytest.mark.parametrize("prune_for", ["each-language", "all-languages"])
def test_a_random_search_depends_on_the_seed_and_not_on_the_model(corpus, dense, tmp_path, prune_for):
    pruning = PruningConfig(prune_method="random", sparsity=0.7, prune_for=prune_for)

    def masks_of(name, update, seed):
        options = {"init_from": dense / f"checkpoint-{update}.pt", "seed": seed}
        config = tiny_run.search(corpus, tmp_path / name, pruning, **options)
        # Neither the data nor a training determines the masks.
        runs.find_masks(replace(config, data=replace(config.data, manifest_dir=tmp_path / "missing")))
        assert not list((tmp_path / name).rglob("*.pt"))
        return PathwayMasks.load(tmp_path / name / "masks.safetensors")

    masks = masks_of("first", 4, seed=1)
    assert_target(masks)
    assert masks.header.method == "random"
    assert masks.share_mask(["en", "fr"]) == (prune_for == "all-languages")
    assert masks_of("second", 2, seed=1).equals(masks)
    assert not masks_of("third", 4, seed=2).equals(masks)
    with pytest.raises(ValueError, match="holds a search with seed=1, this one has seed=2"):
        masks_of("first", 4, seed=2)


@pytest.mark.parametrize("method, message", [("imp", "--rewind-to is for"), ("lth", "no checkpoint")])
def test_an_invalid_rewind_checkpoint_raises_before_the_search(corpus, dense, tmp_path, method, message):
    config = search(corpus, dense, tmp_path / "exp", prune_method=method, rewind_to=dense / "checkpoint-7.pt")
    with pytest.raises(ValueError, match=message):
        runs.find_masks(config)
    assert not (tmp_path / "exp").exists()


def test_rewinding_to_another_model_raises(corpus, dense, tmp_path):
    other = checkpoint(dense, 2)
    other["model"]["joiner.output_linear.weight"] = torch.zeros(20, 32)
    checkpoints.save(other, tmp_path / "checkpoint-2.pt")
    config = search(corpus, dense, tmp_path / "exp", prune_method="lth", rewind_to=tmp_path / "checkpoint-2.pt")
    with pytest.raises(ValueError, match="is of another model"):
        runs.find_masks(config)
