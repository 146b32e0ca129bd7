import json

import pytest
import torch
from all_layer_types import LANGUAGES, random_masks
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from icefall_pathways.pathways import counting
from icefall_pathways.pathways.masks import MasksError, MasksHeader, PathwayMasks, code_type
from icefall_pathways.pathways.prunable import prunable_parameters

pytestmark = pytest.mark.usefixtures("device")


def equal(a, b):
    return a.header == b.header and all(
        torch.equal(a.codes[name].cpu(), b.codes[name].cpu()) for name in {*a.codes, *b.codes}
    )


def test_only_matrices_and_kernels_are_prunable(model):
    parameters = prunable_parameters(model)
    assert {name.split(".")[0] for name in parameters} == {"conv2d", "conv1d", "linear", "lstm"}
    assert all("weight" in name for name in parameters)
    assert len([name for name in parameters if name.startswith("lstm")]) == 8
    assert all(parameters[name] is model.get_parameter(name) for name in parameters)


def test_roots_select_submodules_and_classes_can_opt_out():
    class Kept(nn.Sequential):
        prunable = False

    model = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Sequential(Kept(nn.Linear(2, 2)), nn.Linear(2, 2))})
    assert list(prunable_parameters(model, ["b"])) == ["b.1.weight"]
    assert list(prunable_parameters(model)) == ["a.weight", "b.1.weight"]
    with pytest.raises(ValueError, match=r"no submodule 'c'.*a, b"):
        prunable_parameters(model, ["c"])
    with pytest.raises(ValueError, match="nothing to prune"):
        prunable_parameters(nn.LayerNorm(3))


def test_shared_module_is_covered_once():
    shared = nn.Linear(2, 2)
    assert list(prunable_parameters(nn.ModuleList([shared, shared]))) == ["0.weight"]


def test_dense_masks_keep_all_entries(model):
    masks = PathwayMasks.dense(model, LANGUAGES)
    assert all(masks.mask(name, language).all() for name in masks.names for language in LANGUAGES)
    assert masks.sparsity("en") == 0 and masks.union_density() == 1


def test_masks_below_a_prefix_have_the_codes_of_these_parameters(model):
    masks = random_masks(model)
    part = masks.below("conv")
    assert set(part.names) == {"conv1d.weight", "conv2d.weight"} < set(masks.names)
    assert all(part.codes[name] is masks.codes[name] for name in part.names) and part.header == masks.header


@pytest.mark.parametrize(("count", "dtype"), [(8, torch.uint8), (9, torch.int16), (17, torch.int32), (64, torch.int64)])
def test_setting_a_mask_changes_only_the_bit_of_its_language(count, dtype):
    model, languages = nn.Linear(5, 7), [f"l{i}" for i in range(count)]
    masks = random_masks(model, tuple(languages))
    assert masks.codes["weight"].dtype == dtype == code_type(count)
    before = {language: masks.mask("weight", language) for language in languages}
    masks.set_mask("weight", languages[-1], ~before[languages[-1]])
    for language in languages[:-1]:
        assert torch.equal(masks.mask("weight", language), before[language])
    assert torch.equal(masks.mask("weight", languages[-1]), ~before[languages[-1]])


def test_more_languages_than_bits_are_rejected():
    with pytest.raises(MasksError, match="at most 64"):
        code_type(65)


@settings(max_examples=30, deadline=None)
@given(bits=st.lists(st.integers(0, 7), min_size=1, max_size=60))
def test_sparsity_union_and_overlap_match_counts(bits):
    codes = torch.tensor(bits, dtype=torch.uint8)
    masks = PathwayMasks(MasksHeader(LANGUAGES), {"w": codes})
    en, fr = [b & 1 for b in bits], [b >> 1 & 1 for b in bits]
    assert masks.sparsity("en") == pytest.approx(1 - sum(en) / len(bits))
    assert masks.union_density() == pytest.approx(sum(b > 0 for b in bits) / len(bits))
    either = sum(a | b for a, b in zip(en, fr, strict=True))
    both = sum(a & b for a, b in zip(en, fr, strict=True))
    assert masks.overlap("en", "fr") == pytest.approx(both / either if either else 1.0)


@pytest.mark.parametrize("count", [1, 8, 9, 20, 64])
def test_joint_counts_match_products_of_masks(count):
    languages = tuple(f"l{i}" for i in range(count))
    masks = random_masks(nn.Linear(9, 7), languages)
    used = torch.stack([masks.mask("weight", language).flatten() for language in languages]).long().cpu()
    assert torch.equal(masks.counts(), used @ used.T)
    either = ((used.unsqueeze(0) + used.unsqueeze(1)) > 0).sum(2)
    torch.testing.assert_close(torch.tensor(masks.overlaps(), device="cpu"), (used @ used.T / either))


def test_counting_splits_large_tensors_into_chunks(monkeypatch):
    monkeypatch.setattr(counting, "_CHUNK", 10)
    masks = random_masks(nn.Linear(9, 7))
    assert masks.counts()[0, 0] == masks.mask("weight", LANGUAGES[0]).sum()


def test_empty_masks_have_overlap_one(masks):
    for name in masks.names:
        masks.set_mask(name, ["en", "fr"], torch.zeros(masks.codes[name].shape, dtype=torch.bool))
    assert masks.overlap("en", "fr") == 1 and masks.overlap("en", "it") == 0


@pytest.mark.parametrize("counts", [(3, 5), (3, 6), (8, 8), (16, 1), (16, 17), (1, 40, 23)])
def test_merge_widens_codes(counts):
    model, parts, total = nn.Linear(5, 7), [], 0
    for count in counts:
        parts.append(random_masks(model, tuple(f"l{total + i}" for i in range(count))))
        total += count
    merged = PathwayMasks.merge(iter(parts))
    assert merged.codes["weight"].dtype == code_type(total) and len(merged.languages) == total
    for part in parts:
        for language in part.languages:
            assert torch.equal(merged.mask("weight", language), part.mask("weight", language))


