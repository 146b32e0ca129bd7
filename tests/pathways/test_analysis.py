import pytest
from every_kind import LANGUAGES

from icefall_pathways.pathways import analysis
from icefall_pathways.pathways.masks import PathwayMasks
from icefall_pathways.pathways.pruning import prune_by_magnitude


def test_densities_and_overlaps_agree_with_the_masks(masks):
    densities = analysis.density_per_parameter(masks)
    for name in masks.names:
        assert densities[name]["fr"] == pytest.approx(float(masks.mask(name, "fr").float().mean()))
    matrix = analysis.overlap_matrix(masks)
    assert matrix[0][0] == 1 and matrix[0][1] == matrix[1][0] == masks.overlap("en", "fr")
    both, either = masks.mask("linear.weight", "en"), masks.mask("linear.weight", "fr")
    iou = float((both & either).sum() / (both | either).sum())
    assert masks.only("linear.weight").overlap("en", "fr") == pytest.approx(iou)


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
