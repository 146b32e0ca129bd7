import random
from itertools import combinations

import pytest

from icefall_pathways.corpora.mini import MiniCorpusConfig
from icefall_pathways.corpora.mini_speech import VOICES
from icefall_pathways.corpora.mini_text import CONTENTS, check_content, draw_sentence, normalize
from icefall_pathways.languages import MLS_LANGUAGES, get_language


def draw(code: str, split: str, content: tuple[str, ...], count: int, highest: int = 30) -> list[str]:
    rng = random.Random(f"{code}/{split}")
    return [draw_sentence(get_language(code), split, content, highest, 42, rng) for _ in range(count)]


_WITHOUT_NUMBERS = ("bg", "el")
_OFFERED = [
    (code, content) for code in VOICES for content in CONTENTS if content == "names" or code not in _WITHOUT_NUMBERS
]


@pytest.mark.parametrize(("code", "content"), _OFFERED)
def test_sentences_use_only_the_alphabet_of_the_language(code: str, content: str) -> None:
    check_content(get_language(code), (content,))
    for sentence in draw(code, "train", (content,), 200):
        assert set(sentence) <= {*get_language(code).alphabet, " "}
        assert sentence == " ".join(sentence.split()) != ""


@pytest.mark.parametrize("code", MLS_LANGUAGES)
def test_splits_have_disjoint_sentences(code: str) -> None:
    splits = [set(draw(code, split, ("numbers", "calendar"), 400)) for split in ("train", "dev", "test")]
    for first, second in combinations(splits, 2):
        assert not first & second


@pytest.mark.parametrize(
    ("code", "text", "expected"),
    [
        ("en", "Friday, March 21", "friday march twenty one"),
        ("fr", "L’Île-de-France  2", "l'île de france deux"),
        ("de", "3. März", "drei märz"),
        ("en", "Türkiye", ""),
        ("en", "...", ""),
    ],
)
def test_text_is_normalized_or_rejected(code: str, text: str, expected: str) -> None:
    assert normalize(text, get_language(code)) == expected


def test_numbers_are_within_the_range() -> None:
    words = {word for sentence in draw("en", "train", ("numbers",), 500, highest=9) for word in sentence.split()}
    assert words == {"zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"}


def test_large_numbers_in_phrases_are_spelled_out() -> None:
    assert any("one thousand" in sentence for sentence in draw("en", "train", ("phrases",), 500, highest=1500))


@pytest.mark.parametrize("code", MLS_LANGUAGES)
def test_sizes_of_the_vocabularies(code: str) -> None:
    def vocabulary(*content: str) -> int:
        return len({word for sentence in draw(code, "train", content, 1500) for word in sentence.split()})

    assert 15 <= vocabulary("numbers") + 8 < vocabulary("numbers", "calendar") <= 60
    assert vocabulary("phrases") > 600


def test_types_of_sentences_have_equal_shares() -> None:
    sentences = draw("en", "train", ("numbers", "calendar"), 1000)
    calendar = sum(any(word.endswith(("day", "ary", "ber")) for word in sentence.split()) for sentence in sentences)
    assert 300 < calendar < 600  # April to August have other endings


def test_too_few_sentences_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"too few english sentences for a disjoint \w+ split.*--highest-number"):
        for split in ("train", "dev", "test"):
            draw("en", split, ("numbers",), 1, highest=0)


@pytest.mark.parametrize("code", _WITHOUT_NUMBERS)
def test_numbers_in_a_language_without_number_words_are_rejected(code: str) -> None:
    with pytest.raises(ValueError, match=r"no \w+ number words: expected --content names, or other --languages"):
        MiniCorpusConfig(languages=f"en {code}", content="names phrases").check()
    assert MiniCorpusConfig(languages=f"en {code}", content="names").check()
