#!/usr/bin/env python3
"""Write icefall_pathways/languages/cldr.json from the Unicode CLDR, as npm distributes it.

Usage:

  npm pack cldr-core@48.2.0 cldr-localenames-full@48.2.0 cldr-misc-full@48.2.0    # in DIR
  for file in *.tgz; do mkdir ${file%-48*} && tar xzf $file -C ${file%-48*} --strip-components 1; done
  tools/make_language_table.py DIR icefall_pathways/languages/cldr.json

babel has the names, but not the exemplar characters.
"""

import json
import re
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Written without spaces between words although CLDR lets lines break after syllables only.
_MORE_SCRIPTS_WITHOUT_SPACES = {"Tibt"}
# Their characters are an open class: no list of exemplars covers the names and rare words of transcripts.
_OPEN_SCRIPTS = {"Hans", "Hant", "Jpan", "Hani", "Hanb"}
# Middle dot (Catalan), gershayim (Hebrew), genitive sign (Burmese), ZWNJ and ZWJ: parts of words.
_LETTERS_OF_OTHER_CATEGORIES = "·״၏\u200c\u200d"
_OTHER_SIGNS = "%&@#§‰٪؉\\/*†‡′″_°¶※・‥‾〃″"  # read aloud, or not part of sentences
_TATWEEL = "\u0640"  # stretches Arabic words on paper
_ITEM = re.compile(r"\\u([0-9A-F]{4})|\\(.)|\{(.*?)\}|(.)-(.)|(\S)")
_SHORTEST_RANGE = 4


def parse_set(text: str) -> set[str]:
    """Return the characters of a UnicodeSet such as "[a-z {ch} \\u200C]", those of its sequences included."""
    characters: set[str] = set()
    for code, escaped, sequence, first, last, single in _ITEM.findall(text.strip()[1:-1]):
        if first:
            characters |= set(map(chr, range(ord(first), ord(last) + 1)))
        else:
            characters |= set(chr(int(code, 16)) if code else escaped or sequence or single)
    return characters - {" "}


def letters(sets: dict[str, str]) -> set[str]:
    """Return the code points of lower-case words in Unicode normalization form C."""
    characters = parse_set(sets["exemplarCharacters"]) | parse_set(sets.get("auxiliary", "[]"))
    composed = set().union(*(unicodedata.normalize("NFC", character) for character in characters))
    return {c for c in composed if c == c.lower() and _is_letter(c)}


def _is_letter(character: str) -> bool:
    if character == _TATWEEL or unicodedata.name(character).startswith("CJK"):  # such as Hanja in Korean
        return False
    return unicodedata.category(character)[0] in "LM" or character in _LETTERS_OF_OTHER_CATEGORIES


def punctuation(sets: dict[str, str]) -> set[str]:
    """Return the punctuation of sentences: no quotation marks, brackets, dashes, or signs that are spoken."""
    characters = parse_set(sets.get("punctuation", "[]")) - set(_LETTERS_OF_OTHER_CATEGORIES)
    return {
        unicodedata.normalize("NFC", c)
        for c in characters
        if unicodedata.category(c) == "Po" and not {c, unicodedata.normalize("NFKC", c)} & set(_OTHER_SIGNS + "'׳\"")
    }


def abbreviate(characters: set[str]) -> str:
    """Return sorted characters, with "a-e" for "abcde"."""
    return "".join(_ranges(sorted(characters)))


def _ranges(characters: list[str]) -> Iterator[str]:
    start = 0
    for end in range(1, len(characters) + 1):
        if end == len(characters) or ord(characters[end]) != ord(characters[end - 1]) + 1:
            run = characters[start:end]
            yield f"{run[0]}-{run[-1]}" if len(run) >= _SHORTEST_RANGE else "".join(run)
            start = end


def language_names(folder: Path) -> dict[str, list[str]]:
    """Return the English names of each language, the common one first."""
    entries = read(folder / "cldr-localenames-full/main/en/languages.json")["main"]["en"]["localeDisplayNames"]
    names: dict[str, list[str]] = {}
    for key, name in entries["languages"].items():
        code, _, alternative = key.partition("-alt-")
        if "-menu-" not in key and code not in ("root", "und", "zxx", "mul", "mis"):
            names.setdefault(code, []).insert(len(names.get(code, [])) if alternative else 0, name)
    return names


def read(path: Path) -> Any:
    """Read a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def exemplars(folder: Path, likely: dict[str, str], codes: set[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the code of each language, or language and script, with the exemplar sets of CLDR."""
    for path in sorted(folder.glob("cldr-misc-full/main/*/characters.json")):
        code = path.parent.name
        language, _, script = code.partition("-")
        is_other_script = len(script) == 4 and not likely.get(language, "").startswith(script)
        if language in codes and (not script or is_other_script):
            sets = read(path)["main"][code]["characters"]
            if sets.get("exemplarCharacters", "[]") != "[]":
                yield code, sets


def main(folder: Path, output: Path) -> None:
    """Write the table."""
    supplemental = folder / "cldr-core/supplemental"
    subtags = read(supplemental / "likelySubtags.json")["supplemental"]["likelySubtags"]
    names = language_names(folder)
    bases = {code for code in names if "-" not in code}
    likely = {
        key: value.partition("-")[2]
        for key, value in subtags.items()
        if key.split("-")[0] in bases and key.split("-")[0] == value.split("-")[0]
    }
    aliases = read(supplemental / "aliases.json")["supplemental"]["metadata"]["alias"]["languageAlias"]
    scripts = read(folder / "cldr-core/scriptMetadata.json")["scriptMetadata"]
    alphabets, marks = {}, {}
    for code, sets in exemplars(folder, likely, bases):
        script = code.partition("-")[2] or likely.get(code, "").partition("-")[0]
        if script not in _OPEN_SCRIPTS:
            alphabets[code] = abbreviate(letters(sets))
        marks[code] = "".join(sorted(punctuation(sets)))
    without_spaces = {name for name, script in scripts.items() if script.get("lbLetters") == "YES"}
    version = read(folder / "cldr-misc-full/package.json")["version"]
    table = {
        "source": f"Unicode CLDR {version}, tools/make_language_table.py",
        "right_to_left_scripts": sorted(name for name, script in scripts.items() if script.get("rtl") == "YES"),
        "scripts_without_spaces": sorted(without_spaces | _MORE_SCRIPTS_WITHOUT_SPACES),
        "names": names,
        "aliases": {key: value["_replacement"] for key, value in aliases.items() if "-" not in key},
        "likely": likely,
        "letters": alphabets,
        "punctuation": marks,
    }
    output.write_text(json.dumps(table, ensure_ascii=False, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
