"""Lists of languages in command-line options."""

from collections.abc import Iterable
from typing import Annotated

import tyro

from icefall_pathways.languages.registry import Language, get_language
from icefall_pathways.languages.tags import LanguageCode

#: The languages of the ASR pathways paper.
DEFAULT_LANGUAGES = (LanguageCode("en"), LanguageCode("fr"), LanguageCode("it"), LanguageCode("nl"))


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
