"""Packages: the same bits in every pathway, near the entropy bound, and damaged or hostile files are rejected."""

import shutil
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tiny_experiment import MODEL, make_experiment, write_complementary_masks

from icefall_pathways import Pathways
from icefall_pathways.commands.export import Config, run
from icefall_pathways.experiment import layout
from icefall_pathways.experiment.icefall_checkpoints import read_weights
from icefall_pathways.export.code_coding import decode_codes, encode_codes, entropy_bytes
from icefall_pathways.export.icefall import export_icefall
from icefall_pathways.export.package import CARD_FILE, WEIGHTS_FILE, PackageError, read_package
from icefall_pathways.export.packed_weights import pack_weights, unpack_weights
from icefall_pathways.files import read_json, sha256, write_json
from icefall_pathways.models.config import ModelConfig
from icefall_pathways.models.transducer import build_model
from icefall_pathways.pathways.activation import FoldedPathways
from icefall_pathways.pathways.masks import PathwayMasks

PRECISIONS = ("float32", "float16", "int8")
COMMAND = "icefall-pathways train --exp-dir exp --languages 'en nl'"


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    folder = tmp_path_factory.mktemp("experiment")
    make_experiment(folder)
    write_complementary_masks(folder / "exp")
    return folder


@pytest.fixture(scope="module")
def packages(experiment):
    write_json(experiment / "exp" / "config.json", {"command": COMMAND})
    for precision in PRECISIONS:
        folder = experiment / precision
        run(Config(exp_dir=experiment / "exp", output_dir=folder, format="package", precisions=(precision,)))
    return experiment


@given(data=st.data(), bits=st.sampled_from([1, 4, 8, 40]))
@settings(max_examples=30, deadline=None)
def test_codes_survive_coding(data, bits):
    dtype = torch.uint8 if bits <= 8 else torch.int64
    shapes = data.draw(st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=3), min_size=1, max_size=4))
    alphabet = data.draw(st.lists(st.integers(0, 2**bits - 1), min_size=1, max_size=6))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    codes = [
        torch.tensor(alphabet, dtype=dtype)[torch.randint(0, len(alphabet), shape, generator=generator)]
        for shape in shapes
    ]
    if not sum(code.numel() for code in codes):
        return
    decoded = decode_codes(encode_codes(codes), [code.shape for code in codes], dtype)
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(decoded, codes, strict=True))


@pytest.mark.parametrize("different", [False, True])
def test_coded_size_is_near_the_entropy(different):
    torch.manual_seed(1)
    shares = [0.05, 0.5 if different else 0.05]
    codes = [(torch.rand(300, 400) < share).byte() + 2 * (torch.rand(300, 400) < 0.3).byte() for share in shares]
    coded = encode_codes(codes)
    assert len(coded["counts"]) == (2 if different else 1)
    size = sum(tensor.numel() * tensor.element_size() for tensor in coded.values())
    assert entropy_bytes(codes) < size < 1.005 * entropy_bytes(codes)


def test_unions_survive_packing():
    """float32 to the bit, including NaN; the others within the rounding of their precision."""
    weights = {"masked": torch.randn(4, 3, 2), "dense": torch.randn(5, 6), "bias": torch.randn(7)}
    codes = {"masked": torch.randint(0, 3, (4, 3, 2)).byte()}
    weights["masked"][1] = 0
    shapes = {name: weight.shape for name, weight in weights.items()}
    used = weights["masked"] * (codes["masked"] != 0)
    for precision, tolerance in zip(PRECISIONS, (0, 2e-3, 2e-2), strict=True):
        unpacked = unpack_weights(pack_weights(weights, codes, precision), shapes, codes, precision)
        for name, expected in {**weights, "masked": used}.items():
            torch.testing.assert_close(unpacked[name], expected, rtol=0, atol=tolerance)
    weights["bias"][0] = torch.nan
    unpacked = unpack_weights(pack_weights(weights, codes, "float32"), shapes, codes, "float32")
    assert torch.equal(unpacked["bias"].view(torch.int32), weights["bias"].view(torch.int32))
    for precision in ("float16", "int8"):
        with pytest.raises(ValueError, match="bias has values that are not finite"):
            pack_weights(weights, codes, precision)


def test_every_pathway_has_the_same_bits(packages):
    experiment, package = (Pathways.from_pretrained(packages / name, vad="none") for name in ("exp", "float32"))
    assert package.languages == experiment.languages and package.masks.equals(experiment.masks)
    dense = experiment.model.state_dict()
    for language in experiment.languages:
        expected = dense | experiment._trained.pathways.weights(language)
        actual = package.model.state_dict() | package._trained.pathways.weights(language)
        assert expected.keys() == actual.keys()
        assert all(torch.equal(actual[name], expected[name]) for name in expected)
    samples = torch.randn(16000, generator=torch.Generator().manual_seed(1)) * 0.1
    assert package.transcribe(samples, "nl") == experiment.transcribe(samples, "nl")


