import pytest
from every_kind import LANGUAGES

from icefall_pathways.pathways import analysis
from icefall_pathways.pathways.masks import PathwayMasks
from icefall_pathways.pathways.pruning import prune_by_magnitude


def test_densities_and_overlaps_agree_with_the_masks(model, masks):
    rows = analysis.density_per_parameter(model, masks)
    assert [row.name for row in rows] == masks.names
    for row in rows:
        assert row.density["fr"] == pytest.approx(float(masks.mask(row.name, "fr").float().mean()))
    linear = next(row for row in rows if row.name == "linear.weight")
    used = [masks.mask("linear.weight", language) for language in LANGUAGES]
    pairs = [(used[0], used[1]), (used[0], used[2]), (used[1], used[2])]
    assert linear.module_type == "Linear" and linear.num_entries == 42
    assert linear.union == pytest.approx(float((used[0] | used[1] | used[2]).float().mean()))
    assert linear.overlap == pytest.approx(sum(float((a & b).sum() / (a | b).sum()) for a, b in pairs) / 3)


def test_types_pool_their_parameters(model, masks):
    rows = {row.name: row for row in analysis.density_per_type(model, masks)}
    assert set(rows) == {"Conv1d", "Conv2d", "Linear", "LSTM"}
    weights = [name for name in masks.names if name.startswith("lstm")]
    kept = sum(int(masks.mask(name, "it").sum()) for name in weights)
    assert rows["LSTM"].num_entries == sum(masks.codes[name].numel() for name in weights)
    assert rows["LSTM"].density["it"] == pytest.approx(kept / rows["LSTM"].num_entries)


def test_the_overlap_matrix_is_symmetric(masks):
    matrix = analysis.overlap_matrix(masks)
    assert matrix[0][0] == 1 and matrix[0][1] == matrix[1][0] == masks.overlap("en", "fr")
    assert analysis.mean_overlap(masks) == pytest.approx((matrix[0][1] + matrix[0][2] + matrix[1][2]) / 3)
    assert analysis.mean_overlap(masks.restrict(["en"])) == 1


def test_active_parameters_are_the_kept_ones_and_all_that_cannot_be_pruned(model):
    masks = PathwayMasks.dense(model, LANGUAGES)
    total = sum(parameter.numel() for parameter in model.parameters())
    assert analysis.active_parameters(model, masks, "en") == analysis.active_parameters(model, None, "en") == total
    prune_by_magnitude(model, masks, ["en"], 0.7)
    kept = sum(int(masks.mask(name, "en").sum()) for name in masks.names)
    prunable = sum(code.numel() for code in masks.codes.values())
    assert analysis.active_parameters(model, masks, "en") == total - prunable + kept


def test_plots_are_pictures(masks, tmp_path):
    for plot in (analysis.plot_density, analysis.plot_overlap):
        plot(masks, tmp_path / "plot.png")
        assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
