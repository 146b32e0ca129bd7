"""Mask searches reach their sparsity and resume."""

import pytest
import tiny_run
import torch

from icefall_pathways.experiment import checkpoints
from icefall_pathways.pathways.masks import PathwayMasks
from icefall_pathways.training import runs
from icefall_pathways.training.config import PruningConfig


@pytest.mark.parametrize("prune_for", ["each-language", "all-languages"])
@pytest.mark.parametrize("method", ["imp", "lth"])
def test_mask_search_reaches_the_sparsity_and_resumes(corpus, dense, tmp_path, prune_for, method):
    pruning = PruningConfig(prune_for=prune_for, prune_method=method, sparsity=0.7, prune_rounds=2, updates_per_round=2)
    config = tiny_run.search(corpus, tmp_path / "search", pruning, init_from=dense)
    runs.find_masks(config)
    for path in (tmp_path / "search").rglob("masks.*"):  # as if killed after the last update
        path.unlink()
    runs.find_masks(config)
    masks = PathwayMasks.load(tmp_path / "search" / "masks.safetensors")
    assert masks.languages == tuple(tiny_run.LANGUAGES)
    assert masks.header.method == method and masks.header.target_sparsity == 0.7
    assert masks.header.source == checkpoints.file_hash(dense / "checkpoint-8.pt")
    for name, code in masks.codes.items():
        for language in tiny_run.LANGUAGES:
            assert int(masks.mask(name, language).sum()) == round(0.3 * code.numel())
    assert (masks.overlap("en", "fr") == 1) == (prune_for == "all-languages")
    masks.check(checkpoints.build(tiny_run.newest_checkpoint(dense)))
    if method == "lth":
        rewound = checkpoints.newest(next(path for path in (tmp_path / "search").iterdir() if path.is_dir()))[1]
        start = checkpoints.read(dense / "checkpoint-8.pt")["model"]
        assert all(torch.equal(rewound["model"][name], start[name]) for name in start)


def test_parallel_search_returns_the_same_masks(corpus, dense, tmp_path):
    masks = {}
    for jobs in (1, 2):
        pruning = PruningConfig(sparsity=0.5, prune_rounds=1, updates_per_round=2, num_jobs=jobs)
        runs.find_masks(tiny_run.search(corpus, tmp_path / str(jobs), pruning, "en fr", init_from=dense))
        masks[jobs] = PathwayMasks.load(tmp_path / str(jobs) / "masks.safetensors")
    assert all(torch.equal(masks[1].codes[name], masks[2].codes[name]) for name in masks[1].names)
