"""Packages: the same bits in every pathway, and a size near the entropy bound."""

import shutil
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from tiny_experiment import MODEL, VOCAB_SIZE, make_experiment, write_complementary_masks

from icefall_pathways import Pathways
from icefall_pathways.commands.export import Config, run
from icefall_pathways.decoding.language_id.model import FEATURES, LanguageIdModel
from icefall_pathways.experiment import layout
from icefall_pathways.experiment.icefall_checkpoints import read_weights
from icefall_pathways.export.code_coding import decode_codes, encode_codes, entropy_bytes
from icefall_pathways.export.icefall import export_icefall
from icefall_pathways.export.model_card import CARD_FILE
from icefall_pathways.export.package import WEIGHTS_FILE, read_package
from icefall_pathways.export.packed_weights import pack_weights, unpack_weights
from icefall_pathways.export.precision import PRECISIONS
from icefall_pathways.files import read_json, sha256, write_json
from icefall_pathways.models.config import ModelConfig
from icefall_pathways.models.transducer import build_model
from icefall_pathways.pathways.activation import FoldedPathways
from icefall_pathways.pathways.masks import PathwayMasks


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


def test_rare_codes_survive_coding():
    """A code whose scaled frequency would be rounded to 0."""
    code = torch.zeros(100_000, dtype=torch.uint8)
    code[777] = 1
    assert torch.equal(decode_codes(encode_codes([code]), [code.shape], torch.uint8)[0], code)


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
    """float32 to the bit; the others within the rounding of their precision."""
    weights = {"masked": torch.randn(4, 3, 2), "dense": torch.randn(5, 6), "bias": torch.randn(7)}
    weights["bias"][:2] = torch.tensor([-0.0, 1e-42])
    codes = {"masked": torch.randint(0, 3, (4, 3, 2)).byte()}
    codes["masked"][0, 0] = torch.tensor([0, 1])
    weights["masked"][1] = 0
    shapes = {name: weight.shape for name, weight in weights.items()}
    used = weights["masked"] * (codes["masked"] != 0)
    for precision, tolerance in zip(PRECISIONS, (0, 2e-3, 2e-2), strict=True):
        unpacked = unpack_weights(pack_weights(weights, codes, precision), shapes, codes, precision)
        for name, expected in {**weights, "masked": used}.items():
            torch.testing.assert_close(unpacked[name], expected, rtol=0, atol=tolerance)
        if precision == "float32":
            assert torch.equal(unpacked["bias"].view(torch.int32), weights["bias"].view(torch.int32))


def test_int8_has_a_scale_per_row():
    """Half a step is the largest error, and a step is that of the largest used entry of the row."""
    weights = {"masked": torch.randn(3, 50) * torch.tensor([[1e-3], [1.0], [1e3]])}
    codes = {"masked": (torch.rand(3, 50) < 0.5).byte()}
    weights["masked"][codes["masked"] == 0] *= 100
    used = weights["masked"] * codes["masked"]
    packed = pack_weights(weights, codes, "int8")
    unpacked = unpack_weights(packed, {"masked": used.shape}, codes, "int8")["masked"]
    steps = used.abs().amax(dim=1) / 127
    assert bool(((unpacked - used).abs() <= 0.501 * steps[:, None]).all())


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", ["masked", "dense", "bias"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_weights_that_are_not_finite_are_not_packed(precision, name, value):
    weights = {"masked": torch.randn(2, 3), "dense": torch.randn(2, 3), "bias": torch.randn(3)}
    codes = {"masked": torch.tensor([[1, 0, 2], [3, 1, 2]]).byte()}
    weights["masked"][0, 1] = value  # no language uses it
    pack_weights(weights, codes, precision)
    weights[name].view(-1)[0] = value
    with pytest.raises(ValueError, match=rf"{name} has 1 NaN or infinite .*: export another checkpoint"):
        pack_weights(weights, codes, precision)


@pytest.mark.parametrize("precision", ["float16", "int8"])
def test_weights_that_are_too_large_for_a_precision_are_not_packed(precision):
    weights = {"bias": torch.tensor([1.0, 1e6])}
    assert torch.equal(pack_weights(weights, {}, "float32")["values"], weights["bias"])
    with pytest.raises(ValueError, match=f"bias has values that are too large for {precision}: export it with"):
        pack_weights(weights, {}, precision)


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
    assert card["training_options"]["command"] == read_json(packages / "exp" / "config.json")["command"]


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
    card = read_json(packages / "again" / CARD_FILE)
    assert card["training_options"]["command"] == read_json(packages / "exp" / "config.json")["command"]


def test_error_rates_are_in_the_card_of_a_package_and_of_its_package(packages, tmp_path):
    experiment = shutil.copytree(packages / "exp", tmp_path / "exp")
    name = "greedy_search/wer-summary-all-mls-test-epoch-1.json"
    (experiment / name).parent.mkdir()
    scores = {"wer": 7.5, "utterances": 3}
    write_json(experiment / name, {"languages": {"nl": scores}, "average_wer": 7.5})
    for source, target in (("exp", "package"), ("package", "again")):
        run(Config(exp_dir=tmp_path / source, output_dir=tmp_path / target, format="package"))
        languages = read_json(tmp_path / target / CARD_FILE)["languages"]
        assert languages["nl"]["word_error_rates"] == {name: 7.5} and languages["en"]["word_error_rates"] == {}


