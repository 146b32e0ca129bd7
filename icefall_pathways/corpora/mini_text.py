"""Sentences of the embedded corpus: number words, dates, and CLDR phrases, normalized like transcripts of MLS."""

import datetime
import random
import re
import unicodedata
import zlib
from collections.abc import Callable, Sequence
from functools import cache

from icefall_pathways.languages import Language, foreign_characters

_SPLIT_SHARES = (("test", 12), ("dev", 24), ("train", 100))  # upper bounds of the hash, in percent
_MAX_DRAWS = 10_000

#: The type of sentences that are transcripts of another corpus.
TRANSCRIPTS = "transcripts"


def parse_content(content: str, transcripts_dir: str) -> tuple[str, ...]:
    """Parse the options for the types of sentences.

    Args:
      content: Types of sentences, separated by spaces.
      transcripts_dir: Folder of manifests, for the type `TRANSCRIPTS`; "" without it.

    Raises:
      ValueError: There is no type, one is unknown, or there are transcripts without a folder, or the reverse.
    """
    types = tuple(content.split())
    if not types or not set(types) <= {*CONTENTS, TRANSCRIPTS}:
        raise ValueError(f"--content {content!r}: expected some of {', '.join(CONTENTS)}, {TRANSCRIPTS}")
    if (TRANSCRIPTS in types) != bool(transcripts_dir):
        raise ValueError(
            f"--content {content!r} and --transcripts-dir {transcripts_dir!r}: expected both the type {TRANSCRIPTS} "
            "and a folder of manifests, or neither"
        )
    return types


def check_content(language: Language, content: tuple[str, ...]) -> None:
    """Check that sentences of these types can be drawn.

    Raises:
      ValueError: They contain numbers, and num2words does not offer the language.
    """
    # Imported here and below on first use: the command line does not need these packages.
    from num2words import CONVERTER_CLASSES

    if not set(content) <= {"names", TRANSCRIPTS} and language.code not in CONVERTER_CLASSES:
        raise ValueError(
            f"--content {' '.join(content)!r} has numbers, and there are no {language.name} number words: expected "
            "--content names, or other --languages"
        )


def draw_sentence(
    language: Language,
    split: str,
    content: tuple[str, ...],
    highest_number: int,
    seed: int,
    rng: random.Random,
    transcripts: Sequence[str] = (),
) -> str:
    """Draw a sentence of `split`.

    The split of a sentence is a function of the sentence and the seed, so that the splits are disjoint.

    Args:
      language: Language of the sentence.
      split: "train", "dev", or "test".
      content: Types of sentences, drawn with equal probability: of `CONTENTS`, or `TRANSCRIPTS`.
      highest_number: Largest number in sentences.
      seed: Seed of the corpus.
      rng: Source of the draw.
      transcripts: The sentences of the type `TRANSCRIPTS`, used as they are.

    Raises:
      ValueError: There are too few distinct sentences: none of many draws belongs to the split.
    """
    for _ in range(_MAX_DRAWS):
        sentence_type = rng.choice(content)
        if sentence_type == TRANSCRIPTS:
            sentence = rng.choice(transcripts)
        else:
            sentence = normalize(CONTENTS[sentence_type](language.code, highest_number, rng), language)
        if sentence and _split_of(sentence, language, seed) == split:
            return sentence
    raise ValueError(
        f"{' '.join(content)} with numbers up to {highest_number} has too few {language.name} sentences for a disjoint "
        f"{split} split: raise --highest-number or add another type to --content"
    )


def normalize(text: str, language: Language) -> str:
    """Return `text` with lower-case letters of the alphabet and single spaces only; empty if it has other letters."""
    text = unicodedata.normalize("NFC", text).lower().replace("’", "'")
    text = re.sub(r"\d+", lambda match: f" {_number_words(int(match[0]), language.code)} ", text)
    if any(char.isalpha() for char in foreign_characters(text, language)):
        return ""
    text = "".join(char if char.isalpha() or char == "'" else " " for char in text)
    return " ".join(text.split())


def _split_of(sentence: str, language: Language, seed: int) -> str:
    percentile = zlib.crc32(f"{seed}/{language.code}/{sentence}".encode()) % 100
    return next(split for split, bound in _SPLIT_SHARES if percentile < bound)


