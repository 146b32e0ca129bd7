import pytest
import torch
from all_layer_types import LANGUAGES, random_masks
from magnitude_pruning import prune_by_magnitude

from icefall_pathways.pathways import analysis, plots
from icefall_pathways.pathways.counting import sharing_counts
from icefall_pathways.pathways.masks import MasksHeader, PathwayMasks


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


def test_rows_of_module_types_cover_all_their_parameters(model, masks):
    rows = {row.name: row for row in analysis.density_per_type(model, masks)}
    assert set(rows) == {"Conv1d", "Conv2d", "Linear", "LSTM"}
    weights = masks.below("lstm").names
    kept = sum(int(masks.mask(name, "it").sum()) for name in weights)
    assert rows["LSTM"].num_entries == sum(masks.codes[name].numel() for name in weights)
    assert rows["LSTM"].density["it"] == pytest.approx(kept / rows["LSTM"].num_entries)


def test_overlap_matrix_is_symmetric(masks):
    matrix = masks.overlaps()
    assert matrix[0][0] == 1 and matrix[0][1] == matrix[1][0] == masks.overlap("en", "fr")
    assert analysis.mean_overlap(masks) == pytest.approx((matrix[0][1] + matrix[0][2] + matrix[1][2]) / 3)
    assert analysis.mean_overlap(masks.restrict(["en"])) == 1


def test_active_parameters_are_kept_or_not_prunable(model):
    masks = PathwayMasks.dense(model, LANGUAGES)
    total = sum(parameter.numel() for parameter in model.parameters())
    assert analysis.active_parameters(model, masks, "en") == analysis.active_parameters(model, None, "en") == total
    prune_by_magnitude(model, masks, ["en"], 0.7)
    kept = sum(int(masks.mask(name, "en").sum()) for name in masks.names)
    prunable = sum(code.numel() for code in masks.codes.values())
    assert analysis.active_parameters(model, masks, "en") == total - prunable + kept


def test_exclusive_share_and_specificity_of_random_masks(model, masks):
    rows = {row.name: row for row in analysis.density_per_parameter(model, masks)}
    used = torch.stack([masks.mask("conv1d.weight", language).flatten() for language in LANGUAGES]).long()
    row = rows["conv1d.weight"]
    assert row.exclusive == pytest.approx(float((used.sum(0) == 1).sum() / (used.sum(0) > 0).sum()))
    # For masks of equal density, kappa is their correlation, which is small for random masks.
    assert row.specificity == pytest.approx(1, abs=0.15)


def test_specificity_is_one_minus_cohens_kappa():
    masks = PathwayMasks(MasksHeader(("en", "fr")), {"weight": torch.tensor([[3, 3, 1, 0, 2, 0, 0, 0]]).byte()})
    (row,) = analysis.density_per_parameter(torch.nn.Linear(8, 1), masks)
    agreement, by_chance = 6 / 8, (3 / 8) ** 2 + (5 / 8) ** 2
    assert row.specificity == pytest.approx(1 - (agreement - by_chance) / (1 - by_chance))
    assert row.overlap == pytest.approx(2 / 4) and row.exclusive == pytest.approx(2 / 4) and row.union == 4 / 8


def test_layers_are_ranked_by_descending_specificity(model, masks):
    masks.set_mask("linear.weight", LANGUAGES, masks.mask("linear.weight", "en"))
    masks.set_mask("conv2d.weight", LANGUAGES, torch.ones(3, 1, 3, 3, dtype=torch.bool))
    ranked = analysis.rank_by_specificity(analysis.density_per_parameter(model, masks))
    assert {row.name for row in ranked[-2:]} == {"linear.weight", "conv2d.weight"}
    assert ranked[-1].specificity == 0 and [r.specificity for r in ranked] == sorted(
        (r.specificity for r in ranked), reverse=True
    )


def test_sharing_counts_match_a_bincount_of_users():
    for count in (3, 9, 64):
        languages = tuple(f"l{i}" for i in range(count))
        masks = random_masks(torch.nn.Linear(9, 7), languages)
        users = torch.stack([masks.mask("weight", language).flatten() for language in languages]).long().sum(0)
        assert torch.equal(sharing_counts(masks.codes.values(), count), torch.bincount(users, minlength=count + 1))


def test_plots_write_png_files(model, masks, tmp_path):
    rows = analysis.density_per_parameter(model, masks)
    for plot, data in (
        (plots.plot_density, rows),
        (plots.plot_overlap, masks),
        (plots.plot_specificity, rows),
    ):
        plot(data, tmp_path / "plot.png")
        assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
