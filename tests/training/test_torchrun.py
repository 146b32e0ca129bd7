"""Ranks started by torchrun on several machines compute the same as ranks spawned on one machine."""

import subprocess
import sys
from pathlib import Path

import pytest
import tiny_run
import torch

from icefall_pathways.experiment import checkpoints
from icefall_pathways.options import to_dict
from icefall_pathways.pathways.masks import PathwayMasks
from icefall_pathways.training import runs
from icefall_pathways.training.config import PruningConfig

RECIPE = Path(__file__).resolve().parents[2] / "egs/mls/ASR/pruned_transducer_pathways"


def _to_text(value):
    return " ".join(value) if isinstance(value, list) else str(value)


def to_arguments(config):
    """Return the command-line arguments that give a script the options of `config`."""
    options = {name: value for part in to_dict(config).values() for name, value in part.items() if value is not None}
    return [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", _to_text(value))]


def torchrun(script, port, arguments):
    """Run a script on two nodes with one rank each, both on this machine, and wait for them."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc_per_node", "1"]
    command += ["--master_addr", "127.0.0.1", "--master_port", str(port)]
    nodes = [
        subprocess.Popen(
            [*command, "--node_rank", node, str(RECIPE / script), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for node in "01"
    ]
    try:
        printed = [node.communicate(timeout=400)[0] for node in nodes]
    finally:
        for node in nodes:
            node.kill()
    assert not any(node.returncode for node in nodes), printed


def test_training_on_several_nodes_equals_training_with_spawned_ranks(corpus, tmp_path, free_port):
    options = {"num_updates": 4, "valid_interval": 4, "world_size": 2, "master_port": free_port}
    on_nodes = tiny_run.config(corpus, tmp_path / "torchrun", **options | {"world_size": 1})
    torchrun("train.py", free_port, to_arguments(on_nodes))
    runs.train(tiny_run.config(corpus, tmp_path / "spawned", **options))
    a, b = (checkpoints.newest(tmp_path / name)[1] for name in ("torchrun", "spawned"))
    assert (a["update"], a["world_size"]) == (b["update"], b["world_size"]) == (4, 2)
    assert a["best_valid_loss"] == b["best_valid_loss"]
    for part in ("model", "model_avg"):
        assert all(torch.equal(value, b[part][name]) for name, value in a[part].items())
    for index, state in a["optimizer"].items():
        assert all(torch.equal(value, b["optimizer"][index][key]) for key, value in state.items())
    logs = sorted(path.name[-2:] for path in (tmp_path / "torchrun" / "log").iterdir())
    assert logs == ["-0", "-1"]


def test_mask_search_on_several_nodes_searches_one_language_after_another(corpus, tmp_path, free_port):
    runs.train(tiny_run.config(corpus, tmp_path / "dense", num_updates=1))
    pruning = PruningConfig(prune_rounds=1, updates_per_round=2)
    search = tiny_run.search(corpus, tmp_path / "masks", pruning, "en fr", init_from=tmp_path / "dense")
    torchrun("prune.py", free_port, to_arguments(search))
    masks = PathwayMasks.load(tmp_path / "masks" / "masks.safetensors")
    assert masks.languages == ("en", "fr") and masks.overlap("en", "fr") < 1
    assert masks.sparsity("en") == pytest.approx(0.7, abs=0.01)
    for code in masks.languages:
        assert checkpoints.newest(tmp_path / "masks" / code)[1]["world_size"] == 2


def test_parallel_searches_are_rejected_under_torchrun(corpus, tmp_path, monkeypatch):
    runs.train(tiny_run.config(corpus, tmp_path / "dense", num_updates=1))
    pruning = PruningConfig(num_jobs=2)
    search = tiny_run.search(corpus, tmp_path / "masks", pruning, "en fr", init_from=tmp_path / "dense")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(ValueError, match="--num-jobs is for one machine"):
        runs.find_masks(search)
