"""Map language tags (BCP 47, in any spelling) and English names to one canonical code per language."""

import re
import unicodedata
from difflib import get_close_matches
from functools import cache
from typing import NamedTuple, NewType

from icefall_pathways.languages.cldr import table

#: A canonical language code (BCP 47), such as "fr", "zh-TW" or "x-simlish".
LanguageCode = NewType("LanguageCode", str)

_TAG = re.compile(r"([a-z]{2,3})(?:-([a-z]{4}))?(?:-([a-z]{2}|\d{3}))?((?:-(?:[a-z\d]{5,8}|\d[a-z\d]{3}))*)")
_PRIVATE_TAG = re.compile(r"x(-[a-z\d]{1,8})+")


class UnknownLanguageError(ValueError):
    """A text is neither a language code nor the name of a language."""


class Tag(NamedTuple):
    """The subtags of a code; "" for those that it lacks. `variants` starts with a hyphen."""

    language: str
    script: str = ""
    region: str = ""
    variants: str = ""

    def __str__(self) -> str:
        return "-".join(filter(None, self[:3])) + self.variants


def parse_tag(text: str) -> Tag | None:
    """Return the subtags of a tag in any case, with hyphens or underscores; None if it is not a tag."""
    match = _TAG.fullmatch(text.strip().lower().replace("_", "-"))
    if match is None:
        return None
    language, script, region, variants = (part or "" for part in match.groups())
    alias, *others = table()["aliases"].get(language, language).split("-")
    if others and not script and not region:  # for example sh, which is sr-Latn
        return Tag(alias, *_script_and_region("-".join(others)), variants)
    return Tag(alias, script.title(), region.upper(), variants)


def maximize(tag: Tag) -> Tag:
    """Add the likely script and region of a tag, such as Latn and BR to pt; unknown languages are unchanged."""
    likely = table()["likely"]
    for key in (f"{tag.language}-{tag.script}", f"{tag.language}-{tag.region}", tag.language):
        if key in likely:
            script, region = _script_and_region(likely[key])
            return tag._replace(script=tag.script or script, region=tag.region or region)
    return tag


def canonical_language(text: str) -> LanguageCode:
    """Return the code of a language from a code in any spelling, or from its English name.

    Codes of two and three letters have precedence over names, and names over longer codes. Deprecated and three-letter
    codes are replaced (iw: he, deu: de). Scripts and regions that the language implies are removed (pt_BR: pt, sv-SE:
    sv, zh-Hans-CN: zh), others are kept (pt-PT, zh-TW). A well-formed code that CLDR does not list is accepted, also a
    private one such as x-simlish.

    Raises:
      UnknownLanguageError: The text is neither; the message lists languages with similar names.
    """
    tag, key = parse_tag(text), name_key(text)
    if tag is not None and tag.language in table()["names"] and (len(key) <= 3 or key not in _codes_by_name()):
        return _minimize(tag)
    if (code := _code_of_name(key)) is not None:
        return code
    if tag is not None:
        return LanguageCode(str(tag))
    private = text.strip().lower().replace("_", "-")
    if _PRIVATE_TAG.fullmatch(private):
        return LanguageCode(private)
    raise UnknownLanguageError(
        f"unknown language {text!r}{_suggestion(text)}: expected an English name, such as french, or a BCP 47 code, "
        "such as fr or zh-TW; for a language without a code, choose one that starts with x-, such as x-simlish"
    )


def name_key(name: str) -> str:
    """Return a name in lower-case ASCII letters and digits, with underscores between words: "norwegian_bokmal"."""
    decomposed = unicodedata.normalize("NFKD", name.lower())
    ascii_text = "".join(character for character in decomposed if not unicodedata.combining(character))
    return re.sub(r"[^a-z\d]+", "_", ascii_text).strip("_")


def _script_and_region(text: str) -> tuple[str, str]:
    """Split "Latn-BR", "Latn" or "BR"."""
    parts = text.split("-")
    return next((p for p in parts if len(p) == 4), ""), next((p for p in parts if len(p) != 4), "")


def _minimize(tag: Tag) -> LanguageCode:
    """Remove the script and the region that the other subtags imply; if one of them suffices, keep the region."""
    full = maximize(tag)
    for shorter in (Tag(tag.language), Tag(tag.language, region=full.region), Tag(tag.language, full.script)):
        if maximize(shorter)[:3] == full[:3]:
            return LanguageCode(str(shorter) + tag.variants)
    return LanguageCode(str(full))


@cache
def _codes_by_name() -> dict[str, LanguageCode]:
    """Return codes by `name_key` of all names; a common name has precedence over an alternative one."""
    entries = [
        (name_key(name), code, rank) for code, names in table()["names"].items() for rank, name in enumerate(names)
    ]
    by_name: dict[str, LanguageCode] = {}
    for key, code, _ in sorted(entries, key=lambda entry: -entry[2]):
        tag = parse_tag(code)
        assert tag is not None
        by_name[key] = _minimize(tag)
    return by_name


def _code_of_name(key: str) -> LanguageCode | None:
    """Return the code of a name, or of a name with subtags, such as "swedish_fi" or "azerbaijani_cyrl"."""
    words = key.split("_")
    for end in range(len(words), 0, -1):
        if (code := _codes_by_name().get("_".join(words[:end]))) is not None:
            tag = parse_tag("-".join([code, *words[end:]]))
            return _minimize(tag) if tag else None
    return None


def _suggestion(text: str) -> str:
    matches = get_close_matches(name_key(text), _codes_by_name(), n=3)
    similar = " or ".join(f"{name} ({_codes_by_name()[name]})" for name in matches)
    return f" (did you mean {similar}?)" if similar else ""