def test_other_precisions_are_read(packages):
    sizes = [(packages / precision / WEIGHTS_FILE).stat().st_size for precision in PRECISIONS]
    assert sizes == sorted(sizes, reverse=True)
    weights = [Pathways.from_pretrained(packages / precision).model.state_dict() for precision in PRECISIONS]
    for other, tolerance in zip(weights[1:], (5e-3, 2e-2), strict=True):
        torch.testing.assert_close(other, weights[0], rtol=0, atol=tolerance * 8)


def test_card(packages):
    card = read_json(packages / "float32" / CARD_FILE)
    assert set(card["languages"]) == {"en", "nl"}
    assert card["languages"]["en"]["sparsity"] == pytest.approx(0.5, abs=0.05)
    assert card["union_density"] == 1.0 and card["license"] == "unspecified"
    assert card["training_options"]["model"]["encoder_dim"] == "16" or card["model"]["encoder_dim"] == 16
    assert card["training_options"]["command"] == COMMAND


def test_cut_down_to_one_language(packages):
    config = Config(exp_dir=packages / "exp", output_dir=packages / "nl", format="package", languages="nl")
    run(config)
    package = Pathways.from_pretrained(packages / "nl")
    assert package.languages == ["nl"] and package.masks.union_density() == pytest.approx(0.5, abs=0.05)
    sizes = [(packages / name / WEIGHTS_FILE).stat().st_size for name in ("nl", "float32")]
    assert sizes[0] < 0.8 * sizes[1]
    run(replace(config, exp_dir=packages / "float32", output_dir=packages / "again"))  # a package of a package
    assert load_file(packages / "again" / WEIGHTS_FILE).keys() == load_file(packages / "nl" / WEIGHTS_FILE).keys()
    assert sha256(packages / "again" / WEIGHTS_FILE) == sha256(packages / "nl" / WEIGHTS_FILE)
    assert read_json(packages / "again" / CARD_FILE)["training_options"]["command"] == COMMAND


def test_language_identification_of_an_earlier_export_is_removed(packages, tmp_path):
    (tmp_path / layout.LANGUAGE_ID_FILE).write_text("{}")
    run(Config(exp_dir=packages / "exp", output_dir=tmp_path, format="package", languages="nl"))
    assert not (tmp_path / layout.LANGUAGE_ID_FILE).exists()


def test_export_into_the_folder_of_the_model_is_an_error(packages):
    files = sorted((packages / "exp").iterdir())
    with pytest.raises(ValueError, match="is the folder of --exp-dir, which would then hold two models"):
        run(Config(exp_dir=packages / "exp", output_dir=packages / "exp" / ".", format="package"))
    assert sorted((packages / "exp").iterdir()) == files


@pytest.fixture
def package(packages, tmp_path):
    return shutil.copytree(packages / "int8", tmp_path / "package")


def change_card(package, **changes):
    card = read_json(package / CARD_FILE) | changes
    card["sha256"] = {name: sha256(package / name) for name in card["sha256"]}
    write_json(package / CARD_FILE, card)


def change_tensors(package, **changes):
    tensors = load_file(package / WEIGHTS_FILE)
    save_file(
        {name: changes.get(name.replace(".", "_"), tensor) for name, tensor in tensors.items()}, package / WEIGHTS_FILE
    )
    change_card(package)


def test_damaged_files_are_rejected(package):
    good = (package / WEIGHTS_FILE).read_bytes()
    flipped = bytearray(good)
    flipped[len(good) // 2] ^= 1
    for content in (bytes(flipped), good[:-1], b""):
        (package / WEIGHTS_FILE).write_bytes(content)
        with pytest.raises(PackageError, match=r"pathways.safetensors is damaged or truncated"):
            read_package(package)
        change_card(package)  # a hash that fits: what is read must still be valid
        if content != bytes(flipped):
            with pytest.raises(PackageError, match="not a valid package"):
                read_package(package)
    (package / WEIGHTS_FILE).unlink()
    with pytest.raises(PackageError, match=r"has no pathways.safetensors"):
        Pathways.from_pretrained(package)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 2}, "version 2 of the format"),
        ({"format": "other"}, "is not the card of a package"),
        ({"precision": "float64"}, "precision 'float64'"),
        ({"precision": "float32"}, "values is torch.float16"),
        ({"features": {}}, "this version computes"),
        ({"vocab_size": 10**9}, "and the file only"),
        ({"vocab_size": "a"}, "vocab_size is 'a'"),
        ({"vocab_size": 25}, "entries: expected"),
        ({"model": {"encoder_dim": "1000000"}}, "1 layers of width up to 1000000|layers of width"),
        ({"model": {"unknown": 1}}, "has no option unknown"),
        ({"model": []}, "not a valid package"),
        ({"masks": {"languages": ["en", "en"], "roots": ["encoder"]}}, "duplicate language"),
        ({"masks": {"languages": ["en", "nl"], "roots": ["encoder"]}}, "not a valid package"),
        ({"masks": {"languages": ["en"], "roots": ["absent"]}}, "no submodule 'absent'"),
        ({"masks": None}, "not a valid package"),
    ],
)
def test_hostile_cards_are_rejected(package, changes, message):
    change_card(package, **changes)
    with pytest.raises(PackageError, match=message):
        read_package(package)


