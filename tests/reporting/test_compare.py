"""Comparison of two decoded systems."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from icefall_pathways.decoding.scoring import Utterance, summarize, write_results, write_summary
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
    return CompareConfig(system_a=folder / "a", system_b=folder / "b", method="greedy_search", rounds=2000, **options)


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
    swapped = CompareConfig(tmp_path / "b", tmp_path / "a", "greedy_search", rounds=2000, output=backward)
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
