"""Languages: codes, names, alphabets, scripts, and the normalization of transcripts."""

from icefall_pathways.languages.lists import (
    DEFAULT_LANGUAGES,
    LanguageList,
    codes_of,
    normalize_languages,
    parse_languages,
)
from icefall_pathways.languages.registry import (
    MLS_LANGUAGES,
    Language,
    alphabet,
    built_in_languages,
    get_language,
    is_language,
    is_language_code,
    is_right_to_left,
    language_name,
    scored_by_characters,
)
from icefall_pathways.languages.tags import LanguageCode, UnknownLanguageError, canonical_language
from icefall_pathways.languages.text import (
    TextOptions,
    accepted_characters,
    foreign_characters,
    normalize_text,
    normalize_transcript,
    scored_units,
)

__all__ = [
    "DEFAULT_LANGUAGES",
    "MLS_LANGUAGES",
    "Language",
    "LanguageCode",
    "LanguageList",
    "TextOptions",
    "UnknownLanguageError",
    "accepted_characters",
    "alphabet",
    "built_in_languages",
    "canonical_language",
    "codes_of",
    "foreign_characters",
    "get_language",
    "is_language",
    "is_language_code",
    "is_right_to_left",
    "language_name",
    "normalize_languages",
    "normalize_text",
    "normalize_transcript",
    "parse_languages",
    "scored_by_characters",
    "scored_units",
]
