"""Languages by code and name, their alphabets and scripts."""

import json
import re
import string
import unicodedata
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from icefall_pathways import options
from icefall_pathways.data.datamodule import DataConfig
from icefall_pathways.languages import (
    MLS_LANGUAGES,
    LanguageList,
    UnknownLanguageError,
    alphabet,
    built_in_languages,
    canonical_language,
    get_language,
    is_language_code,
    is_right_to_left,
    parse_languages,
    scored_by_characters,
)

BUILT_IN = built_in_languages()

ACCENTED = {
    "en": ("english", "éèêçñïö"),
    "fr": ("french", "àâæçéèêëîïôœùûüÿ"),
    "it": ("italian", "àèéìíîòóùú"),
    "nl": ("dutch", "áàâäçéèêëíïóôöúûü"),
    "de": ("german", "äöüßéèêàâç"),
    "es": ("spanish", "áéíñóúüï"),
    "pt": ("portuguese", "àáâãçéêíòóôõúü"),
    "pl": ("polish", "ąćęłńóśźż"),
}


def test_the_languages_of_mls_keep_their_codes_names_and_alphabets():
    assert {code: (lang.name, lang.alphabet) for code, lang in MLS_LANGUAGES.items()} == {
        code: (name, frozenset(string.ascii_lowercase + accented + "'- "))
        for code, (name, accented) in ACCENTED.items()
    }
    assert list(MLS_LANGUAGES) == list(ACCENTED)


def test_most_languages_that_are_written_have_an_alphabet():
    assert len(BUILT_IN) > 300
    scripts = {language.script for language in BUILT_IN}
    assert scripts >= {"Latn", "Cyrl", "Grek", "Deva", "Arab", "Hebr", "Armn", "Geor", "Ethi", "Thai", "Kore", "Beng"}


def test_code_and_name_refer_to_the_same_language():
    for language in BUILT_IN:
        code, name = language.code, language.name
        for text in (code, code.upper(), code.replace("-", "_"), name, name.replace("_", " ").title()):
            assert get_language(text) is language, text
        assert is_language_code(code)
        assert re.fullmatch(r"[a-z0-9_]+", name), "manifest names separate corpus and language by a hyphen"


def test_an_alphabet_holds_normalized_lower_case_letters_and_word_punctuation():
    for language in BUILT_IN:
        assert language.alphabet > set("'- "), language
        assert all(unicodedata.is_normalized("NFC", character) for character in language.alphabet), language
        assert not any(character.isupper() or character.isdigit() for character in language.alphabet), language
        assert not language.alphabet & set('.,?!:;"()&%@'), language
        assert language.punctuation >= set('.,?!:;"'), language


def test_names_of_languages_are_unique():
    assert len({language.name for language in BUILT_IN}) == len(BUILT_IN)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        *(("FR", "fr"), ("French", "fr"), (" fr ", "fr"), ("fra", "fr"), ("fre", "fr"), ("deu", "de"), ("cmn", "zh")),
        *(("pt-BR", "pt"), ("pt_br", "pt"), ("pt-PT", "pt-PT"), ("sv-SE", "sv"), ("sv-FI", "sv-FI"), ("en_us", "en")),
        *(("zh-CN", "zh"), ("cmn_hans_cn", "zh"), ("zh-TW", "zh-TW"), ("zh-Hant", "zh-TW"), ("yue_hant_hk", "yue")),
        *(
            ("es_419", "es-419"),
            ("sr_rs", "sr"),
            ("sr-latn", "sr-Latn"),
            ("sh", "sr-Latn"),
            ("rm-sursilv", "rm-sursilv"),
        ),
        *(("iw", "he"), ("norwegian bokmål", "nb"), ("Norwegian_Bokmal", "nb"), ("Mandarin Chinese", "zh")),
        *(("Brazilian Portuguese", "pt"), ("european_portuguese", "pt-PT"), ("swedish_fi", "sv-FI")),
        *(("xyz", "xyz"), ("XYZ", "xyz"), ("x-simlish", "x-simlish"), ("X_Simlish", "x-simlish"), ("klingon", "tlh")),
        *(("ga", "ga"), ("gaa", "gaa"), ("Tok Pisin", "tpi"), ("tok-pisin", "tpi"), ("Mi'kmaw", "mic")),
    ],
)
def test_spellings_of_a_language_have_one_code(text, code):
    assert canonical_language(text) == canonical_language(code) == code


@given(st.from_regex(r"[a-z]{2,3}([-_][A-Z][a-z]{3})?([-_]([A-Z]{2}|[0-9]{3}))?", fullmatch=True))
def test_canonical_codes_and_their_names_are_canonical(text):
    code = canonical_language(text)
    assert canonical_language(code) == code
    assert get_language(code).name == get_language(get_language(code).name).name


