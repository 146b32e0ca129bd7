"""Decoding with several ranks, in parts that an interrupted run keeps."""

import gzip
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from ranks import fork_ranks

from icefall_pathways.data.datamodule import SplitLoader
from icefall_pathways.decoding import decode_run
from icefall_pathways.decoding.config import DecodeConfig, StreamingDecodeConfig
from icefall_pathways.decoding.decode_run import decode, decode_rank, decode_streaming
from icefall_pathways.experiment import checkpoints, layout
from icefall_pathways.files import exclusive_lock
from icefall_pathways.launch.ranks import Rank
from icefall_pathways.launch.signals import Stopped

SCRIPT = Path(__file__).resolve().parents[2] / "egs/mls/ASR/pruned_transducer_pathways/decode.py"
NUM_PARTS = 6  # with `config`, each cut is a batch and a part


@pytest.fixture
def config(exp_dir):
    beam = {"decoding_method": "modified_beam_search", "nbest": 3}
    return DecodeConfig(exp_dir=exp_dir, max_duration=0.6, part_duration=0.6, **beam)


@pytest.fixture
def decoded_parts(monkeypatch):
    """Record the languages and cut ids of decoded parts."""
    parts = []
    decode_offline = decode_run._decode_offline

    def record(experiment, config, part, progress):
        parts.append((part.language, [cut.id for cut in part.batches.cuts]))
        return decode_offline(experiment, config, part, progress)

    monkeypatch.setattr(decode_run, "_decode_offline", record)
    return parts


def _files(config):
    """Return the contents of all result files, without durations."""
    contents = {path.name: path.read_text() for path in config.results_dir.iterdir()}
    for name in contents:
        if name.endswith(".json"):
            contents[name] = {**json.loads(contents[name]), "timing": None, "real_time_factor": None}
    return contents


def _remove_results(config):
    for path in config.results_dir.iterdir():
        path.unlink()


def test_several_ranks_write_the_files_of_a_single_one(config, exp_dir, tmp_path):
    streaming = StreamingDecodeConfig(exp_dir=exp_dir, num_decode_streams=2, max_duration=0.6, part_duration=0.6)
    for run in (config, streaming):
        decode_rank(Rank(), run)
        expected = _files(run)
        assert len([name for name in expected if name.startswith("recogs-")]) == 2
        _remove_results(run)
        fork_ranks(decode_rank, 3, tmp_path / type(run).__name__, run)
        assert _files(run) == expected


def test_every_part_is_decoded_once_and_the_parts_are_removed(config, decoded_parts):
    decode(config)
    assert len(decoded_parts) == NUM_PARTS
    assert sorted(cut_id for _, ids in decoded_parts for cut_id in ids) == [
        f"{c}-{i}" for c in ("en", "nl") for i in range(3)
    ]
    assert not list(config.results_dir.glob("parts-*"))


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
def test_killed_run_loses_only_the_part_in_progress(config, decoded_parts, signum, monkeypatch, capsys):
    decode(config)
    expected = _files(config)
    _remove_results(config)
    decoded_parts.clear()
    child = os.fork()
    if child == 0:
        recorded = decode_run._decode_offline

        def die_in_the_fourth_part(experiment, config, part, progress):
            if len(decoded_parts) == 3:
                os.kill(os.getpid(), signum)
            return recorded(experiment, config, part, progress)

        monkeypatch.setattr(decode_run, "_decode_offline", die_in_the_fourth_part)
        try:
            decode(config)
        except Stopped as stopped:
            os._exit(stopped.exit_code)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) if signum == signal.SIGKILL else os.waitstatus_to_exitcode(status) == 143
    capsys.readouterr()
    decode(config)
    assert f"resuming: 3 of {NUM_PARTS} parts" in capsys.readouterr().out
    assert len(decoded_parts) == NUM_PARTS - 3
    assert _files(config) == expected


