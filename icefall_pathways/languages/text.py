"""Normalization of transcripts, which determines the vocabulary and the words that error rates count."""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

from icefall_pathways.languages.registry import Language
from icefall_pathways.languages.tags import parse_tag

_APOSTROPHE, _HYPHEN, _LETTER_APOSTROPHE = "'", "-", "ʼ"
_APOSTROPHES = "’‘‛`´′＇ʹʻʼ׳"
_HYPHENS = "‐‑﹣－־"
_QUOTATION_MARKS = "“”„‟«»‹›″＂〝〞〟「」『』"
_READ_ALOUD = "%&@#§‰٪؉"  # signs of the category of punctuation that stand for words
_INVISIBLE = "\u0640"  # the tatweel, which stretches Arabic words; other invisible characters have the category Cf
_WORD_PUNCTUATION = "'-·״"  # part of a word between letters, if the language has it
_DOTTED_I_LANGUAGES = ("tr", "az", "crh", "gag")


@dataclass(frozen=True)
class TextOptions:
    """Options of the normalization of transcripts.

    Attributes:
      keep_case: Keep upper-case letters.
      keep_punctuation: Keep the punctuation of sentences, and quotation marks as ".
    """

    keep_case: bool = False
    keep_punctuation: bool = False


def normalize_text(text: str) -> str:
    """Return a transcript in Unicode normalization form C, as alphabets are, with single spaces between words."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def normalize_transcript(text: str, language: Language, options: TextOptions) -> str:
    """Return the normalized transcript of an utterance; the function is idempotent.

    1. Unicode normalization form C; invisible characters are removed, except for the joiners that a language writes.
    2. Lower case, unless `keep_case`, by the rules of the language: Turkish I is ı, a Greek sigma is ς at the end of a
       word, German ẞ is ß.
    3. Variants of apostrophes, hyphens and quotation marks are replaced by one: ’ by ' (by ʼ if the language has this
       letter), ‐ by -, and „ “ « » by ".
    4. Hyphens between letters are kept, and apostrophes next to letters (l'eau, po', 's), unless they are quotation
       marks. Other punctuation is removed; with `keep_punctuation`, that in `Language.punctuation` is kept, without a
       space before it.
    5. Single spaces between words.

    Digits, and signs that are read aloud (% & @ + € ...), are kept, so that `foreign_characters` reports them: without
    them, the text would differ from the speech.
    """
    text = unicodedata.normalize("NFC", _without_invisible(unicodedata.normalize("NFC", text), language))
    if not options.keep_case:
        text = unicodedata.normalize("NFC", _lower(text, language))
    text = _with_common_signs(text, language)
    quoted = _is_quoted_by_apostrophes(text)
    kept = language.punctuation if options.keep_punctuation else frozenset[str]()
    text = "".join(_kept_or_space(text, i, language, kept, quoted) for i in range(len(text)))
    return normalize_text(_without_space_before(kept, text))


@cache
def accepted_characters(language: Language, options: TextOptions) -> frozenset[str] | None:
    """Return the characters of normalized transcripts, or None if the alphabet of the language is not known."""
    if language.alphabet is None:
        return None
    characters = set(language.alphabet)
    if options.keep_case:
        characters.update(_capitals(language))
    return frozenset(characters | language.punctuation if options.keep_punctuation else characters)


def foreign_characters(text: str, language: Language, options: TextOptions | None = None) -> str:
    """Return the distinct characters of `text` that a transcript of the language cannot have, sorted.

    If the alphabet is not known, these are all but letters and their marks, spaces, apostrophes, hyphens and, if kept,
    punctuation.
    """
    options = options or TextOptions()
    accepted = accepted_characters(language, options)
    if accepted is not None:
        return "".join(sorted(set(text) - accepted))
    others = {" ", _APOSTROPHE, _HYPHEN} | (language.punctuation if options.keep_punctuation else set())
    return "".join(sorted(character for character in set(text) - others if not _is_letter(character)))


def scored_units(words: Sequence[str], by_characters: bool) -> list[str]:
    """Return the units that error rates count: the words, or their characters (Unicode code points)."""
    return list("".join(words)) if by_characters else list(words)


def _is_letter(character: str) -> bool:
    return unicodedata.category(character)[0] in "LM"


def _uses_dotted_i(language: Language) -> bool:
    tag = parse_tag(language.code)
    return tag is not None and tag.language in _DOTTED_I_LANGUAGES and language.script == "Latn"


def _lower(text: str, language: Language) -> str:
    if _uses_dotted_i(language):
        text = text.replace("I", "ı").replace("İ", "i")
    return text.replace("İ", "i").lower()  # by default, the lower case of İ has a combining dot


def _capitals(language: Language) -> Iterator[str]:
    """Yield the upper-case letters of a language."""
    for character in language.alphabet or ():
        if _uses_dotted_i(language) and character in "iı":
            yield "İ" if character == "i" else "I"
        elif len(upper := unicodedata.normalize("NFC", character.upper())) == 1:
            yield upper
        elif character == "ß":
            yield "ẞ"


def _without_invisible(text: str, language: Language) -> str:
    letters = language.alphabet or frozenset()
    return "".join(character for character in text if character in letters or not _is_invisible(character))


def _is_invisible(character: str) -> bool:
    is_selector = "\ufe00" <= character <= "\ufe0f"
    return unicodedata.category(character) == "Cf" or is_selector or character in _INVISIBLE


def _with_common_signs(text: str, language: Language) -> str:
    """Replace variants of signs by the one that the language uses."""
    letters = language.alphabet or frozenset()
    for variants, sign in ((_APOSTROPHES, _APOSTROPHE), (_HYPHENS, _HYPHEN), (_QUOTATION_MARKS, '"')):
        text = text.translate({ord(variant): sign for variant in variants if variant not in letters})
    text = text.replace("…", "...")
    if _LETTER_APOSTROPHE in letters:
        text = re.sub(r"(?<=\w)'(?=\w)", _LETTER_APOSTROPHE, text)
    if "״" in letters:  # an abbreviation in Hebrew
        text = re.sub(r'(?<=\w)"(?=\w)', "״", text)
    return text


def _without_space_before(punctuation: frozenset[str], text: str) -> str:
    closing = re.escape("".join(sorted(punctuation - set('¿¡"'))))
    return re.sub(rf"\s+([{closing}])", r"\1", text) if closing else text


def _neighbors(text: str, index: int) -> tuple[bool, bool]:
    """Return whether the characters before and after a position are letters."""
    before, after = text[index - 1 : index] if index else "", text[index + 1 : index + 2]
    return bool(before) and _is_letter(before), bool(after) and _is_letter(after)


def _is_quoted_by_apostrophes(text: str) -> bool:
    """Return True if apostrophes are at the start and at the end of words, as in 'no way'."""
    positions = {_neighbors(text, index) for index, character in enumerate(text) if character == _APOSTROPHE}
    return {(False, True), (True, False)} <= positions


def _kept_or_space(text: str, index: int, language: Language, kept: frozenset[str], quoted: bool) -> str:
    """Return the character at a position, or a space if it is removed."""
    character = text[index]
    if unicodedata.category(character)[0] == "C" and not _is_invisible(character):
        return " "
    if unicodedata.category(character)[0] != "P" or character in kept or character in _READ_ALOUD:
        return character
    if character not in (language.alphabet or " '-"):
        return " "
    if character not in _WORD_PUNCTUATION:
        return character
    before, after = _neighbors(text, index)
    at_edge = character == _APOSTROPHE and not quoted and (before or after)
    return character if (before and after) or at_edge else " "
