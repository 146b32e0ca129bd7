"""Packages that are damaged, hostile or of another model are rejected when they are loaded, with one clear error."""

import json
import shutil

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tiny_experiment import TEXTS, VOCAB_SIZE

from icefall_pathways import Pathways
from icefall_pathways.data.tokenizer import Tokenizer, train_tokenizer
from icefall_pathways.decoding.language_id.model import LanguageIdModel
from icefall_pathways.experiment import checkpoints, layout
from icefall_pathways.experiment.model_files import copy_tokenizer
from icefall_pathways.export.model_card import CARD_FILE
from icefall_pathways.export.package import WEIGHTS_FILE, PackageError, read_package, write_package
from icefall_pathways.files import read_json, sha256, write_json
from icefall_pathways.pathways.masks import MasksError, PathwayMasks

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)


def change_card(package, **changes):
    hashes = {name: sha256(package / name) for name in (WEIGHTS_FILE, layout.BPE_MODEL_FILE)}
    write_json(package / CARD_FILE, read_json(package / CARD_FILE) | {"sha256": hashes} | changes)


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
            with pytest.raises(PackageError, match=r"pathways.safetensors is damaged \("):
                read_package(package)


@pytest.mark.parametrize("name", [CARD_FILE, WEIGHTS_FILE, layout.BPE_MODEL_FILE])
def test_missing_files_are_reported(package, name):
    (package / name).unlink()
    with pytest.raises(PackageError, match=f"has no {name}: copy the whole package again"):
        Pathways.from_pretrained(package)


def test_a_changed_tokenizer_is_rejected(package):
    with (package / layout.BPE_MODEL_FILE).open("ab") as file:
        file.write(b"\x28\x01")  # an unknown field, which SentencePiece ignores
    with pytest.raises(PackageError, match=r"bpe.model is damaged or truncated \(its SHA-256"):
        read_package(package)
    change_card(package)
    read_package(package)


def test_masks_without_the_granularity_of_the_card_are_rejected(package):
    change_card(package, masks=read_json(package / CARD_FILE)["masks"] | {"granularity": "row"})
    with pytest.raises(PackageError, match=r"pathways.safetensors is damaged \(the masks of \S+ do not consist of"):
        read_package(package)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 2}, "version 2 of the format"),
        ({"format": "other"}, "is not the card of a package"),
        ({"precision": "float64"}, "precision 'float64'"),
        ({"precision": "float32"}, "values is torch.float16"),
        ({"features": {}}, "this version computes"),
        ({"vocab_size": True}, "vocab_size is 'True', expected an integer"),
        ({"vocab_size": "a"}, "vocab_size is 'a', expected an integer"),
        (
            {"vocab_size": 25},
            r"bpe.model is the tokenizer of another model \(.*bpe.model has 24 tokens and the model 25",
        ),
        ({"model": {"encoder_dim": "1000000"}}, "layers of width up to 1000000"),
        ({"model": {"unknown": 1}}, "has no option unknown"),
        ({"model": []}, r"model.json is damaged \(model is '\[\]', expected an object\): copy the whole package again"),
        ({"masks": {"languages": ["en", "en"], "roots": ["encoder"]}}, "duplicate language"),
        ({"masks": {"languages": ["en", "nl"], "roots": ["encoder"]}}, "the coded entries do not end where"),
        ({"masks": {"languages": ["en", "nl"], "roots": ["absent"]}}, "no submodule 'absent'"),
        ({"masks": {"languages": ["en", "nl"], "roots": []}}, "nothing to prune"),
        ({"masks": {"languages": ["en", "fr"], "roots": ["encoder"]}}, "masks.languages is en fr, expected en nl"),
        (
            {"masks": {"languages": ["dutch", "en"], "roots": ["encoder"]}},
            "masks.languages is dutch en, expected nl en",
        ),
        ({"masks": {"languages": "en", "roots": ["encoder"]}}, "masks.languages is 'en', expected a list"),
        (
            {"masks": {"languages": ["en", 1], "roots": ["encoder"]}},
            "an item of masks.languages is '1', expected a string",
        ),
        ({"masks": {"languages": ["en", "nl"]}}, "it lacks 'roots'"),
        ({"masks": None}, "masks is 'None', expected an object"),
        ({"training_options": "a"}, r"model.json is damaged \(training_options is 'a', expected an object\)"),
        ({"license": 1}, "license is '1', expected a string"),
        ({"union_density": "1"}, "union_density is '1', expected a number"),
        ({"languages": {"en": {"sparsity": "a"}}}, "languages.en.sparsity is 'a', expected a number"),
        ({"sha256": {"bpe.model": 1}}, "sha256.bpe.model is '1', expected a string"),
    ],
)
def test_hostile_cards_are_rejected(package, changes, message):
    change_card(package, **changes)
    with pytest.raises(PackageError, match=message):
        read_package(package)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"codes_words": torch.arange(1, 9, dtype=torch.int32)}, "the coded entries do not end"),
        ({"codes_words": torch.zeros(8, dtype=torch.int32)}, ""),
        ({"codes_words": torch.ones(8, dtype=torch.float64)}, "words of the codes is torch.float64: expected"),
        ({"codes_counts": torch.zeros(1, 2, dtype=torch.int16)}, "frequencies without positive entries"),
        ({"codes_counts": torch.full((1, 2), -1, dtype=torch.int16)}, "frequencies without positive entries"),
        ({"codes_counts": torch.full((1, 2), torch.nan)}, "counts of the codes is torch.float32: expected"),
        ({"codes_alphabet": torch.zeros(0, dtype=torch.int64)}, r"tables of \(1, 2\) for \(0,\) codes"),
        ({"values": torch.zeros(3, dtype=torch.float16)}, "values has 3 entries: expected at least"),
        ({"values": torch.zeros(10000, dtype=torch.float16)}, "values has 10000 entries: expected"),
        ({"quantized": torch.zeros(3, dtype=torch.int64)}, "quantized is torch.int64 of shape"),
        ({"scales": torch.zeros(2, 2)}, r"scales is torch.float32 of shape \(2, 2\)"),
    ],
)
def test_hostile_tensors_are_rejected(package, changes, reason):
    change_tensors(package, **changes)
    with pytest.raises(PackageError, match=rf"pathways.safetensors is damaged \(.*{reason}"):
        read_package(package)


