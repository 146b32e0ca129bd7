"""Names, aliases, likely scripts and exemplar characters of languages, from the Unicode CLDR.

`cldr.json` is written by `tools/make_language_table.py` and has the license in `LICENSE-unicode.txt`.
"""

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

_TABLE = Path(__file__).with_name("cldr.json")
_RANGE = re.compile(r"(.)-(.)")


@cache
def table() -> dict[str, Any]:
    """Return the table.

    Its entries: `names` (by code, the common name first), `aliases` (deprecated and three-letter codes), `likely`
    ("Script-REGION" by language, language-Script or language-REGION), `letters` and `punctuation` (by language, or by
    language-Script for scripts other than the likely one), `right_to_left_scripts` and `scripts_without_spaces`.
    """
    values: dict[str, Any] = json.loads(_TABLE.read_text(encoding="utf-8"))
    return values


def expand(ranges: str) -> str:
    """Return the characters of an abbreviated set: "abcdez" for "a-ez"."""
    return _RANGE.sub(lambda match: "".join(map(chr, range(ord(match[1]), ord(match[2]) + 1))), ranges)
