import pytest

from icefall_pathways.languages import LANGUAGES, UnknownLanguageError, get_language, parse_languages


def test_code_and_name_give_the_same_language():
    assert all(get_language(code) is get_language(language.name) is language for code, language in LANGUAGES.items())
    assert len(LANGUAGES) == 8


def test_a_language_nobody_knows_is_named_with_what_is_known():
    with pytest.raises(UnknownLanguageError, match=r"'klingon'.*en \(english\).*pl \(polish\)"):
        get_language("klingon")


def test_a_list_keeps_its_order_and_refuses_repeats():
    assert [language.code for language in parse_languages("nl, french en")] == ["nl", "fr", "en"]
    with pytest.raises(ValueError, match="named twice"):
        parse_languages("en english")
    with pytest.raises(ValueError, match="no language given"):
        parse_languages(" ")