def test_merge_requires_disjoint_languages(masks):
    before = masks.codes["linear.weight"].clone()
    with pytest.raises(MasksError, match="duplicate language"):
        PathwayMasks.merge([masks, masks.restrict(["fr"])])
    with pytest.raises(MasksError, match="no masks to merge"):
        PathwayMasks.merge([])
    assert torch.equal(masks.codes["linear.weight"], before)


def test_share_mask_is_true_for_equal_masks(masks):
    assert not masks.share_mask(LANGUAGES)
    for name in masks.names:
        masks.set_mask(name, ["en", "it"], torch.rand(masks.codes[name].shape) < 0.5)
    assert masks.share_mask(["en", "it"]) and masks.share_mask(["fr"]) and not masks.share_mask(["en", "fr"])


def test_restrict_and_merge_are_inverse(masks):
    parts = [masks.restrict([language]) for language in reversed(LANGUAGES)]
    merged = PathwayMasks.merge(parts)
    assert merged.languages == tuple(reversed(LANGUAGES))
    assert equal(merged.restrict(LANGUAGES), masks)


def test_merge_of_different_models_lists_differences(masks):
    other = PathwayMasks.dense(nn.Linear(2, 2), ["pl"])
    with pytest.raises(MasksError, match=r"differ in .*conv1d\.weight"):
        PathwayMasks.merge([masks, other])


def test_save_and_load_round_trip(masks, tmp_path):
    masks.header = MasksHeader(LANGUAGES, "imp", "element", 0.5, "0123456789abcdef")
    masks.save(tmp_path / "masks.safetensors")
    assert equal(PathwayMasks.load(tmp_path / "masks.safetensors"), masks)
    header = json.loads((tmp_path / "masks.json").read_text())
    assert header["languages"] == list(LANGUAGES) and header["source"] == "0123456789abcdef"
    assert header["sparsity"]["en"] == pytest.approx(masks.sparsity("en"))


def test_check_lists_differences_from_another_model(masks, model):
    masks.check(model, LANGUAGES)
    model.linear = nn.Linear(6, 9)
    del model.conv1d
    with pytest.raises(MasksError) as error:
        masks.check(model)
    assert "the model has no prunable parameter conv1d.weight" in str(error.value)
    assert "linear.weight is (7, 6) in the masks and (9, 6) in the model" in str(error.value)


def test_masks_of_a_shallower_model_are_rejected(model):
    masks = PathwayMasks.dense(model, LANGUAGES, ["linear", "lstm"])
    masks.check(model)  # parameters outside the roots need no masks
    model.linear = nn.Sequential(model.linear, nn.Linear(7, 7))
    with pytest.raises(MasksError, match=r"the masks lack linear\.0\.weight"):
        masks.check(model)
    del model.linear
    with pytest.raises(MasksError, match=r"belong to another model.*no submodule 'linear'"):
        masks.check(model)


def test_missing_language_error_lists_available_languages(masks, model):
    with pytest.raises(MasksError, match="no pathway for language 'nl': the masks hold en, fr, it"):
        masks.check(model, ["nl"])


@pytest.mark.parametrize(
    "damage",
    [
        "truncated",
        "other codes",
        "missing header",
        "truncated header",
        "incomplete header",
        "wrong types",
        "other header",
    ],
)
def test_damaged_files_are_reported(masks, tmp_path, damage):
    path, header = tmp_path / "masks.safetensors", tmp_path / "masks.json"
    masks.save(path)
    expected = {
        "truncated": "masks.safetensors is damaged",
        "other codes": r"masks.safetensors is damaged or not the file that masks.json describes",
        "missing header": "no masks file .*masks.json",
        "truncated header": "masks.json is not a masks header .*not valid JSON",
        "incomplete header": "masks.json is not a masks header: it lacks 'method'",
        "wrong types": "masks.json is not a masks header",
        "other header": r"differ in .*linear\.weight",
    }
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "other codes":
        described = header.read_bytes()
        masks.set_mask("linear.weight", "en", ~masks.mask("linear.weight", "en"))
        masks.save(path)
        header.write_bytes(described)
    elif damage == "missing header":
        header.unlink()
    elif damage == "truncated header":
        header.write_text(header.read_text()[:50])
    elif damage == "wrong types":
        header.write_text(json.dumps(json.loads(header.read_text()) | {"languages": 5}))
    elif damage == "incomplete header":
        header.write_text('{"languages": ["en"]}')
    else:
        values = json.loads(header.read_text())
        values["prunable"]["linear.weight"] = [1, 2]
        header.write_text(json.dumps(values))
    with pytest.raises(MasksError, match=expected[damage]):
        PathwayMasks.load(path)


def test_invalid_masks_are_rejected(masks):
    with pytest.raises(MasksError, match=r"expected bool of shape \(7, 6\)"):
        masks.set_mask("linear.weight", "en", torch.ones(7, 6))
    with pytest.raises(MasksError, match="duplicate language"):
        PathwayMasks(MasksHeader(("en", "en")))
    with pytest.raises(MasksError, match=r"expected torch.uint8"):
        PathwayMasks(MasksHeader(("en",)), {"w": torch.zeros(2, dtype=torch.int64)})


def test_representation_is_one_line_without_the_codes():
    masks = PathwayMasks.dense(torch.nn.Linear(3, 2), ["en", "fr"])
    assert "\n" not in repr(masks) and "('en', 'fr')" in repr(masks) and "tensor" not in repr(masks)
