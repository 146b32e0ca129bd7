"""Tables and plot of a study."""

from collections.abc import Iterable
from pathlib import Path

import pytest

from icefall_pathways.decoding.scoring import Utterance, summarize, write_results, write_summary
from icefall_pathways.languages import get_language
from icefall_pathways.pathways.plots import new_figure
from icefall_pathways.reporting import plots, study
from icefall_pathways.reporting.costs import Costs, TrainingLength
from icefall_pathways.reporting.plots import common_seeds
from icefall_pathways.reporting.study import StudyConfig, gather, spread, write_study

METHOD = "streaming/modified_beam_search"


def write_results_of(folder: Path, **wer: int) -> None:
    """Write the results of a system: a hundred utterances of one word per language."""
    scores = {}
    for code, errors in wer.items():
        utterances = [Utterance(f"1_1_{index:06}", ["a"], ["b" if index < errors else "a"]) for index in range(100)]
        scores[code] = write_results(folder / METHOD, f"mls-{get_language(code).name}-test", "x", utterances)
    write_summary(folder / METHOD, "mls", "x", summarize("test", METHOD, scores))


@pytest.fixture(autouse=True)
def costs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the costs of an experiment known without a model: seed 2 takes more updates of training."""

    def read(exp_dir: Path, _summary: Path, languages: Iterable[str], _masks: object) -> Costs:
        training = TrainingLength(300 if "seed-2" in exp_dir.parts else 100, 1e3)
        return Costs(
            TrainingLength(50, 1e3), TrainingLength(20, 1e3), training, 1e6, 8e6, dict.fromkeys(languages, 3e6)
        )

    monkeypatch.setattr(study, "read_costs", read)


@pytest.fixture
def config(tmp_path: Path) -> StudyConfig:
    for seed, dense, lap, path in ((1, 10, 20, 8), (2, 20, 10, 9)):
        root = tmp_path / f"seed-{seed}"
        write_results_of(root / "dense-continued", en=dense, fr=dense + 2)
        write_results_of(root / "small-dense", en=2 * dense, fr=2 * dense)
        write_results_of(root / "sparsity-0.7/lap-random", en=30, fr=30)
        write_results_of(root / "sparsity-0.7/lap", en=lap, fr=lap)
        write_results_of(root / "sparsity-0.7/pathways-imp", en=path, fr=path)
    (tmp_path / "seed-1/sparsity-0.7/dynamic").mkdir()  # trained, not decoded
    write_results_of(tmp_path / "seed-1/sparsity-0.9/lsp/en", en=30)
    (tmp_path / "seed-1/sparsity-0.9/lsp/fr").mkdir()
    write_results_of(tmp_path / "seed-1/sparsity-0.8/lsp/en", en=30)
    write_results_of(tmp_path / "seed-1/sparsity-0.8/lsp/fr", fr=40)
    return StudyConfig(tmp_path, output=tmp_path / "study.md")


def test_gather_reads_all_decoded_systems(config: StudyConfig) -> None:
    results = {(result.seed, result.sparsity, result.system): result for result in gather(config)}
    assert len(results) == 11
    assert results[1, 0.8, "lsp"].wer == {"en": 30, "fr": 40}
    assert results[1, 0.8, "lsp"].average == 35
    assert (1, 0.9, "lsp") not in results, "a language is missing"


def test_tables_contain_mean_spread_and_changes_by_seed(config: StudyConfig) -> None:
    text = write_study(config)
    assert config.output.read_text() == text + "\n"
    assert config.output.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    block = text.split("Sparsity ")[1].splitlines()
    assert block[0] == "70 %"
    assert block[2] == "| system | en | fr | average | against LAP | against dense | seeds |"
    dense, small_dense, lap_random, lap, imp = block[4:9]
    # against LAP, dense: 11/20, 21/10; LAP against dense: 20/11, 10/21; pathways: 8/20, 9/10 and 8/11, 9/21
    assert dense == "| dense | 15.0 ± 7.1 | 17.0 ± 7.1 | 16.0 ± 7.1 | +32.5 ± 109.6 % |  | 2 |"
    assert small_dense.split(" | ")[-4:-1] == ["30.0 ± 14.1", "+150.0 ± 212.1 %", "+86.1 ± 6.1 %"]
    assert lap_random.startswith("| LAP (random mask) | 30.0 ± 0.0 |")
    assert lap.split(" | ")[-3:-1] == ["", "+14.7 ± 94.9 %"]
    assert imp == "| pathways (IMP) | 8.5 ± 0.7 | 8.5 ± 0.7 | 8.5 ± 0.7 | -35.0 ± 35.4 % | -42.2 ± 21.1 % | 2 |"
    assert block[10].startswith("| system | updates: initial model + search + training | multiply-adds of the search |")
    assert block[12] == "| dense | 50 + 20 + 200 | 3.00 G | 6.00 G | 8.00 M | 3.00 M |"
    title, _, *differences = block[18:23]
    assert title == "| average WER of pathways (IMP) against | difference (95 % interval) | relative | p | seeds |"
    assert differences[0].startswith("| dense | -7.50 (-1") and differences[0].endswith(" | 2 |")
    assert [row.split(" | ")[2] for row in differences] == ["-46.9 %", "-71.7 %", "-71.7 %"]
    assert "multiplied like any other" in text.splitlines()[-1]
    block = text.split("Sparsity ")[2].splitlines()
    assert block[2] == "| system | en | fr | average | against dense | seeds |", "LAP has no results at this sparsity"
    assert block[4] == "| dense | 10.0 | 12.0 | 11.0 |  | 1 |", "the seeds of the block, no others"
    assert block[6] == "| LSP | 30.0 | 40.0 | 35.0 | +218.2 % | 1 |"
    assert block[12] == "| LSP | 50 + 20 + 200 | 3.00 G | 9.00 G | 8.00 M | 3.00 M |", "a model per language"


def test_languages_may_have_any_order_and_models_of_lsp_may_be_missing(tmp_path: Path) -> None:
    write_results_of(tmp_path / "seed-1/sparsity-0.7/pathways-imp", fr=5, en=8)
    for code, is_complete in (("en", False), ("fr", True)):
        write_results_of(tmp_path / f"seed-1/sparsity-0.7/lsp/{code}", **{code: 10})
        text = write_study(StudyConfig(tmp_path, output=tmp_path / "study.md"))
        assert "| pathways (IMP) | 8.0 | 5.0 | 6.5 |" in text or not is_complete
        assert ("| LSP | 10.0 | 10.0 | 10.0 |" in text) == ("| LSP | -3.50 (" in text) == is_complete


@pytest.mark.parametrize("sparsities", [("0.7",), ("0.7", "0.9")])
def test_plot_shows_every_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sparsities: tuple[str, ...]) -> None:
    """By system, or over sparsity if there are several."""
    figures = []
    monkeypatch.setattr(plots, "new_figure", lambda *size: figures.append(new_figure(*size)) or figures[-1])
    for seed, dense, pathways in ((1, 10, 6), (2, 20, 10)):
        write_results_of(tmp_path / f"seed-{seed}/dense-continued", en=dense)
        for sparsity in sparsities:
            write_results_of(tmp_path / f"seed-{seed}/sparsity-{sparsity}/pathways-imp", en=pathways)
    write_study(StudyConfig(tmp_path, output=tmp_path / "study.md"))
    axis = figures[0].axes[0]
    if len(sparsities) == 1:
        assert [bar.get_width() for bar in axis.patches] == [15, 8]
        assert [label.get_text() for label in axis.get_yticklabels()] == ["dense", "pathways (IMP)"]
        assert [list(line.get_xdata()) for line in axis.lines] == [[10, 6], [20, 10]]
        assert [line.get_label() for line in axis.lines] == ["seed 1", "seed 2"]
    else:
        assert [list(line.get_ydata()) for line in axis.lines] == [[15, 15], [8, 8], [6], [10], [6], [10]]


def test_systems_in_different_languages_are_not_compared(tmp_path: Path) -> None:
    write_results_of(tmp_path / "seed-1/dense-continued", en=8)
    write_results_of(tmp_path / "seed-1/small-dense", en=8, fr=9)
    with pytest.raises(ValueError, match=r"dense-continued was decoded in en, \S+/small-dense in en fr: decode both"):
        gather(StudyConfig(tmp_path))


def test_a_study_without_masks_has_one_table(tmp_path: Path) -> None:
    write_results_of(tmp_path / "seed-1/small-dense", en=8)
    for baseline, change in (("", ""), ("dense-continued", " -20.0 % |")):
        if baseline:
            write_results_of(tmp_path / "seed-1" / baseline, en=10)
        text = write_study(StudyConfig(tmp_path, output=tmp_path / "study.md"))
        assert text.startswith("Sparsity 0 %\n") and f"| small dense | 8.0 | 8.0 |{change} 1 |\n" in text


def test_folders_of_the_same_number_are_not_averaged(config: StudyConfig) -> None:
    (config.study_dir / "seed-1/sparsity-.70").mkdir()
    with pytest.raises(ValueError, match=r"sparsity-\.70 and \S+/sparsity-0\.7 are of the same sparsity: remove one"):
        gather(config)


def test_plot_does_not_replace_the_tables(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"study\.png: expected a Markdown file"):
        StudyConfig(tmp_path, output=tmp_path / "study.png")


def test_empty_study_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"run \./run_study\.sh first"):
        gather(StudyConfig(tmp_path))


def test_spread_of_a_single_value_is_the_value() -> None:
    assert spread([3.14]) == "3.1"
    assert spread([1.0, 3.0], "+") == "+2.0 ± 1.4"


def test_common_seeds_are_available_at_every_sparsity() -> None:
    lap = {0.5: {1: 9.0}, 0.7: {1: 9.0, 2: 9.0}}
    assert common_seeds({"dense": {0.0: {1: 9.0, 2: 9.0, 3: 9.0}}, "LAP": lap}) == {1}
    assert common_seeds({"dense": {0.0: {3: 9.0}}, "LAP": lap}) == {1, 2, 3}, "none in common"
