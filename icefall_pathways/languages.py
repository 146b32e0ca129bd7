"""The languages of Multilingual LibriSpeech: code, folder name and alphabet."""

from dataclasses import dataclass
from typing import NewType

#: An ISO 639-1 language code, such as "fr".
LanguageCode = NewType("LanguageCode", str)

_LATIN = "abcdefghijklmnopqrstuvwxyz"
_PUNCTUATION = "'-"  # the only punctuation in transcripts of MLS


class UnknownLanguageError(ValueError):
    """The language is not one of the eight languages of MLS."""


@dataclass(frozen=True)
class Language:
    """A language of Multilingual LibriSpeech (MLS).

    Attributes:
      code: ISO 639-1 code, such as "fr"; the `language` of every supervision.
      name: Name in MLS, such as "french"; part of its folder names.
      alphabet: All characters of a normalized transcript, including the space.
    """

    code: LanguageCode
    name: str
    alphabet: frozenset[str]


def _language(code: str, name: str, accented: str) -> Language:
    return Language(LanguageCode(code), name, frozenset(_LATIN + accented + _PUNCTUATION + " "))


# The accented letters of the language's own orthography, including loan words.
LANGUAGES: dict[LanguageCode, Language] = {
    language.code: language
    for language in (
        _language("en", "english", "éèêçñïö"),
        _language("fr", "french", "àâæçéèêëîïôœùûüÿ"),
        _language("it", "italian", "àèéìíîòóùú"),
        _language("nl", "dutch", "áàâäçéèêëíïóôöúûü"),
        _language("de", "german", "äöüßéèêàâç"),
        _language("es", "spanish", "áéíñóúüï"),
        _language("pt", "portuguese", "àáâãçéêíòóôõúü"),
        _language("pl", "polish", "ąćęłńóśźż"),
    )
}


def get_language(tag: str) -> Language:
    """Return the language with the given code ("fr") or MLS name ("french").

    Raises:
      UnknownLanguageError: There is no such language; the message lists all supported languages.
    """
    for language in LANGUAGES.values():
        if tag.lower() in (language.code, language.name):
            return language
    known = ", ".join(f"{language.code} ({language.name})" for language in LANGUAGES.values())
    raise UnknownLanguageError(f"unknown language {tag!r}: expected one of {known}")


def codes_of(tags: str) -> list[LanguageCode]:
    """Return the codes of the languages in an option value; see `parse_languages`."""
    return [language.code for language in parse_languages(tags)]


def parse_languages(tags: str) -> list[Language]:
    """Parse an option value that lists languages: codes or names, separated by spaces or commas.

    Raises:
      UnknownLanguageError: One of them is not a language of MLS.
      ValueError: The list is empty or names a language twice.
    """
    languages = [get_language(tag) for tag in tags.replace(",", " ").split()]
    if not languages:
        raise ValueError('no languages given: expected a list such as "en fr it nl"')
    codes = [language.code for language in languages]
    if len(set(codes)) < len(codes):
        raise ValueError(f"duplicate language in {tags!r}: list each language once")
    return languages
