"""Killed or stopped runs resume and end in the same state as uninterrupted runs."""

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
from icefall_pathways.launch import jobs
from icefall_pathways.launch.signals import EXIT_CODES, Stopped
from icefall_pathways.training import runs
from icefall_pathways.training.config import PruningConfig
from icefall_pathways.training.metrics import read_metrics

UPDATES = 48


def start(run, *args):
    """Start `run(*args)` in a forked process, which does not spend time on imports."""
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
    """Wait for a process; return its exit status, or minus the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def has_exited(child):
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def wait_until(condition, child):
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, "timeout"
        if has_exited(child):
            return
        time.sleep(0.001)


def assert_same_checkpoints(a, b, update=UPDATES, loss_tolerance=0.0):
    """Assert that the checkpoints of two runs are bitwise equal, except for the validation loss within a tolerance."""
    a, b = (checkpoints.read(exp_dir / f"checkpoint-{update}.pt") for exp_dir in (a, b))
    for run in (a, b):
        run["config"]["training"].pop("exp_dir")
        run.pop("plain")  # the same data as a string
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
    """Run an uninterrupted training with masks and random augmentation; return its options."""
    folder = tmp_path_factory.mktemp("masked")
    runs.train(tiny_run.config(corpus, folder / "dense", num_updates=1))
    model = checkpoints.build(tiny_run.newest_checkpoint(folder / "dense"))
    tiny_run.save_random_masks(model, folder / "masks.safetensors")
    config = tiny_run.config(
        corpus,
        folder / "uninterrupted",
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


def with_exp_dir(config, exp_dir, **options):
    return replace(config, training=replace(config.training, exp_dir=exp_dir, **options))


def test_run_killed_at_random_points_equals_uninterrupted_run(masked, tmp_path):
    """Send SIGKILL 20 times, every second time while a checkpoint is being written."""
    config = with_exp_dir(masked, tmp_path / "killed")
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
        assert wait(child) == -signal.SIGKILL, "the run finished before all kills"
        kills += 1
        writing += was_writing
    assert kills == 20 and writing >= 4
    assert wait(start(runs.train, config)) == 0
    assert_same_checkpoints(masked.training.exp_dir, config.training.exp_dir)
    assert not list(config.training.exp_dir.glob(".writing-*"))


def train_in_process_group(config):
    """Train in a new process group."""
    os.setpgrp()
    runs.train(config)


@pytest.mark.parametrize("send", [os.kill, os.killpg])  # to the process, or also to its loader workers
@pytest.mark.parametrize("signum", sorted(EXIT_CODES.values()))
def test_run_stopped_by_a_signal_saves_and_resumes_bit_for_bit(masked, tmp_path, signum, send):
    config = with_exp_dir(masked, tmp_path / "stopped", save_every_n=1000)
    log = config.training.exp_dir / "metrics.jsonl"
    child = start(train_in_process_group, config)
    wait_until(lambda: log.exists() and log.stat().st_size > 0, child)
    send(child, signum)
    assert wait(child) == 128 + signum
    (saved,) = layout.batch_checkpoints(config.training.exp_dir)
    assert 2 <= checkpoints.read(saved)["update"] < UPDATES
    assert wait(start(runs.train, config)) == 0
    uninterrupted, stopped = (
        checkpoints.read(c.training.exp_dir / f"checkpoint-{UPDATES}.pt") for c in (masked, config)
    )
    for part in ("model", "model_avg", "optimizer", "masks"):
        _assert_equal(uninterrupted[part], stopped[part], part)
    assert audio_seconds(config) == pytest.approx(audio_seconds(masked))


def audio_seconds(config):
    """Return the audio of all records of a training."""
    records = read_metrics(config.training.exp_dir / layout.METRICS_FILE)
    return sum(record["audio_seconds"] for record in records if record["kind"] == "train")


@pytest.mark.parametrize("newest", ["checkpoint-4", "epoch-1"])
def test_metrics_of_a_killed_and_resumed_run_have_the_audio_of_all_updates(corpus, tmp_path, newest):
    """The checkpoint that the run resumes from is not at a multiple of --log-interval."""
    save_every, max_duration = (2, 6.0) if newest == "checkpoint-4" else (1000, 40.0)
    config = tiny_run.config(corpus, tmp_path / "uninterrupted", log_interval=5, save_every_n=save_every)
    uninterrupted = replace(config, data=replace(config.data, max_duration=max_duration))
    killed = with_exp_dir(uninterrupted, tmp_path / "killed")
    tiny_run.train_until(killed, 5)
    assert checkpoints.newest(killed.training.exp_dir)[0].stem == newest
    for config in (uninterrupted, killed):
        runs.train(config)
    assert audio_seconds(killed) == pytest.approx(audio_seconds(uninterrupted))


def search_config(corpus, dense, exp_dir):
    """Return the options of a search of three languages, two in parallel, long enough to be interrupted."""
    pruning = PruningConfig(sparsity=0.5, prune_rounds=1, updates_per_round=40, num_jobs=2)
    return tiny_run.search(corpus, exp_dir, pruning, init_from=dense, save_every_n=1000, log_interval=1)


def started_searches(exp_dir):
    """Return the names of the searches that have logged updates."""
    logs = [path for path in exp_dir.glob("*/metrics.jsonl") if path.stat().st_size > 0]
    return {path.parent.name for path in logs}


@pytest.fixture
def forked_searches(monkeypatch):
    """Run parallel searches in forked processes, which need not repeat imports."""
    monkeypatch.setattr(jobs, "get_context", lambda _: multiprocessing.get_context("fork"))


@pytest.mark.parametrize("signum", sorted(EXIT_CODES.values()))
def test_parallel_searches_save_checkpoints_when_stopped_by_a_signal(corpus, masked, tmp_path, forked_searches, signum):
    config = search_config(corpus, masked.training.init_from, tmp_path)
    child = start(runs.find_masks, config)
    wait_until(lambda: len(started_searches(tmp_path)) == 2, child)
    os.kill(child, signum)
    assert wait(child) == 128 + signum
    stopped = started_searches(tmp_path)
    assert stopped == {"en", "fr"}  # Italian is not started after the signal
    for code in stopped:
        (saved,) = layout.batch_checkpoints(tmp_path / code)
        assert 1 <= checkpoints.read(saved)["update"] < 40


def fail_after_start(folder):
    while not started_searches(folder):
        time.sleep(0.01)
    raise ValueError("no French")


def test_failed_job_stops_the_other_jobs(corpus, tmp_path, forked_searches):
    long = {"num_updates": 100, "save_every_n": 1000, "log_interval": 1}
    trainings = [partial(runs.train, tiny_run.config(corpus, tmp_path / code, code, **long)) for code in ["en", "it"]]
    with pytest.raises(ValueError, match="no French"):
        jobs.run_in_parallel([trainings[0], partial(fail_after_start, tmp_path), trainings[1]], 2)
    assert started_searches(tmp_path) == {"en"} and not (tmp_path / "it").exists()
    (saved,) = layout.batch_checkpoints(tmp_path / "en")
    assert checkpoints.read(saved)["update"] < 100


def test_second_training_in_the_same_folder_is_rejected(corpus, tmp_path):
    config = tiny_run.config(corpus, tmp_path, "en", num_updates=200, save_every_n=1000, log_interval=1)
    child = start(runs.train, config)
    wait_until((tmp_path / layout.METRICS_FILE).exists, child)
    with pytest.raises(ValueError, match=f"is in use by another run .process {child} on"):
        runs.train(config)
    os.kill(child, signal.SIGTERM)
    assert wait(child) == 128 + signal.SIGTERM
    assert len(layout.batch_checkpoints(tmp_path)) == 1