def test_language_identification_of_an_earlier_export_is_removed(packages, tmp_path):
    (tmp_path / layout.LANGUAGE_ID_FILE).write_text("{}")
    run(Config(exp_dir=packages / "exp", output_dir=tmp_path, format="package", languages="nl"))
    assert not (tmp_path / layout.LANGUAGE_ID_FILE).exists()


@pytest.fixture
def calibrated(packages, tmp_path):
    """Return a copy of the experiment with language identification."""
    exp_dir = shutil.copytree(packages / "exp", tmp_path / "exp")
    unigrams = {"en": [-1.0] * VOCAB_SIZE, "nl": [-2.0] * VOCAB_SIZE, "fr": [-3.0] * VOCAB_SIZE}
    language_id = LanguageIdModel({"text_per_token": 1.5}, {"en": 0.5, "nl": -0.5, "fr": 1.0}, unigrams, seconds=0.5)
    language_id.save(exp_dir / layout.LANGUAGE_ID_FILE)
    shutil.copy(packages / "bpe.model", exp_dir.parent)
    return exp_dir


@pytest.mark.parametrize("languages", ["", "nl", "nl en"])
def test_language_identification_is_cut_to_the_languages_of_the_package(calibrated, tmp_path, languages):
    run(Config(exp_dir=calibrated, output_dir=tmp_path / "package", format="package", languages=languages))
    original, cut = (LanguageIdModel.load(f / layout.LANGUAGE_ID_FILE) for f in (calibrated, tmp_path / "package"))
    codes = languages.split() or ["en", "nl"]
    assert list(cut.offsets) == list(cut.unigrams) == codes
    assert cut.weights == original.weights and cut.seconds == 0.5
    values = torch.randn(3, len(FEATURES))
    logits = original.logits(values, ["en", "nl", "fr"])
    kept = [["en", "nl", "fr"].index(code) for code in codes]
    assert torch.equal(cut.logits(values[kept], codes), logits[kept])
    package = Pathways.from_pretrained(tmp_path / "package", vad="none")
    identified = package.transcribe(torch.randn(16000) * 0.1).language
    assert identified in codes if len(codes) > 1 else identified is None  # one pathway: not identified


def test_language_identification_that_lacks_a_language_is_reported(calibrated, tmp_path, capsys):
    path = calibrated / layout.LANGUAGE_ID_FILE
    LanguageIdModel.load(path).restrict(["en"]).save(path)
    config = Config(exp_dir=calibrated, output_dir=tmp_path / "package", format="package")
    run(config)
    printed = capsys.readouterr().out
    assert f"note: the package has no language_id.json ({path}: language identification is not calibrated" in printed
    assert f"icefall-pathways calibrate-language-id --exp-dir {tmp_path / 'package'} --manifest-dir" in printed
    assert not (tmp_path / "package" / layout.LANGUAGE_ID_FILE).exists()
    run(replace(config, languages="en"))
    assert "note" not in capsys.readouterr().out
    assert (tmp_path / "package" / layout.LANGUAGE_ID_FILE).exists()


def test_printed_size_is_that_of_the_written_files(calibrated, tmp_path, capsys):
    folder = tmp_path / "package"
    run(Config(exp_dir=calibrated, output_dir=folder, format="package"))
    names = {CARD_FILE, WEIGHTS_FILE, layout.BPE_MODEL_FILE, layout.TOKENS_FILE, layout.LANGUAGE_ID_FILE}
    assert {path.name for path in folder.iterdir()} == names
    expected = f"{folder}: {sum(path.stat().st_size for path in folder.iterdir()) / 1e6:.2f} MB for en nl"
    (folder / "other.bin").write_bytes(bytes(10**6))
    run(Config(exp_dir=calibrated, output_dir=folder, format="package"))
    assert capsys.readouterr().out.count(expected) == 2


def test_export_into_the_folder_of_the_model_is_an_error(packages):
    files = sorted((packages / "exp").iterdir())
    with pytest.raises(ValueError, match="is the folder of --exp-dir, which would then hold two models"):
        run(Config(exp_dir=packages / "exp", output_dir=packages / "exp" / ".", format="package"))
    assert sorted((packages / "exp").iterdir()) == files


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


@pytest.mark.parametrize("level_norm", ["none", "running-max"])
def test_icefall_export_has_the_tokens_and_states_the_features(tmp_path, capsys, level_norm):
    config = ModelConfig(encoder_type="zipformer", zipformer="tiny")
    make_experiment(tmp_path, config, level_norm=level_norm)
    run(Config(exp_dir=tmp_path / "exp", output_dir=tmp_path / "icefall", format="icefall", languages="nl"))
    folder = tmp_path / "icefall" / "nl"
    assert (folder / "bpe.model").read_bytes() == (tmp_path / "bpe.model").read_bytes()
    assert (folder / "tokens.txt").read_bytes() == (tmp_path / "tokens.txt").read_bytes()
    printed = capsys.readouterr().out
    assert f"{folder / 'pretrained.pt'} {folder / 'bpe.model'} {folder / 'tokens.txt'}\n" in printed
    assert "80 log-mel filter bank energies of samples in [-1, 1] at 16000 Hz, from 20 to 7600 Hz" in printed
    normalizes = "normalize_level(x, 'running-max') of icefall_pathways.data.level" in printed
    assert normalizes == ("icefall's scripts do not normalize the level" in printed) == (level_norm != "none")


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
