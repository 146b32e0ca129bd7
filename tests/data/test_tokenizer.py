"""SentencePiece: ids, round trips, reproducible files, and errors that state the limits."""

import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from icefall_pathways.data.tokenizer import Tokenizer, train_tokenizer

TEXTS = [
    "twenty-one men went o'er the hill",
    "l'œuvre de la forêt était déjà là",
    "perché la città è più lontana",
    "één geïnteresseerde zeeën coördinatie",
    "die straße führt über den fluß",
    "zażółć gęślą jaźń",
] * 5


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_tokenizer(iter(TEXTS), 60, tmp_path_factory.mktemp("lang"))


def test_token_table_starts_with_the_special_tokens(model_path: Path) -> None:
    lines = (model_path.parent / "tokens.txt").read_text(encoding="utf-8").splitlines()
    assert lines[:3] == ["<blk> 0", "<sos/eos> 1", "<unk> 2"]
    assert [int(line.split()[1]) for line in lines] == list(range(60))
    tokenizer = Tokenizer(model_path)
    assert tokenizer.vocab_size == 60
    assert tokenizer.blank_id == 0


def test_encoding_and_decoding_restores_texts_of_every_language(model_path: Path) -> None:
    tokenizer = Tokenizer(model_path)
    tokens = tokenizer.encode(TEXTS)
    assert tokenizer.decode(tokens) == TEXTS
    assert all(token > 2 for ids in tokens for token in ids)
    assert tokenizer.encode([]) == []


def test_texts_are_converted_for_an_upper_case_model(tmp_path: Path) -> None:
    """An example is icefall's model for LibriSpeech, whose transcripts are in upper case."""
    tokenizer = Tokenizer(train_tokenizer([text.upper() for text in TEXTS[:2] * 9], 33, tmp_path))
    assert not any(symbol[-1].islower() for symbol in tokenizer.symbols[3:])
    texts = ["twenty-one men went", "l'œuvre était là"]
    assert tokenizer.decode(tokenizer.encode(texts)) == texts
    assert all(token > 2 for ids in tokenizer.encode(texts) for token in ids)
    assert tokenizer.uncovered("o'er ж") == {"ж"}


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(st.sampled_from("aéœçñß'½ﬁ\u00a0\u200b*-"), max_size=5), max_size=5).map(" ".join))
def test_words_do_not_depend_on_the_unicode_normalization(model_path: Path, text: str) -> None:
    """Training composes characters, so that scoring has to."""
    tokenizer = Tokenizer(model_path)
    forms = [unicodedata.normalize(form, text) for form in ("NFC", "NFD", "NFKC", "NFKD")]
    assert all(tokenizer.words(form) == tokenizer.words(text) for form in forms)
    assert all(tokenizer.encode([form]) == tokenizer.encode([text]) for form in forms)
    assert tokenizer.words(" ".join(tokenizer.words(text))) == tokenizer.words(text)


def test_words_of_a_decoded_text_are_those_of_the_transcript(model_path: Path) -> None:
    tokenizer = Tokenizer(model_path)
    for text in TEXTS:
        decoded = tokenizer.decode(tokenizer.encode([unicodedata.normalize("NFD", text)]))[0]
        assert tokenizer.words(decoded) == tokenizer.words(text) == text.split()
    assert tokenizer.uncovered(unicodedata.normalize("NFD", "été ж")) == {"ж"}


def test_unknown_character_is_encoded_as_unk(model_path: Path) -> None:
    assert 2 in Tokenizer(model_path).encode(["ж"])[0]


def test_training_is_reproducible(model_path: Path, tmp_path: Path) -> None:
    again = train_tokenizer(TEXTS, 60, tmp_path / "deep" / "folder")
    assert again.read_bytes() == model_path.read_bytes()
    assert (again.parent / "tokens.txt").read_bytes() == (model_path.parent / "tokens.txt").read_bytes()


def test_error_of_a_too_large_vocabulary_states_the_maximum(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"5000 is too large .* at most \d+ tokens") as error:
        train_tokenizer(TEXTS, 5000, tmp_path)
    assert list(tmp_path.iterdir()) == []
    largest = int(str(error.value).split("at most ")[1].split()[0])
    train_tokenizer(TEXTS, largest, tmp_path)
    with pytest.raises(ValueError, match="too large"):
        train_tokenizer(TEXTS, largest + 1, tmp_path)


def test_error_of_a_too_small_vocabulary_states_the_minimum(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"10 is too small .* at least \d+ tokens"):
        train_tokenizer(TEXTS, 10, tmp_path)


def test_training_without_text_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no transcripts"):
        train_tokenizer(["", "  "], 60, tmp_path)


def test_a_missing_model_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no SentencePiece model .*bpe.model: run prepare.sh"):
        Tokenizer(tmp_path / "bpe.model")


def test_a_damaged_model_is_an_error(tmp_path: Path, model_path: Path) -> None:
    (tmp_path / "bpe.model").write_bytes(model_path.read_bytes()[:200])
    with pytest.raises(ValueError, match="damaged"):
        Tokenizer(tmp_path / "bpe.model")


def test_uncovered_characters_are_returned(model_path: Path) -> None:
    tokenizer = Tokenizer(model_path)
    assert tokenizer.uncovered("") == set()
    known = next(symbol for symbol in tokenizer.symbols[3:] if len(symbol) == 1 and symbol.isalpha())
    assert tokenizer.uncovered(known * 3) == set()
    assert tokenizer.uncovered(f"{known}Ж{known} ") == {"Ж"}
