"""Sentences for the embedded corpus: number words, dates and CLDR phrases, normalised as MLS is."""

import random
import re
import unicodedata
import zlib
from collections.abc import Callable
from functools import cache

from babel import Locale
from babel.dates import get_day_names, get_month_names
from babel.lists import format_list
from babel.units import format_unit
from num2words import num2words

from icefall_pathways.languages import Language

_UNITS = ("duration-day", "duration-hour", "duration-minute", "duration-week", "length-kilometer", "mass-kilogram")
_SPLIT_SHARES = (("test", 12), ("dev", 24), ("train", 100))  # upper bounds of the hash, in percent
_MOST_DRAWS = 10_000


def draw_sentence(
    language: Language, split: str, content: tuple[str, ...], highest_number: int, seed: int, rng: random.Random
) -> str:
    """Draw a sentence of one of the kinds in `content` that belongs to `split`.

    Which split a sentence belongs to hangs on the sentence and the seed alone, so splits never share one.

    Args:
      language: Whose words to use.
      split: "train", "dev" or "test".
      content: Kinds of sentences, drawn with equal chances; see `CONTENTS`.
      highest_number: Numbers go from 0 to this one.
      seed: The corpus's seed.
      rng: Where the draw comes from.

    Raises:
      ValueError: Too few different sentences: none of many draws belongs to the split.
    """
    for _ in range(_MOST_DRAWS):
        sentence = normalise(CONTENTS[rng.choice(content)](language.code, highest_number, rng), language)
        if sentence and _split_of(sentence, language, seed) == split:
            return sentence
    raise ValueError(
        f"{' '.join(content)} with numbers up to {highest_number} has too few {language.name} sentences for a {split} "
        "split of its own: raise --highest-number or add another kind to --content"
    )


def normalise(text: str, language: Language) -> str:
    """Lower case, letters of the alphabet and single spaces only; empty if a letter of another alphabet is in it."""
    text = unicodedata.normalize("NFC", text).lower().replace("’", "'")
    text = re.sub(r"\d+", lambda match: f" {_number(int(match[0]), language.code)} ", text)
    if any(char.isalpha() and char not in language.alphabet for char in text):
        return ""
    text = "".join(char if char.isalpha() or char == "'" else " " for char in text)
    return " ".join(text.split())


def _split_of(sentence: str, language: Language, seed: int) -> str:
    place = zlib.crc32(f"{seed}/{language.code}/{sentence}".encode()) % 100
    return next(split for split, bound in _SPLIT_SHARES if place < bound)


@cache
def _number(number: int, code: str) -> str:
    return num2words(number, lang=code).replace("-", " ")


def _numbers(code: str, highest: int, rng: random.Random) -> str:
    return " ".join(_number(rng.randint(0, highest), code) for _ in range(rng.randint(1, 3)))


def _calendar(code: str, highest: int, rng: random.Random) -> str:
    day, month = rng.choice(_names(code, "days")), rng.choice(_names(code, "months"))
    number = _number(rng.randint(1, min(31, max(1, highest))), code)
    return rng.choice([f"{day} {number} {month}", f"{number} {month}", f"{day} {number}"])


def _phrases(code: str, highest: int, rng: random.Random) -> str:
    kind = rng.randrange(3)
    if kind == 0:
        quantities = [
            format_unit(rng.randint(2, max(2, highest)), unit, locale=code, length="long")
            for unit in rng.sample(_UNITS, rng.randint(1, 2))
        ]
        return format_list(quantities, locale=code)
    names = _names(code, "territories" if kind == 1 else "languages")
    return format_list(rng.sample(names, rng.randint(1, 3)), locale=code)


#: The kinds of sentences: what a small model learns in minutes first, the large vocabulary last.
CONTENTS: dict[str, Callable[[str, int, random.Random], str]] = {
    "numbers": _numbers,
    "calendar": _calendar,
    "phrases": _phrases,
}


@cache
def _names(code: str, kind: str) -> list[str]:
    if kind == "days":
        return [str(name) for name in get_day_names("wide", locale=code).values()]
    if kind == "months":
        return [str(name) for name in get_month_names("wide", locale=code).values()]
    locale = Locale.parse(code)
    table = locale.territories if kind == "territories" else locale.languages
    # Names with brackets, digits or codes are for lists on screens, not for reading aloud.
    return sorted(
        {
            name
            for tag, name in table.items()
            if len(tag) <= 3 and not tag.isdigit() and re.fullmatch(r"[^\W\d_]+([ -][^\W\d_]+)*", name)
        }
    )
