"""The supported languages: code, name and alphabet."""

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, NewType

import tyro

#: An ISO 639-1 language code, such as "fr".
LanguageCode = NewType("LanguageCode", str)

_LATIN = "abcdefghijklmnopqrstuvwxyz"
_PUNCTUATION = "'-"  # the only punctuation in transcripts of MLS


class UnknownLanguageError(ValueError):
    """The language is not one of `LANGUAGES`."""


@dataclass(frozen=True)
class Language:
    """A language.

    Attributes:
      code: ISO 639-1 code, such as "fr"; the `language` of every supervision.
      name: English name, such as "french"; part of the names of manifests and of MLS folders.
      alphabet: All characters of a normalized transcript, including the space.
    """

    code: LanguageCode
    name: str
    alphabet: frozenset[str]


def _language(code: str, name: str, accented: str) -> Language:
    return Language(LanguageCode(code), name, frozenset(_LATIN + accented + _PUNCTUATION + " "))


# The accented letters of each language's orthography, including those of loan words.
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


#: The languages of the ASR pathways paper.
DEFAULT_LANGUAGES = (LanguageCode("en"), LanguageCode("fr"), LanguageCode("it"), LanguageCode("nl"))


def normalize_text(text: str) -> str:
    """Return a transcript in Unicode normalization form C, as alphabets are, with single spaces between words."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def get_language(tag: str) -> Language:
    """Return the language with the given code ("fr") or name ("french").

    Raises:
      UnknownLanguageError: There is no such language; the message lists all supported languages.
    """
    for language in LANGUAGES.values():
        if tag.lower() in (language.code, language.name):
            return language
    known = ", ".join(f"{language.code} ({language.name})" for language in LANGUAGES.values())
    raise UnknownLanguageError(f"unknown language {tag!r}: expected one of {known}")


def codes_of(tags: str | Iterable[str]) -> list[LanguageCode]:
    """Return the codes of a list of languages; see `parse_languages`."""
    return [language.code for language in parse_languages(tags)]


def parse_languages(tags: str | Iterable[str]) -> list[Language]:
    """Parse a list of languages: codes or names, in a string separated by spaces or commas.

    Raises:
      UnknownLanguageError: One of them is not supported.
      ValueError: The list is empty or contains a language twice.
    """
    words = tags.replace(",", " ").split() if isinstance(tags, str) else list(tags)
    languages = [get_language(word) for word in words]
    if not languages:
        raise ValueError('no languages given: expected a list such as "en fr it nl"')
    codes = [language.code for language in languages]
    if len(set(codes)) < len(codes):
        raise ValueError(f"duplicate language in {' '.join(words)!r}: list each language once")
    return languages


def normalize_languages(tags: str | Iterable[str]) -> tuple[LanguageCode, ...]:
    """Return the codes of a list of languages, which may be empty; see `parse_languages`."""
    text = tags if isinstance(tags, str) else " ".join(tags)
    return tuple(codes_of(text)) if text.strip() else ()


#: Type of an option that lists languages by code or name: `--languages "en fr"`, `en,fr` or `en fr`. A dataclass with
#: such a field should apply `normalize_languages` to it, so that code can pass a string too.
LanguageList = Annotated[
    tuple[LanguageCode, ...],
    tyro.constructors.PrimitiveConstructorSpec(
        nargs="*",
        metavar="LANGUAGES",
        instance_from_str=normalize_languages,
        is_instance=lambda value: isinstance(value, tuple),
        str_from_instance=lambda codes: [" ".join(codes)],
    ),
]
