"""Runs that are killed, or asked to stop, end as runs that are left alone."""

import multiprocessing
import os
import random
import signal
import sys
import time
import traceback
from dataclasses import replace
from functools import partial

import pytest
import tiny_run
import torch

from icefall_pathways.experiment import checkpoints, layout
from icefall_pathways.pathways.masks import PathwayMasks
from icefall_pathways.training import runs
from icefall_pathways.training.config import PruningConfig
from icefall_pathways.training.launch import jobs
from icefall_pathways.training.launch.signals import EXIT_CODES, Stopped

UPDATES = 16


def start(run, *args):
    """Start `run(*args)` in a forked process: no imports, so that most of its life is training."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        run(*args)
        status = 0
    except Stopped as stopped:
        status = stopped.exit_code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def wait(child):
    """How a process ended: its exit status, or minus the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def ended(child):
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def wait_until(holds, child):
    deadline = time.monotonic() + 120
    while not holds():
        assert time.monotonic() < deadline, "nothing happened"
        if ended(child):
            return
        time.sleep(0.001)


def assert_same_course(a, b, update=UPDATES, loss_tolerance=0.0):
    """Assert that the checkpoints of two runs are bitwise equal, except for the validation loss within a tolerance."""
    a, b = (checkpoints.read(exp_dir / f"checkpoint-{update}.pt") for exp_dir in (a, b))
    for run in (a, b):
        run["config"]["training"].pop("exp_dir")
        run.pop("plain")  # the same, as it stands in the file
    assert a.keys() == b.keys()
    assert a.pop("best_valid_loss") == pytest.approx(b.pop("best_valid_loss"), rel=loss_tolerance, abs=0)
    for key, value in a.items():
        _assert_equal(value, b[key], key)


def _assert_equal(a, b, name):
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype and torch.equal(a, b), name
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), name
        for key, value in a.items():
            _assert_equal(value, b[key], f"{name}/{key}")
    else:
        assert a == b, name


@pytest.fixture(scope="module")
def masked(corpus, tmp_path_factory):
    """A run with masks and random augmentation, left alone; and its options."""
    folder = tmp_path_factory.mktemp("masked")
    runs.train(tiny_run.config(corpus, folder / "dense", num_updates=1))
    model = checkpoints.build(checkpoints.newest(folder / "dense")[1])
    masks = PathwayMasks.dense(model, ["en", "fr", "it"], runs.PRUNE_SCOPES["encoder-predictor"])
    for name in masks.names:
        for language in masks.languages:
            masks.set_mask(name, language, torch.rand(masks.codes[name].shape) < 0.4)
    masks.save(folder / "masks.safetensors")
    config = tiny_run.config(
        corpus,
        folder / "calm",
        init_from=folder / "dense",
        masks=folder / "masks.safetensors",
        num_updates=UPDATES,
        save_every_n=1,
        valid_interval=UPDATES,
        keep_last_k=3,
    )
    config = replace(config, data=replace(config.data, num_workers=1))
    runs.train(config)
    return config


def elsewhere(config, exp_dir, **options):
    return replace(config, training=replace(config.training, exp_dir=exp_dir, **options))


def test_killed_at_random_points_it_ends_the_same(masked, tmp_path):
    """SIGKILL 20 times, every second time while a checkpoint is being written."""
    config = elsewhere(masked, tmp_path / "killed")
    config.training.exp_dir.mkdir()
    rng = random.Random(3)
    kills = writing = 0
    while kills < 20:
        child = start(runs.train, config)
        if kills % 2:
            wait_until(lambda: any(config.training.exp_dir.glob(".writing-*.pt")), child)
            time.sleep(rng.choice([0.0, 0.002]))
        else:
            time.sleep(rng.uniform(0.0, 0.6))
        was_writing = any(config.training.exp_dir.glob(".writing-*.pt"))
        os.kill(child, signal.SIGKILL)
        assert wait(child) == -signal.SIGKILL, "the run was over before it had been killed often enough"
        kills += 1
        writing += was_writing
    assert kills == 20 and writing >= 4
    assert wait(start(runs.train, config)) == 0
    assert_same_course(masked.training.exp_dir, config.training.exp_dir)
    assert not list(config.training.exp_dir.glob(".writing-*"))


