"""Result tables and the HTML report."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from icefall_pathways.pathways.analysis import DensityRow
from icefall_pathways.pathways.masks import MasksHeader, PathwayMasks
from icefall_pathways.reporting import results
from icefall_pathways.reporting.costs import Costs, TrainingLength
from icefall_pathways.reporting.report import ReportConfig, write_report
from icefall_pathways.reporting.results import SystemResult

COSTS = Costs(
    TrainingLength(3000, 1e6), TrainingLength(1600, 1e5), TrainingLength(1500, 1e5), 1e7, 8e6, {"en": 3e6, "fr": 3.2e6}
)


def system(name, wer):
    active = {"en": 900_000, "fr": 1_100_000}
    return SystemResult(name, {"en": wer, "fr": wer + 2}, wer + 1, 10, active, None, COSTS, [])


def test_comparison_has_one_row_per_system_and_one_column_per_language():
    header, rows = results.comparison_rows([system("dense", 9.0), system("pathways", 4.0)])
    assert header == ["system", "en", "fr", "average WER (%)", "sparsity", "parameters active per language"]
    assert rows[1] == ["pathways", "4.0", "6.0", "5.0", "0 %", "0.90 to 1.10 M"]


def test_costs_have_one_row_per_system():
    header, rows = results.cost_rows([system("dense", 9.0), system("pathways", 4.0)])
    assert len(header) == len(rows[0]) == 6
    assert rows[1] == ["pathways", "3,000 + 1,600 + 1,500", "3.00 T", "33.0 T", "8.00 M", "3.00 M to 3.20 M"]


def test_relative_changes_are_against_each_other_system():
    text = results.relative_changes([system("dense", 9.0), system("LAP", 19.0), system("pathways", 4.0)])
    assert text == "Average WER of pathways: -50.0 % against dense; -75.0 % against LAP"


@pytest.mark.parametrize(
    ("systems", "expected"),
    [
        ([("dense", 9.0)], ""),
        ([("dense", 9.0), ("small dense", 19.0)], "Average WER of small dense: +100.0 % against dense"),
        ([("*pathways", 4.0), ("dense", 9.0)], "Average WER of pathways: -50.0 % against dense"),
        ([("*LAP", 9.0), ("dense", -1.0), ("small dense", 4.0)], "Average WER of LAP: +100.0 % against small dense"),
        ([("dense", -1.0), ("*LAP", 4.0)], ""),
        ([("*pathways", 4.0), ("*dynamic pathways", 9.0)], "Average WER of pathways: -50.0 % against dynamic pathways"),
    ],
)
def test_pathways_or_the_last_system_with_masks_is_compared_with_each_other_one(systems, expected):
    """An asterisk marks a system with masks; a system with a WER of -1 in the first language makes no errors."""
    masks = PathwayMasks(MasksHeader(("en", "fr"), "imp"), {"w": torch.tensor([3, 1], dtype=torch.uint8)})
    made = [replace(system(name.strip("*"), wer), masks=masks if name[0] == "*" else None) for name, wer in systems]
    assert results.relative_changes(made) == expected


def test_report_of_one_system_has_no_changes(tmp_path, monkeypatch):
    metrics = [{"kind": kind, "language": "en", "update": 1, "loss": 2.0} for kind in ("train", "valid")]
    dense = replace(system("dense", 9.0), metrics=metrics)
    monkeypatch.setattr(results, "collect", lambda *_: dense)
    config = ReportConfig("dense=exp", output=tmp_path / "report.html")
    assert write_report(config) == results.comparison_table([dense])
    page = config.output.read_text()
    assert "</table><h2>Word error rates" in page and "3,000 + 1,600 + 1,500" in page


def test_density_rows_are_formatted_as_percentages():
    row = DensityRow("Linear", "Linear", 200, {"en": 0.3, "fr": 0.25}, 0.4, 0.5, 0.1, 0.625)
    header, rows = results.density_rows([row], "type of module")
    assert header[:4] == ["type of module", "entries", "en", "fr"]
    assert rows == [["Linear", "200", "30.0 %", "25.0 %", "40.0 %", "10.0 %", "0.50", "0.62"]]


def test_masks_summary_is_one_line():
    masks = PathwayMasks(MasksHeader(("en", "fr"), "imp"), {"w": torch.tensor([3, 1, 2, 0], dtype=torch.uint8)})
    assert results.masks_summary(masks) == (
        "Method imp, granularity element, layer-wise allocation. Sparsity: en 50.0 %, fr 50.0 %. "
        "Entries used by any language: 75.0 %; mean overlap of two languages: 0.33."
    )


def test_error_names_a_system_that_was_not_decoded(tmp_path):
    with pytest.raises(ValueError, match=r"no wer-summary-all-\*-test-\*\.json in .*: decode dense first"):
        write_report(ReportConfig(systems=f"dense={tmp_path}", output=tmp_path / "report.html"))
    with pytest.raises(ValueError, match="expected entries such as"):
        write_report(ReportConfig(systems="dense"))
    with pytest.raises(ValueError, match="No closing quotation"):
        write_report(ReportConfig(systems="'dense=a"))


def test_system_names_may_contain_spaces():
    experiments = ReportConfig(systems="'my dense=my exp/dense' LAP=exp/lap").experiments()
    assert experiments == {"my dense": Path("my exp/dense"), "LAP": Path("exp/lap")}


def test_systems_with_different_languages_are_not_compared(tmp_path, monkeypatch):
    systems = iter([system("dense", 9.0), SystemResult("LAP", {"en": 5.0}, 5.0, 10, {"en": 9}, None, COSTS, [])])
    monkeypatch.setattr(results, "collect", lambda *_: next(systems))
    with pytest.raises(ValueError, match="LAP was decoded in en, but dense was decoded in en fr: decode all systems"):
        write_report(ReportConfig(systems="dense=a LAP=b", output=tmp_path / "report.html"))
