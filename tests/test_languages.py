"""Languages by code and name."""

import json
from dataclasses import dataclass

import pytest

from icefall_pathways import options
from icefall_pathways.data.datamodule import DataConfig
from icefall_pathways.languages import LANGUAGES, LanguageList, UnknownLanguageError, get_language, parse_languages


def test_code_and_name_refer_to_the_same_language():
    assert all(get_language(code) is get_language(language.name) is language for code, language in LANGUAGES.items())
    assert len({language.name for language in LANGUAGES.values()}) == len(LANGUAGES)


def test_unknown_language_error_lists_the_supported_languages():
    with pytest.raises(UnknownLanguageError, match=r"'klingon'.*en \(english\).*pl \(polish\)"):
        get_language("klingon")


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
        options.parse(Config, "", ["--languages", "en klingon"])
    assert "unknown language 'klingon'" in "".join(capsys.readouterr())


def test_languages_of_a_configuration_survive_a_json_round_trip_and_may_be_strings():
    config = DataConfig(languages="french en")
    assert config.languages == ("fr", "en")
    stored = json.loads(json.dumps(options.to_dict(config)))
    assert stored["languages"] == ["fr", "en"]
    assert options.from_dict(DataConfig, stored) == options.from_dict(DataConfig, stored | {"languages": "fr en"})
