import pytest

from icefall_pathways.reporting import results
from icefall_pathways.reporting.report import ReportConfig, write_report
from icefall_pathways.reporting.results import SystemResult


def system(name, wer):
    return SystemResult(name, {"en": wer, "fr": wer + 2}, wer + 1, 10, {"en": 900_000, "fr": 1_100_000}, None, [])


def test_the_table_has_a_row_per_system_and_a_column_per_language():
    header, rows = results.comparison_rows([system("dense", 9.0), system("pathways", 4.0)])
    assert header == ["system", "en", "fr", "average WER (%)", "sparsity", "parameters active per language"]
    assert rows[1] == ["pathways", "4.0", "6.0", "5.0", "0 %", "0.90 to 1.10 M"]


def test_changes_are_relative_to_each_other_system():
    told = results.relative_changes([system("dense", 9.0), system("LAP", 19.0), system("pathways", 4.0)])
    assert told == "Average WER of pathways: -50.0 % against dense, -75.0 % against LAP"
    assert results.relative_changes([system("dense", 9.0)]) == ""


def test_a_system_that_was_not_decoded_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"no wer-summary-all-mls-test-\*\.json in .*: decode dense first"):
        write_report(ReportConfig(systems=f"dense={tmp_path}", output=tmp_path / "report.html"))
    with pytest.raises(ValueError, match="expected entries such as"):
        write_report(ReportConfig(systems="dense"))