def _interrupt_after_all_parts(config, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(decode_run, "_write_results", lambda *_: os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(Stopped):
            decode(config)


def test_parts_of_the_same_run_are_kept_and_others_are_not(config, decoded_parts, monkeypatch, tmp_path):
    hotwords = tmp_path / "hotwords.txt"
    hotwords.write_text("one\n")
    config = replace(config, context_file=hotwords)

    def newly_decoded(run):
        decoded_parts.clear()
        _interrupt_after_all_parts(run, monkeypatch)
        return len(decoded_parts)

    assert newly_decoded(config) == NUM_PARTS
    assert newly_decoded(replace(config, world_size=1, master_port=1, languages="nl")) == 0
    assert newly_decoded(replace(config, nbest=2)) == NUM_PARTS
    assert newly_decoded(config) == 0
    hotwords.write_text("two\n")
    assert newly_decoded(config) == NUM_PARTS
    path = layout.batch_checkpoint(config.exp_dir, 5)
    checkpoint = checkpoints.read(path)
    checkpoint["model_avg"]["joiner.output_linear.bias"][1] += 0.01
    checkpoints.save(checkpoint, path)
    assert newly_decoded(config) == NUM_PARTS


def test_changed_cut_is_decoded_again(config, experiment, decoded_parts, monkeypatch, tmp_path):
    for language in ("english", "dutch"):
        name = f"mls-{language}_cuts_test.jsonl.gz"
        (tmp_path / name).write_bytes((experiment / name).read_bytes())
    config = replace(config, manifest_dir=tmp_path, bpe_model=experiment / "bpe.model")
    _interrupt_after_all_parts(config, monkeypatch)
    decoded_parts.clear()
    manifest = gzip.decompress((tmp_path / name).read_bytes()).decode()
    (tmp_path / name).write_bytes(gzip.compress(manifest.replace("een twee drie", "een twee").encode()))
    decode(config)
    assert decoded_parts == [("nl", ["nl-2"])]
    assert "ref=['een', 'twee']" in next(config.results_dir.glob("recogs-mls-dutch*")).read_text()


def test_duplicate_cuts_are_reported_before_decoding(config, experiment, decoded_parts, tmp_path):
    for language in ("english", "dutch"):
        name = f"mls-{language}_cuts_test.jsonl.gz"
        (tmp_path / name).write_bytes((experiment / name).read_bytes() * (2 if language == "dutch" else 1))
    with pytest.raises(ValueError, match=r"mls-dutch-test has 2 cuts with the id nl-0.*remove the copies"):
        decode(replace(config, manifest_dir=tmp_path))
    assert not decoded_parts


def test_a_second_run_in_the_same_folder_is_rejected(config, experiment):
    suffix = decode_run.load_experiment(config).trained.suffix
    folder = layout.result_file(config.results_dir, "parts", "mls-dutch-test", suffix, "")
    child = os.fork()
    if child == 0:  # a process does not exclude itself
        with exclusive_lock(folder / layout.LOCK_FILE):
            signal.pause()
    try:
        while not (folder / layout.LOCK_FILE).exists() or not (folder / layout.LOCK_FILE).read_text():
            os.sched_yield()
        with pytest.raises(ValueError, match=f"mls-dutch-test.* is in use by another run .process {child}"):
            decode(config)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _summary(config):
    (path,) = config.results_dir.glob("wer-summary-all-*.json")
    return json.loads(path.read_text())


def test_decoding_one_language_keeps_the_others_in_the_table(exp_dir, capsys):
    config = StreamingDecodeConfig(exp_dir=exp_dir)
    decode_streaming(config)
    expected = _summary(config)
    capsys.readouterr()
    decode_streaming(replace(config, languages="en"))
    table = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in table[3:6]] == ["english", "dutch", "average"]
    assert "for 4 s of audio" in table[6]
    merged = _summary(config)
    assert merged["languages"] == expected["languages"] and list(merged["languages"]) == ["en", "nl"]
    assert merged["average_wer_interval"] == expected["average_wer_interval"]
    assert merged["timing"]["nl"] == expected["timing"]["nl"]
    path = layout.batch_checkpoint(exp_dir, 5)
    checkpoint = checkpoints.read(path)
    checkpoint["model_avg"]["joiner.output_linear.bias"] += 0.01
    checkpoints.save(checkpoint, path)
    decode_streaming(replace(config, languages="en"))
    assert "has results of another model for nl" in capsys.readouterr().out
    assert list(_summary(config)["languages"]) == ["en"]


class _Plan:
    def __init__(self, *durations):
        self.cuts = [type("Cut", (), {"duration": duration}) for duration in durations]


def test_parts_hold_consecutive_batches_up_to_the_limit():
    plans = [_Plan(9, 8), _Plan(7), _Plan(3, 2), _Plan(2), _Plan(1)]
    loader = SplitLoader(plans, None, "mls-english-test")
    assert [[plans.index(plan) for plan in part._plans] for part in loader.parts(8)] == [[0], [1], [2, 3, 4]]
    assert [len(part) for part in loader.parts(100)] == [5]
    assert [len(part) for part in loader.parts(0.1)] == [1] * 5


def _run(*command):
    return subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True, timeout=300)


def test_torchrun_decodes_with_one_table(exp_dir):
    ranks = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    done = _run(*ranks, SCRIPT, "--exp-dir", exp_dir, "--max-duration", "0.6", "--part-duration", "0.6")
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()[-3:]] == ["english", "dutch", "average"]
    assert done.stdout.count("average") == 2  # one in the description of the model


def test_error_of_a_rank_stops_all_with_one_message(exp_dir, experiment, tmp_path, free_port):
    for language in ("english", "dutch"):
        name = f"mls-{language}_cuts_test.jsonl.gz"
        manifest = gzip.decompress((experiment / name).read_bytes()).replace(b"nl-1-feats.lca", b"missing.lca")
        (tmp_path / name).write_bytes(gzip.compress(manifest))
    options = {"exp-dir": exp_dir, "manifest-dir": tmp_path, "max-duration": 0.6, "part-duration": 0.6}
    options |= {"world-size": 2, "master-port": free_port}
    done = _run(SCRIPT, *(word for name, value in options.items() for word in (f"--{name}", value)))
    assert done.returncode == 1
    assert done.stderr.count("cannot read the features of cut nl-1") == 1, done.stderr
    assert "error: rank " in done.stderr and "Traceback" not in done.stderr
