"""Comparison of two decoded systems."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from lhotse import CutSet
from tiny_experiment import make_experiment

from icefall_pathways.corpora.layout import SplitFiles
from icefall_pathways.decoding.scoring import Utterance, summarize, write_results, write_summary
from icefall_pathways.languages import get_language
from icefall_pathways.reporting.compare import CompareConfig, compare

SCRIPT = Path(__file__).resolve().parents[2] / "egs/mls/ASR/pruned_transducer_pathways/compare.py"
LANGUAGES = {"en": "english", "nl": "dutch"}


def _decode(folder, wrong, suffix="iter-5-greedy_search", count=40):
    """Write results of a system in which every `wrong[code]`-th utterance has an error."""
    scores = {}
    for code, every in wrong.items():
        utterances = [
            Utterance(f"{4000 + n % 4}_1_{n:06}", ["a", "b"], ["a", "x"] if n % every == 0 else ["a", "b"])
            for n in range(count)
        ]
        scores[code] = write_results(folder / "greedy_search", f"mls-{LANGUAGES[code]}-test", suffix, utterances)
    write_summary(folder / "greedy_search", "mls", suffix, summarize("test", "greedy_search", scores))


def _config(folder, **options):
    systems = (folder / "a",), (folder / "b",)
    return CompareConfig(*systems, method="greedy_search", rounds=2000, **options)


def test_better_system_is_significant(tmp_path):
    _decode(tmp_path / "a", {"en": 2, "nl": 5})
    _decode(tmp_path / "b", {"en": 20, "nl": 5}, suffix="iter-9-greedy_search")
    table = compare(_config(tmp_path, output=tmp_path / "figures.json"))
    rows = [line.split() for line in table.splitlines()[2:]]
    assert [row[0] for row in rows] == ["english", "dutch", "average"]
    assert rows[0][1:4] == ["25.00", "2.50", "-22.50"]
    figures = json.loads((tmp_path / "figures.json").read_text())["languages"]
    assert figures["en"]["bootstrap_p"] < 0.01
    assert figures["en"]["matched_pairs_p"] < 0.01
    assert figures["en"]["interval"][0] < -22.5 < figures["en"]["interval"][1] < -10
    assert (figures["nl"]["difference"], figures["nl"]["bootstrap_p"], figures["nl"]["matched_pairs_p"]) == (0, 1, 1)
    assert figures["average"]["difference"] == pytest.approx(-11.25)
    assert figures["average"]["bootstrap_p"] < 0.01


def test_swapping_the_systems_negates_the_difference(tmp_path):
    _decode(tmp_path / "a", {"en": 3})
    _decode(tmp_path / "b", {"en": 4})
    forward, backward = tmp_path / "forward.json", tmp_path / "backward.json"
    compare(_config(tmp_path, output=forward))
    swapped = CompareConfig((tmp_path / "b",), (tmp_path / "a",), "greedy_search", rounds=2000, output=backward)
    compare(swapped)
    forward, backward = (json.loads(path.read_text())["languages"]["en"] for path in (forward, backward))
    assert forward["difference"] == -backward["difference"]
    assert forward["interval"] == [-x for x in reversed(backward["interval"])]
    assert forward["bootstrap_p"] == backward["bootstrap_p"]


def test_speaker_bootstrap_draws_whole_speakers(tmp_path):
    _decode(tmp_path / "a", {"en": 4})  # all errors are of speaker 4000
    _decode(tmp_path / "b", {"en": 50})
    output = tmp_path / "figures.json"
    widths = []
    for unit in ("utterance", "speaker"):
        compare(_config(tmp_path, resample=unit, output=output))
        low, high = json.loads(output.read_text())["languages"]["en"]["interval"]
        widths.append(high - low)
    assert widths[1] > 1.5 * widths[0]


def test_runs_with_several_seeds_are_pairs(tmp_path):
    """The difference is the mean over seeds, and its interval also covers the variation between seeds."""
    output = tmp_path / "figures.json"
    errors = {"a": (2, 4, 5), "b": (4, 8, 5)}  # every n-th utterance has an error
    for system, seeds in errors.items():
        for seed, every in enumerate((*seeds, seeds[0], seeds[0])):
            _decode(tmp_path / f"{system}{seed}", {"en": every, "nl": every})

    def figures(seeds, **options):
        runs = (tuple(tmp_path / f"{system}{seed}" for seed in seeds) for system in "ab")
        table = compare(CompareConfig(*runs, method="greedy_search", rounds=2000, output=output, **options))
        return json.loads(output.read_text()), table

    single = [figures([seed])[0]["languages"]["average"] for seed in range(3)]
    joint, table = figures(range(3))
    average = joint["languages"]["average"]
    for key in ("wer_a", "wer_b", "difference"):
        assert average[key] == pytest.approx(sum(run[key] for run in single) / 3)
    assert joint["system_a"] == [str(tmp_path / f"a{seed}") for seed in range(3)]
    assert average["matched_pairs_p"] is None and table.splitlines()[-1].split()[0] == "average"
    # A bootstrap sample may consist of the third seed only, which has no difference.
    low, high = average["interval"]
    assert low < single[0]["difference"] * 2 / 3 and high >= 0
    same = figures([0, 3, 4])[0]["languages"]["average"]
    assert same["interval"] == pytest.approx(single[0]["interval"]), "equal runs add no variation"


def test_different_numbers_of_runs_are_rejected(tmp_path):
    _decode(tmp_path / "a", {"en": 3})
    _decode(tmp_path / "b", {"en": 4})
    _decode(tmp_path / "c", {"en": 4})
    config = CompareConfig((tmp_path / "a",), (tmp_path / "b", tmp_path / "c"), method="greedy_search")
    with pytest.raises(ValueError, match=r"numbers of runs, 1 \(.*a\) and 2 \(.*: pass as many"):
        compare(config)


@pytest.mark.parametrize(("folders", "message"), [((), "empty"), ((Path("a"), Path("a")), "a a: expected each folder")])
def test_a_system_needs_distinct_folders(folders, message):
    with pytest.raises(ValueError, match=f"--system-b is {message}"):
        CompareConfig((Path("x"),), folders)


def _prepare(folder, speaker_of):
    """Write a checkpoint to `a`, and the manifest of the test set of English of a corpus of clips."""
    make_experiment(folder)
    (folder / "a").mkdir()
    shutil.copy(folder / "exp" / "checkpoint-5.pt", folder / "a")
    path = SplitFiles(folder, "mls", get_language("en"), "test").cuts
    template = next(iter(CutSet.from_file(path)))
    cuts = []
    for n in range(40):
        supervision = replace(template.supervisions[0], speaker=speaker_of(n))
        cuts.append(replace(template, id=f"clip_{n:02}", supervisions=[supervision]))
    CutSet.from_cuts(cuts).to_file(path)
    for system, every in (("a", 4), ("b", 50)):
        errors = [["a", "x"] if n % every == 0 else ["a", "b"] for n in range(40)]
        utterances = [Utterance(f"clip_{n:02}", ["a", "b"], hypothesis) for n, hypothesis in enumerate(errors)]
        score = write_results(folder / system / "greedy_search", "clips-english-test", "iter-5", utterances)
        write_summary(folder / system / "greedy_search", "clips", "iter-5", summarize("test", "greedy", {"en": score}))
    return path


def test_speakers_of_other_corpora_are_those_of_the_manifest(tmp_path):
    _prepare(tmp_path, lambda n: f"speaker-{n % 4}")
    widths = []
    for unit in ("utterance", "speaker"):
        compare(_config(tmp_path, resample=unit, output=tmp_path / "figures.json"))
        low, high = json.loads((tmp_path / "figures.json").read_text())["languages"]["en"]["interval"]
        widths.append(high - low)
    assert widths[1] > 1.5 * widths[0], "all errors are of one speaker"


def test_missing_speakers_are_reported(tmp_path):
    path = _prepare(tmp_path, lambda n: None if n == 7 else "x")
    with pytest.raises(ValueError, match=rf"{path} has no speaker of 1 of 40 utterances, such as clip_07: add"):
        compare(_config(tmp_path, resample="speaker"))
    path.unlink()
    with pytest.raises(ValueError, match=rf"reads the speakers from {path}, .* which does not exist: run"):
        compare(_config(tmp_path, resample="speaker"))


def test_incomparable_systems_are_rejected(tmp_path):
    _decode(tmp_path / "a", {"en": 3})
    with pytest.raises(ValueError, match=r"decode .*b first"):
        compare(_config(tmp_path))
    _decode(tmp_path / "b", {"en": 3}, count=39)
    with pytest.raises(ValueError, match="not decoded on the same utterances"):
        compare(_config(tmp_path))
    _decode(tmp_path / "b", {"nl": 3})
    with pytest.raises(ValueError, match="decode both in the same languages"):
        compare(_config(tmp_path))


def test_script_prints_the_table_and_reports_errors(tmp_path):
    _decode(tmp_path / "a", {"en": 3})
    _decode(tmp_path / "b", {"en": 4})
    command = [sys.executable, str(SCRIPT), "--system-a", tmp_path / "a", "--system-b", tmp_path / "b", "--method"]
    done = subprocess.run([*command, "greedy_search"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[2].split()[0] == "english"
    failed = subprocess.run([*command, "fast"], capture_output=True, text=True)
    assert failed.returncode == 1
    assert failed.stderr.startswith("error: ")