@pytest.mark.parametrize(
    ("text", "suggestion"),
    [("frensh", r"french \(fr\)"), ("Polisch", r"polish \(pl\)"), ("ukranian", r"ukrainian \(uk\)")],
)
def test_an_unknown_language_error_suggests_similar_names(text, suggestion):
    with pytest.raises(UnknownLanguageError, match=rf"unknown language '{text}' \(did you mean .*{suggestion}"):
        canonical_language(text)


@pytest.mark.parametrize("text", ["", "e", "en fr", "simlish9", "en-", "x-", "../en", "en/us", "zz-Q"])
def test_texts_that_are_not_languages_are_rejected(text):
    with pytest.raises(UnknownLanguageError, match="expected an English name"):
        canonical_language(text)


def test_a_language_that_cldr_does_not_list_has_no_alphabet():
    language = get_language("xyz")
    assert (language.code, language.name, language.alphabet) == ("xyz", "xyz", None)
    assert get_language("x-my-dialect").name == "x_my_dialect"
    assert not language.right_to_left and not language.scored_by_characters


def test_alphabets_of_other_scripts():
    assert alphabet("ru") >= set("абвгдеёжзийклмнопрстуфхцчшщъыьэюя") and not alphabet("ru") & set("abc")
    assert alphabet("el") >= set("αάβγδεέζηήθιίϊΐκλμνξοόπρσςτυύϋΰφχψωώ")
    assert alphabet("hi") >= set(unicodedata.normalize("NFC", "क़ख्याहिन्दीँ")) and alphabet("ar") >= set("ابتثجءآأؤة")
    assert alphabet("he") >= set("אבגדהוזחטיךםןףץ״") and alphabet("ca") >= set("ç·") and alphabet("uk") >= set("ґєіїʼ")
    assert alphabet("ko") >= set("한국어각힣") and alphabet("th") >= set("ภาษาไทย")
    assert alphabet("pt-PT") == alphabet("pt") and alphabet("de-CH") == alphabet("de")
    assert alphabet("sr-Latn") >= set("čćž") and alphabet("sr") >= set("ђћџ") and not alphabet("sr") & set("č")
    assert "؟" in get_language("ar").punctuation and "।" in get_language("hi").punctuation


RIGHT_TO_LEFT = ("ar", "he", "fa", "ur", "ps", "yi", "dv", "ckb", "pa-PK", "az-IR")
WITHOUT_SPACES = ("zh", "zh-TW", "yue", "ja", "th", "lo", "km", "my", "bo")
OTHERS = ("en", "ru", "hi", "pa", "az", "ko", "vi", "xyz")


def test_right_to_left_scripts():
    codes = RIGHT_TO_LEFT + WITHOUT_SPACES + OTHERS
    assert tuple(code for code in codes if is_right_to_left(code)) == RIGHT_TO_LEFT


def test_languages_without_spaces_are_scored_by_characters():
    codes = RIGHT_TO_LEFT + WITHOUT_SPACES + OTHERS
    assert tuple(code for code in codes if scored_by_characters(code)) == WITHOUT_SPACES
    assert alphabet("zh") is alphabet("ja") is None, "characters are an open class there"
    assert not any(scored_by_characters(code) for code in MLS_LANGUAGES)


def test_parse_languages_keeps_the_order_and_rejects_duplicates():
    assert [language.code for language in parse_languages("nl, french en")] == ["nl", "fr", "en"]
    with pytest.raises(ValueError, match="duplicate language"):
        parse_languages("en english")
    with pytest.raises(ValueError, match="no languages given"):
        parse_languages(" ")


@dataclass(frozen=True)
class Config:
    languages: LanguageList = ()
    """Languages."""

    beam: int = 4
    """Beam."""


@pytest.mark.parametrize("words", [["en fr"], ["en,french"], ["en", "fr"], ["english, fr"]])
def test_language_option_accepts_codes_and_names_in_one_or_several_words(words):
    config = options.parse(Config, "", ["--languages", *words, "--beam", "8"])
    assert config == Config(("en", "fr"), 8)


def test_language_option_may_be_empty_and_rejects_unknown_languages(capsys):
    assert options.parse(Config, "", ["--languages", ""]) == options.parse(Config, "", []) == Config(())
    with pytest.raises(SystemExit):
        options.parse(Config, "", ["--languages", "en elvish"])
    assert "unknown language 'elvish'" in "".join(capsys.readouterr())


def test_languages_of_a_configuration_survive_a_json_round_trip_and_may_be_strings():
    config = DataConfig(languages="french en")
    assert config.languages == ("fr", "en")
    stored = json.loads(json.dumps(options.to_dict(config)))
    assert stored["languages"] == ["fr", "en"]
    assert options.from_dict(DataConfig, stored) == options.from_dict(DataConfig, stored | {"languages": "fr en"})
