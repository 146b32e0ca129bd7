"""The languages of Multilingual LibriSpeech: code, folder name and alphabet."""

from dataclasses import dataclass

_LATIN = "abcdefghijklmnopqrstuvwxyz"
_MARKS = "'-"  # MLS keeps the apostrophe and the hyphen, and no other punctuation


class UnknownLanguageError(ValueError):
    """A language that is not one of MLS's eight."""


@dataclass(frozen=True)
class Language:
    """One language.

    Attributes:
      code: ISO 639-1 code, the tag of every supervision ("fr").
      name: MLS's name, part of its folder names ("french").
      alphabet: Every character a normalised transcript may hold, the space included.
    """

    code: str
    name: str
    alphabet: frozenset[str]


def _language(code: str, name: str, accented: str) -> Language:
    return Language(code, name, frozenset(_LATIN + accented + _MARKS + " "))


# Accented letters are those the language's own orthography uses, loan words included.
LANGUAGES: dict[str, Language] = {
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
    """Look a language up by its code ("fr") or its MLS name ("french").

    Raises:
      UnknownLanguageError: It is neither; the message lists what is known.
    """
    for language in LANGUAGES.values():
        if tag.lower() in (language.code, language.name):
            return language
    known = ", ".join(f"{language.code} ({language.name})" for language in LANGUAGES.values())
    raise UnknownLanguageError(f"unknown language {tag!r}: expected one of {known}")


def codes_of(tags: str) -> list[str]:
    """The codes of a list of languages as options give it; see `parse_languages`."""
    return [language.code for language in parse_languages(tags)]


def parse_languages(tags: str) -> list[Language]:
    """Read a list of languages as options give it: codes or names with spaces or commas between them.

    Raises:
      UnknownLanguageError: One of them is not a language of MLS.
      ValueError: The list is empty or names a language twice.
    """
    languages = [get_language(tag) for tag in tags.replace(",", " ").split()]
    if not languages:
        raise ValueError('no language given: expected a list such as "en fr it nl"')
    codes = [language.code for language in languages]
    if len(set(codes)) < len(codes):
        raise ValueError(f"a language is named twice in {tags!r}: name each once")
    return languages
