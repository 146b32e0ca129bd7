"""Mask searches with each granularity and allocation, through the trainer."""

import os
import shutil

import pytest
import tiny_run

from icefall_pathways.experiment import checkpoints
from icefall_pathways.pathways.granularity import num_kept, parse_granularity
from icefall_pathways.pathways.masks import PathwayMasks
from icefall_pathways.training import runs
from icefall_pathways.training.config import JointPruningConfig, PruningConfig


@pytest.fixture(scope="module")
def dense(corpus, tmp_path_factory):
    exp_dir = tmp_path_factory.mktemp("exp") / "dense"
    runs.train(tiny_run.config(corpus, exp_dir, "en", num_updates=2))
    return exp_dir


def search(corpus, dense, exp_dir, languages="en", **pruning):
    pruning = {"prune_rounds": 2, "updates_per_round": 1} | pruning
    runs.find_masks(tiny_run.search(corpus, exp_dir, PruningConfig(**pruning), languages, init_from=dense))
    return PathwayMasks.load(exp_dir / "masks.safetensors")


@pytest.mark.parametrize(("granularity", "sparsity"), [("2:4", 0.5), ("block:4x4", 0.7), ("row", 0.6)])
def test_searched_masks_have_the_requested_granularity(corpus, dense, tmp_path, granularity, sparsity):
    masks = search(corpus, dense, tmp_path / "search", granularity=granularity, sparsity=sparsity)
    assert masks.header.granularity == granularity and masks.header.target_sparsity == sparsity
    assert all(parse_granularity(granularity).matches(masks.codes[name]) for name in masks.names)
    assert masks.sparsity("en") == pytest.approx(sparsity, abs=0.05)


def test_a_global_search_respects_the_sparsities_of_layers(corpus, dense, tmp_path):
    layers = "encoder.emformer_layers.0=0.4"
    shape = {"prune_allocation": "global", "layer_sparsity": layers, "sparsity": 0.6, "prune_scope": "encoder"}
    masks = search(corpus, dense, tmp_path / "search", **shape)
    assert masks.header.allocation == "global" and masks.header.layer_sparsity == layers
    assert masks.sparsity("en") == pytest.approx(0.6, abs=1e-3) and not any("decoder" in name for name in masks.names)
    for name, code in masks.codes.items():
        if name.startswith("encoder.emformer_layers.0."):
            assert int(masks.mask(name, "en").sum()) == num_kept(code.numel(), 0.4)
    others = {masks.sparsity("en", name) for name in masks.names if "layers.1" in name}
    assert len(others) > 3


def test_a_sequential_search_keeps_the_progress_bar_position(corpus, dense, tmp_path, monkeypatch):
    monkeypatch.setenv("TQDM_POSITION", "3")  # set by a recipe that runs several searches in parallel
    search(corpus, dense, tmp_path / "search", "en")
    assert os.environ["TQDM_POSITION"] == "3"


def mask_file_times(exp_dir):
    return {path.parent.name: path.stat().st_mtime_ns for path in exp_dir.glob("*/masks.safetensors")}


def test_finished_languages_are_skipped_and_the_others_are_searched(corpus, dense, tmp_path):
    exp_dir = tmp_path / "search"
    first = search(corpus, dense, exp_dir, "en")
    times = mask_file_times(exp_dir)
    both = search(corpus, dense, exp_dir, "en fr")
    both_times = mask_file_times(exp_dir)
    assert list(times) == ["en"] and both_times == times | {"fr": both_times["fr"]}
    search(corpus, dense, exp_dir, "en fr")
    assert mask_file_times(exp_dir) == both_times
    assert both.languages == ("en", "fr")
    assert all((both.mask(name, "en") == first.mask(name, "en")).all() for name in first.names)


def test_resuming_a_search_with_other_options_raises(corpus, dense, tmp_path):
    search(corpus, dense, tmp_path / "search")
    for option, value, message in [
        ("sparsity", 0.8, "sparsity=0.7, this one has sparsity=0.8"),
        ("prune_by", "sensitivity", "prune_by=magnitude"),
        ("updates_per_round", 2, "updates_per_round=1"),
    ]:
        with pytest.raises(ValueError, match=f"holds a search with {message}"):
            search(corpus, dense, tmp_path / "search", **{option: value})
    other = shutil.copytree(dense, tmp_path / "other")
    for path in other.glob("*.pt"):
        saved = checkpoints.read(path)
        saved.pop("plain")
        checkpoints.save(saved | {"best_valid_loss": 0.0}, path)
    with pytest.raises(ValueError, match="holds a search with hash of --init-from="):
        search(corpus, other, tmp_path / "search")


def test_a_search_with_diagnostics_writes_no_masks(corpus, dense, tmp_path, capsys):
    pruning = PruningConfig(prune_rounds=2, updates_per_round=1)
    options = {"init_from": dense, "print_diagnostics": True}
    runs.find_masks(tiny_run.search(corpus, tmp_path / "search", pruning, "en fr", **options))
    assert "root mean square" in capsys.readouterr().out
    assert not list((tmp_path / "search").rglob("*.safetensors"))
    assert search(corpus, dense, tmp_path / "search").sparsity("en") == pytest.approx(0.7, abs=0.01)


def test_incompatible_options_raise_before_the_search(corpus, dense, tmp_path):
    with pytest.raises(ValueError, match=r"sparsity of 0.5, not 0.7: use --sparsity 0.5"):
        PruningConfig(granularity="2:4", sparsity=0.7)
    with pytest.raises(ValueError, match="cannot be combined with global"):
        JointPruningConfig(granularity="2:4", sparsity=0.5, prune_allocation="global")
    with pytest.raises(ValueError, match="matches no prunable parameter"):
        search(corpus, dense, tmp_path / "search", layer_sparsity="encoder.layers.0=0.5")
    assert not (tmp_path / "search").exists()