def test_level_norm_of_the_model_is_kept(package):
    features = read_json(package / CARD_FILE)["features"]
    for level_norm in ("none", "running-max"):
        change_card(package, features=features | {"level_norm": level_norm})
        assert Pathways.from_pretrained(package)._trained.data_config.fbank.level_norm == level_norm
    change_card(package, features=features | {"level_norm": "other"})
    with pytest.raises(PackageError, match="this version computes"):
        read_package(package)


@pytest.mark.parametrize("name", ["license", "languages", "union_density", "training_options"])
def test_cards_without_optional_fields_and_with_unknown_ones_are_read(package, name):
    """Such as a card without the training options, whose paths are private."""
    card = read_json(package / CARD_FILE)
    del card[name]
    card["masks"]["later"] = card["later"] = [1]
    write_json(package / CARD_FILE, card)
    trained = Pathways.from_pretrained(package)._trained
    assert trained.options["model"] == card["model"]


def _nodes(value, path=()):
    """Yield the paths of all values inside a card."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from _nodes(item, (*path, key))


@given(data=st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_card_is_a_package_error_or_is_read(package, packages, data):
    card = read_json(packages / "int8" / CARD_FILE)
    *parents, key = data.draw(st.sampled_from([path for path in _nodes(card) if path]))
    container = card
    for parent in parents:
        container = container[parent]
    if data.draw(st.booleans()):
        container[key] = data.draw(JSON)
    else:
        del container[key]
    text = json.dumps(card)
    if data.draw(st.integers(0, 3)) == 0:
        text = text[: data.draw(st.integers(0, len(text)))]
    (package / CARD_FILE).write_text(text, encoding="utf-8")
    try:
        Pathways.from_pretrained(package)
    except PackageError as error:
        assert str(package) in str(error)


def test_a_card_with_an_integer_of_5000_digits_is_damaged(package):
    (package / CARD_FILE).write_text(f'{{"version": {"1" * 5000}}}', encoding="utf-8")
    with pytest.raises(PackageError, match=r"model.json is damaged \(.*is not valid JSON"):
        read_package(package)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize(("precision", "tensor"), [("float32", "values"), ("float16", "values"), ("int8", "scales")])
def test_packages_with_weights_that_are_not_finite_are_rejected(packages, tmp_path, precision, tensor, value):
    package = shutil.copytree(packages / precision, tmp_path / "package")
    values = load_file(package / WEIGHTS_FILE)[tensor]
    values[0] = value
    change_tensors(package, **{tensor: values})
    with pytest.raises(PackageError, match=r"pathways.safetensors is damaged \(\S+ has \d+ NaN or infinite of"):
        read_package(package)


def test_models_with_weights_that_are_not_finite_are_not_exported(packages):
    package = read_package(packages / "float32")
    name = next(iter(package.masks.codes))
    package.model.get_parameter(name).data.view(-1)[0] = torch.nan
    with pytest.raises(ValueError, match=f"{name} has 1 NaN"):
        write_package(packages / "nan", package.card, package.model, package.masks, package.tokenizer)
    assert not (packages / "nan").exists()


def test_checkpoints_with_weights_that_are_not_finite_are_rejected(packages, tmp_path):
    path = shutil.copytree(packages / "exp", tmp_path / "exp") / "checkpoint-5.pt"
    checkpoint = checkpoints.read(path)
    name = next(name for name in checkpoint["model"] if name.endswith("bias"))
    checkpoint["model"][name][0] = checkpoint["model_avg"][name][0] = torch.inf
    checkpoints.save(checkpoint, path)
    with pytest.raises(checkpoints.CheckpointError, match=rf"checkpoint-5.pt is damaged \({name} has 1 NaN or inf"):
        Pathways.from_pretrained(tmp_path / "exp")


def _other_tokenizer(folder, vocab_size, texts=TEXTS):
    folder.mkdir(parents=True, exist_ok=True)
    return train_tokenizer(texts, vocab_size, folder)


OTHER_TEXTS = [text.replace("o", "a") for text in TEXTS]


def test_packages_with_the_tokenizer_of_another_model_are_rejected(package, tmp_path):
    for vocab_size, texts, reason in (
        (VOCAB_SIZE - 1, TEXTS, f"bpe.model has {VOCAB_SIZE - 1} tokens and the model {VOCAB_SIZE}"),
        (VOCAB_SIZE, OTHER_TEXTS, r"line \d+ of \S+tokens.txt is '.* \d+' and that of \S+bpe.model '.* \d+'"),
    ):
        shutil.copy(_other_tokenizer(tmp_path / str(vocab_size), vocab_size, texts), package / layout.BPE_MODEL_FILE)
        change_card(package)
        with pytest.raises(PackageError, match=rf"bpe.model is the tokenizer of another model \(.*{reason}\): copy"):
            read_package(package)
    (package / layout.TOKENS_FILE).unlink()  # not needed
    read_package(package)


@pytest.mark.parametrize("content", [b"", b"text", bytes(100)])
def test_packages_with_a_damaged_tokenizer_are_rejected(package, content):
    (package / layout.BPE_MODEL_FILE).write_bytes(content)
    change_card(package)
    with pytest.raises(PackageError, match=r"bpe.model is damaged \(.*copy the whole package again"):
        read_package(package)


def test_experiments_with_the_tokenizer_of_another_model_are_rejected(packages, tmp_path):
    exp_dir = shutil.copytree(packages / "exp", tmp_path / "exp")
    copy_tokenizer(packages / "bpe.model", exp_dir)
    Pathways.from_pretrained(exp_dir)
    shutil.copy(_other_tokenizer(tmp_path, VOCAB_SIZE, OTHER_TEXTS), exp_dir)
    with pytest.raises(ValueError, match=r"line \d+ of .*pass the SentencePiece model of its training to --bpe-model"):
        Pathways.from_pretrained(exp_dir)


def test_models_are_not_exported_with_the_tokenizer_of_another(packages, tmp_path):
    package, tokenizer = read_package(packages / "int8"), Tokenizer(_other_tokenizer(tmp_path, VOCAB_SIZE - 1))
    size = f"has {VOCAB_SIZE - 1} tokens and the model {VOCAB_SIZE}"
    with pytest.raises(ValueError, match=size):
        write_package(tmp_path / "package", package.card, package.model, package.masks, tokenizer)
    with pytest.raises(ValueError, match=size):
        Pathways.from_pretrained(packages / "int8", bpe_model=tokenizer.model_path)


UNIGRAMS = {language: [-1.0] * VOCAB_SIZE for language in ("en", "nl")}


@pytest.mark.parametrize(
    ("offsets", "unigrams", "reason"),
    [
        ({"en": 0.0, "nl": 0.0}, UNIGRAMS | {"nl": [-1.0] * 9}, "has 9 unigrams of nl, and the model 24 tokens"),
        ({"en": 0.0, "nl": 0.0}, {"en": UNIGRAMS["en"]}, "is not calibrated for nl"),
        ({"nl": 0.0}, UNIGRAMS, "is not calibrated for en"),
    ],
)
def test_packages_with_the_language_identification_of_another_model_are_rejected(package, offsets, unigrams, reason):
    path = package / layout.LANGUAGE_ID_FILE
    LanguageIdModel({}, offsets, unigrams).save(path)
    with pytest.raises(PackageError, match=rf"language_id.json does not belong to the package \(.*{reason}\): copy"):
        Pathways.from_pretrained(package)
    path.write_text("{}", encoding="utf-8")
    with pytest.raises(PackageError, match=r"language_id.json is damaged"):
        Pathways.from_pretrained(package)
    LanguageIdModel({}, {"en": 0.0, "nl": 0.0}, UNIGRAMS).save(path)
    Pathways.from_pretrained(package)


def test_models_with_an_empty_mask_are_rejected(packages, tmp_path):
    package = read_package(packages / "float32")
    masks = package.masks.excluding(["nl"])
    empty = r"the mask of nl is empty, expected weights that the language uses"
    with pytest.raises(MasksError, match=empty):
        write_package(tmp_path / "package", package.card, package.model, masks, package.tokenizer)
    masks.check_not_empty = lambda: None
    write_package(tmp_path / "package", package.card, package.model, masks, package.tokenizer)
    with pytest.raises(PackageError, match=rf"pathways.safetensors is damaged \({empty}"):
        read_package(tmp_path / "package")
    experiment = shutil.copytree(packages / "exp", tmp_path / "exp")
    PathwayMasks(masks.header, masks.codes).save(experiment / layout.MASKS_FILE)
    with pytest.raises(MasksError, match=empty):
        Pathways.from_pretrained(experiment)
