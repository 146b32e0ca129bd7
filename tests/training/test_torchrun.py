"""Ranks that torchrun starts on several machines do what ranks do that --world-size starts on one."""

import subprocess
import sys
from pathlib import Path

import tiny_run
import torch

from icefall_pathways.training import checkpoints, experiment

TRAIN = Path(__file__).resolve().parents[2] / "egs/mls/ASR/pruned_transducer_pathways/train.py"


def torchrun(node: int, port: int, words: list[str]) -> "subprocess.Popen[str]":
    """One of two machines with a rank each; both are this one."""
    places = ["--nnodes", "2", "--node_rank", str(node), "--nproc_per_node", "1"]
    meeting = ["--master_addr", "127.0.0.1", "--master_port", str(port)]
    command = [sys.executable, "-m", "torch.distributed.run", *places, *meeting, str(TRAIN), *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_torchrun_over_nodes_equals_spawned_ranks(corpus, tmp_path, free_port):
    options = {"num_updates": 4, "valid_interval": 4, "world_size": 2, "master_port": free_port}
    words = tiny_run.as_words(tiny_run.config(corpus, tmp_path / "torchrun", **options | {"world_size": 1}))
    nodes = [torchrun(node, free_port, words) for node in range(2)]
    printed = [node.communicate(timeout=400)[0] for node in nodes]
    assert not any(node.returncode for node in nodes), printed
    experiment.train(tiny_run.config(corpus, tmp_path / "spawned", **options))
    a, b = (checkpoints.newest(tmp_path / name)[1] for name in ("torchrun", "spawned"))
    assert (a["update"], a["world_size"]) == (b["update"], b["world_size"]) == (4, 2)
    assert a["best_valid_loss"] == b["best_valid_loss"]
    for part in ("model", "model_avg"):
        assert all(torch.equal(value, b[part][name]) for name, value in a[part].items())
    for index, state in a["optimizer"].items():
        assert all(torch.equal(value, b["optimizer"][index][key]) for key, value in state.items())
    logs = sorted(path.name[-2:] for path in (tmp_path / "torchrun" / "log").iterdir())
    assert logs == ["-0", "-1"]