@cache
def _number_words(value: int, code: str) -> str:
    from num2words import num2words

    return num2words(value, lang=code).replace("-", " ")


def _numbers(code: str, highest: int, rng: random.Random) -> str:
    return " ".join(_number_words(rng.randint(0, highest), code) for _ in range(rng.randint(2, 4)))


def _calendar(code: str, highest: int, rng: random.Random) -> str:
    day, month = rng.choice(_names(code, "days")), rng.choice(_names(code, "months"))
    date = _number_words(rng.randint(1, min(31, max(1, highest))), code)
    return rng.choice([f"{day} {date} {month}", f"{date} {month}", f"{day} {date}"])


def _phrases(code: str, highest: int, rng: random.Random) -> str:
    while True:
        phrase = rng.choice(_PHRASES)(code, highest, rng)
        if _PRONOUNCEABLE.fullmatch(phrase):
            return phrase


def _quantities(code: str, highest: int, rng: random.Random) -> str:
    from babel.lists import format_list
    from babel.units import format_unit

    units = rng.sample(_names(code, "units"), rng.randint(1, 2))
    values = [rng.randint(2, max(2, highest)) for _ in units]
    return format_list(
        [format_unit(value, unit, format="0", locale=code) for value, unit in zip(values, units, strict=True)],
        locale=code,
    )


def _name_lists(code: str, highest: int, rng: random.Random) -> str:
    from babel.lists import format_list

    names = _names(code, rng.choice(("territories", "languages", "currencies")))
    return format_list(rng.sample(names, rng.randint(1, 3)), locale=code)


def _date(code: str, highest: int, rng: random.Random) -> str:
    from babel.dates import format_date

    date = datetime.date(1950, 1, 1) + datetime.timedelta(days=rng.randrange(36525))
    return format_date(date, rng.choice(("long", "full")), locale=code)


def _time(code: str, highest: int, rng: random.Random) -> str:
    from babel.dates import format_time

    day = rng.choice(_names(code, "days"))
    return f"{day} {format_time(datetime.time(rng.randrange(24), rng.randint(1, 59)), 'H:mm', locale=code)}"


def _duration(code: str, highest: int, rng: random.Random) -> str:
    from babel.dates import format_timedelta

    unit = rng.choice(("days", "hours", "minutes", "weeks"))
    span = datetime.timedelta(**{unit: rng.choice((-1, 1)) * rng.randint(1, max(1, highest))})
    return format_timedelta(span, threshold=1, add_direction=rng.random() < 0.5, locale=code)


_PHRASES: tuple[Callable[[str, int, random.Random], str], ...] = (_quantities, _name_lists, _date, _time, _duration)

# Excludes abbreviations and codes ("Imp. gallons", "1e9"), which have no unambiguous pronunciation.
_PRONOUNCEABLE = re.compile(r"(?!.*([^\W\d]\d|\d[^\W\d]|[^\W\d]\.))[\w\s,.:'’-]+")

#: The types of sentences; all but names contain number words.
CONTENTS: dict[str, Callable[[str, int, random.Random], str]] = {
    "numbers": _numbers,
    "calendar": _calendar,
    "phrases": _phrases,
    "names": _name_lists,
}


@cache
def _names(code: str, kind: str) -> list[str]:
    from babel import Locale
    from babel.dates import get_day_names, get_month_names
    from babel.units import format_unit

    if kind == "days":
        return [str(name) for name in get_day_names("wide", locale=code).values()]
    if kind == "months":
        return [str(name) for name in get_month_names("wide", locale=code).values()]
    locale = Locale.parse(code)
    if kind == "units":
        # babel returns the tag ("area-acre") of a unit for which the language has no word.
        return sorted(unit for unit in locale.unit_display_names if unit not in format_unit(2, unit, locale=code))
    # Excludes names with brackets, digits, or codes, which have no unambiguous pronunciation.
    return sorted(
        {
            name
            for tag, name in getattr(locale, kind).items()
            if len(tag) <= 3 and not tag.isdigit() and re.fullmatch(r"[^\W\d_]+([ -][^\W\d_]+)*", name)
        }
    )