def train_in_a_group(config):
    """Train in a group of processes that this one is not in."""
    os.setpgrp()
    runs.train(config)


@pytest.mark.parametrize("signalled", [os.kill, os.killpg])  # the process; it and those that load its batches
@pytest.mark.parametrize("number", sorted(EXIT_CODES.values()))
def test_asked_to_stop_it_saves_and_goes_on_the_same(masked, tmp_path, number, signalled):
    config = elsewhere(masked, tmp_path / "stopped", save_every_n=1000)
    log = config.training.exp_dir / "metrics.jsonl"
    child = start(train_in_a_group, config)
    wait_until(lambda: log.exists() and log.stat().st_size > 0, child)
    signalled(child, number)
    assert wait(child) == 128 + number
    (saved,) = layout.batch_checkpoints(config.training.exp_dir)
    assert 2 <= checkpoints.read(saved)["update"] < UPDATES
    assert wait(start(runs.train, config)) == 0
    calm, stopped = (checkpoints.read(c.training.exp_dir / f"checkpoint-{UPDATES}.pt") for c in (masked, config))
    for part in ("model", "model_avg", "optimizer", "masks"):
        _assert_equal(calm[part], stopped[part], part)


def searching(corpus, dense, exp_dir):
    """A search of three languages, two at a time; long enough to be met at it."""
    pruning = PruningConfig(sparsity=0.5, prune_rounds=1, updates_per_round=40, num_jobs=2)
    return tiny_run.search(corpus, exp_dir, pruning, init_from=dense, save_every_n=1000, log_interval=1)


def begun(exp_dir):
    """The searches that have made updates."""
    logs = [path for path in exp_dir.glob("*/metrics.jsonl") if path.stat().st_size > 0]
    return {path.parent.name for path in logs}


@pytest.fixture
def forked_searches(monkeypatch):
    """Searches side by side in forked processes, which need not import everything anew."""
    monkeypatch.setattr(jobs, "get_context", lambda _: multiprocessing.get_context("fork"))


@pytest.mark.parametrize("number", sorted(EXIT_CODES.values()))
def test_searches_side_by_side_are_saved_and_go_on_when_asked_to_stop(
    corpus, masked, tmp_path, forked_searches, number
):
    config = searching(corpus, masked.training.init_from, tmp_path)
    child = start(runs.find_masks, config)
    wait_until(lambda: len(begun(tmp_path)) == 2, child)
    os.kill(child, number)
    assert wait(child) == 128 + number
    assert not multiprocessing.active_children()
    stopped = begun(tmp_path)
    assert stopped == {"en", "fr"}  # Italian had not been begun, and is not
    for code in stopped:
        (saved,) = layout.batch_checkpoints(tmp_path / code)
        assert 1 <= checkpoints.read(saved)["update"] < 40


def fail_when_begun(folder):
    while not begun(folder):
        time.sleep(0.01)
    raise ValueError("no French")


def test_one_that_fails_stops_those_beside_it(corpus, tmp_path, forked_searches):
    long = {"num_updates": 100, "save_every_n": 1000, "log_interval": 1}
    trainings = [partial(runs.train, tiny_run.config(corpus, tmp_path / code, code, **long)) for code in ["en", "it"]]
    with pytest.raises(ValueError, match="no French"):
        jobs.run_in_parallel([trainings[0], partial(fail_when_begun, tmp_path), trainings[1]], 2)
    assert begun(tmp_path) == {"en"} and not (tmp_path / "it").exists()
    (saved,) = layout.batch_checkpoints(tmp_path / "en")
    assert checkpoints.read(saved)["update"] < 100