@pytest.mark.parametrize(
    "changes",
    [
        {"codes_words": torch.arange(1, 9, dtype=torch.int32)},
        {"codes_words": torch.zeros(8, dtype=torch.int32)},
        {"codes_words": torch.ones(8, dtype=torch.float64)},
        {"codes_counts": torch.zeros(1, 2, dtype=torch.int16)},
        {"codes_counts": torch.full((1, 2), -1, dtype=torch.int16)},
        {"codes_alphabet": torch.zeros(0, dtype=torch.int64)},
        {"values": torch.zeros(3, dtype=torch.float16)},
        {"values": torch.zeros(10000, dtype=torch.float16)},
        {"quantized": torch.zeros(3, dtype=torch.int64)},
        {"scales": torch.zeros(2, 2)},
    ],
)
def test_hostile_tensors_are_rejected(package, changes):
    change_tensors(package, **changes)
    with pytest.raises(PackageError, match="not a valid package"):
        read_package(package)


def test_options_that_a_package_lacks_are_rejected(packages):
    for options in ({"epoch": 3}, {"avg": 2}, {"masks": "none"}, {"use_averaged_model": False}):
        with pytest.raises(ValueError, match="is a package"):
            Pathways.from_pretrained(packages / "float32", **options)
    with pytest.raises(ValueError, match="one precision"):
        run(Config(exp_dir=packages / "exp", format="package", precisions=("float32", "int8")))


def test_icefall_checkpoint_of_one_language(tmp_path):
    model = build_model(ModelConfig(encoder_type="zipformer", zipformer="tiny", ctc_head=True), 20).eval()
    masks = PathwayMasks.dense(model, ["en", "fr"], ["encoder"])
    for name in masks.names:
        masks.set_mask(name, "fr", torch.rand(masks.codes[name].shape) < 0.5)
    path = export_icefall(FoldedPathways(model, masks), "fr", tmp_path)
    assert path == tmp_path / "fr" / "pretrained.pt"
    weights = torch.load(path, weights_only=True)["model"]
    expected = {name: weight for name, weight in model.state_dict().items() if not name.startswith("ctc_output")}
    assert weights.keys() == expected.keys() == read_weights(path).keys()
    for name, weight in expected.items():
        mask = masks.mask(name, "fr") if name in masks.names else torch.ones_like(weight)
        assert torch.equal(weights[name], weight * mask)
    with pytest.raises(ValueError, match="no scripts for EmformerEncoder"):
        export_icefall(FoldedPathways(build_model(ModelConfig(num_encoder_layers=1), 20), None), "fr", tmp_path)


def test_icefall_checkpoint_has_the_vector_of_its_language_in_the_bias(tmp_path):
    config = ModelConfig(encoder_type="zipformer", zipformer="tiny", language_input=True)
    model, plain = build_model(config, 20, ["en", "fr"]).eval(), build_model(replace(config, language_input=False), 20)
    pathways, x, x_lens = FoldedPathways(model, None), torch.randn(2, 100, 80), torch.tensor([100, 80])
    for language in ("en", "fr"):
        plain.load_state_dict(read_weights(export_icefall(pathways, language, tmp_path)))
        with pathways.activate(language):
            expected, _ = model.encode(x, x_lens)
        assert torch.equal(plain.eval().encode(x, x_lens)[0], expected)


def test_package_has_the_vectors_of_its_languages(tmp_path):
    make_experiment(tmp_path, replace(MODEL, language_input=True))
    write_complementary_masks(tmp_path / "exp")
    trained, x, x_lens = (
        Pathways.from_pretrained(tmp_path / "exp")._trained,
        torch.randn(2, 99, 80),
        torch.full((2,), 99),
    )
    for languages in (["nl"], ["nl", "en"]):
        options = {"output_dir": tmp_path / "-".join(languages), "languages": " ".join(languages)}
        run(Config(exp_dir=tmp_path / "exp", format="package", **options))
        package = read_package(options["output_dir"])
        assert [name[-2:] for name in package.model.state_dict() if "vector_" in name] == sorted(languages)
        pathways = FoldedPathways(package.model, package.masks)
        for language in languages:
            with pathways.activate(language), trained.pathways.activate(language), torch.inference_mode():
                assert torch.equal(package.model.encode(x, x_lens)[0], trained.model.encode(x, x_lens)[0])


def test_level_norm_of_the_model_is_kept(package):
    features = read_json(package / CARD_FILE)["features"]
    for level_norm in ("none", "running-max"):
        change_card(package, features=features | {"level_norm": level_norm})
        assert Pathways.from_pretrained(package)._trained.data_config.fbank.level_norm == level_norm
    change_card(package, features=features | {"level_norm": "other"})
    with pytest.raises(PackageError, match="this version computes"):
        read_package(package)
