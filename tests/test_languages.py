import pytest

from icefall_pathways.languages import LANGUAGES, UnknownLanguageError, get_language, parse_languages


def test_code_and_name_refer_to_the_same_language():
    assert all(get_language(code) is get_language(language.name) is language for code, language in LANGUAGES.items())
    assert len(LANGUAGES) == 8


def test_unknown_language_error_lists_the_supported_languages():
    with pytest.raises(UnknownLanguageError, match=r"'klingon'.*en \(english\).*pl \(polish\)"):
        get_language("klingon")


def test_parse_languages_keeps_the_order_and_rejects_duplicates():
    assert [language.code for language in parse_languages("nl, french en")] == ["nl", "fr", "en"]
    with pytest.raises(ValueError, match="duplicate language"):
        parse_languages("en english")
    with pytest.raises(ValueError, match="no languages given"):
        parse_languages(" ")
