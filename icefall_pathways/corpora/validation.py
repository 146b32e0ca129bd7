"""Counts of kept and dropped utterances per language, split, and reason."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from tabulate import tabulate

from icefall_pathways.errors import as_damage
from icefall_pathways.files import read_json, write_json
from icefall_pathways.languages import Language

_MAX_LISTED = 200  # characters of a derived alphabet


class CorpusError(ValueError):
    """A corpus is incomplete, or loses too many utterances."""


class _Label(str, Enum):
    """A name that is stored in report files."""

    __str__ = str.__str__


class Reason(_Label):
    """Common reasons to drop an utterance. A corpus may use other strings as well."""

    NO_AUDIO = "no audio"
    NO_TEXT = "no text"
    NO_TRANSCRIPT = "no transcript"
    DUPLICATE = "named twice"
    HELD_OUT = "also in dev or test"
    SHARED_SENTENCE = "sentence in another split"
    FOREIGN_CHARACTERS = "foreign characters"
    UNREADABLE = "unreadable audio"
    TOO_SHORT = "too short"
    TOO_LONG = "too long"


class Note(_Label):
    """Common properties of kept utterances that the table lists. A corpus may use other strings as well."""

    RESAMPLED = "resampled"
    DOWNMIXED = "downmixed"


class Rejection(NamedTuple):
    """Reason to drop an utterance, with a description that names the utterance."""

    reason: str
    description: str


@dataclass
class CorpusReport:
    """Counts of kept and dropped utterances and of notes, with examples.

    Attributes:
      kept: Counts by (language, split).
      dropped: Counts by (language, split, reason).
      notes: Counts by (language, split, note).
      characters: Counts of characters in kept transcripts by (language, split, character), of languages whose alphabet
        is not known.
      examples: Up to three descriptions of dropped utterances by (language, split, reason).
    """

    kept: Counter[tuple[str, str]] = field(default_factory=Counter)
    dropped: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    notes: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    characters: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    examples: dict[tuple[str, str, str], list[str]] = field(default_factory=dict)

    def keep(self, language: str, split: str) -> None:
        """Count a kept utterance."""
        self.kept[language, split] += 1

    def add_characters(self, language: str, split: str, text: str) -> None:
        """Count the characters of a kept transcript, from which the alphabet of its language is derived."""
        self.characters.update((language, split, character) for character in text if character != " ")

    def add_notes(self, language: str, split: str, notes: Iterable[str]) -> None:
        """Count properties of a kept utterance: values of `Note`, or strings of the corpus."""
        for note in notes:
            self.notes[language, split, str(note)] += 1

    def drop(self, language: str, split: str, reason: str, example: str) -> None:
        """Count a dropped utterance.

        Args:
          language: Language code.
          split: Split.
          reason: A value of `Reason`, or a string of the corpus.
          example: Names the utterance and describes the problem.
        """
        key = (language, split, str(reason))
        self.dropped[key] += 1
        examples = self.examples.setdefault(key, [])
        if len(examples) < 3:
            # Without surrogates, which stand for bytes of names that are not UTF-8, and cannot be printed.
            examples.append(example.encode(errors="backslashreplace").decode())

    def add(self, other: "CorpusReport") -> None:
        """Add the counts of another part of the corpus."""
        self.kept.update(other.kept)
        self.dropped.update(other.dropped)
        self.notes.update(other.notes)
        self.characters.update(other.characters)
        for key, examples in other.examples.items():
            self.examples[key] = (self.examples.get(key, []) + examples)[:3]

    def table(self) -> str:
        """Return a table with a row per language and split and a column per reason and note, followed by examples."""
        reasons = _in_order(Reason, (key[2] for key in self.dropped))
        notes = _in_order(Note, (key[2] for key in self.notes))
        rows = [
            [
                language,
                split,
                self.kept[language, split],
                *(self.dropped[language, split, reason] for reason in reasons),
                *(self.notes[language, split, note] for note in notes),
            ]
            for language, split in self._splits()
        ]
        header = [
            "language",
            "split",
            "kept",
            *(f"dropped: {reason}" for reason in reasons),
            *(f"note: {note}" for note in notes),
        ]
        lines = [tabulate(rows, header, tablefmt="simple_outline")]
        for (language, split, reason), examples in sorted(self.examples.items()):
            lines += [f"  {language} {split}, {reason}: {example}" for example in examples]
        lines += [self._alphabet_line(code) for code in sorted({language for language, _, _ in self.characters})]
        return "\n".join(lines)

    def _alphabet_line(self, code: str) -> str:
        """Describe the alphabet that is derived from the training transcripts of a language."""
        seen = {character for language, split, character in self.characters if (language, split) == (code, "train")}
        others = {character for language, _, character in self.characters if language == code} - seen
        line = f"  {code} has no built-in alphabet; {len(seen)} characters in its training transcripts: {_sample(seen)}"
        return line + (f"; only in others: {_sample(others)}" if others else "")

    def check(self, languages: Iterable[Language], splits: Iterable[str], max_dropped_share: float) -> None:
        """Check that every split of every language has utterances, and that none loses too many.

        Raises:
          CorpusError: One has none, or loses more than `max_dropped_share` of its utterances, or all of them.
        """
        for language, split in product(languages, splits):
            kept = self.kept[language.code, split]
            dropped = sum(count for key, count in self.dropped.items() if key[:2] == (language.code, split))
            total = dropped + kept
            again = f"fix the corpus and remove the files *-{language.name}_*{split}* from --data-dir"
            if total == 0:
                raise CorpusError(f"{language.code} {split} has no utterances, expected at least one: {again}")
            if dropped > max_dropped_share * total or kept == 0:
                raise CorpusError(
                    f"{language.code} {split} loses {dropped} of {total} utterances, more than --max-dropped-share "
                    f"{max_dropped_share} allows: see the table above for the reasons, and raise the share, or {again}"
                )

    def _splits(self) -> list[tuple[str, str]]:
        return sorted({*self.kept, *((language, split) for language, split, _ in self.dropped)})

    def to_json(self) -> dict[str, Any]:
        """Return the counts and examples as a JSON value."""
        counts = {
            name: [[*key, count] for key, count in getattr(self, name).items()] for name in ("kept", "dropped", "notes")
        }
        if self.characters:
            counts["characters"] = [[*key, count] for key, count in self.characters.items()]
        return counts | {"examples": [[*key, value] for key, value in self.examples.items()]}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "CorpusReport":
        """Return the report that `to_json` converted.

        Raises:
          ValueError: A key or a count has another type.
        """
        values = {name: {tuple(row[:-1]): row[-1] for row in rows} for name, rows in value.items()}
        for name, counts in values.items():
            for key, count in counts.items():
                has_count = isinstance(count, list if name == "examples" else int)
                if not has_count or len(key) != (2 if name == "kept" else 3) or not all(map(_is_text, key)):
                    raise ValueError(f"{name} has the entry {[*key, count]}")
        counters = {name: Counter(values.get(name, {})) for name in ("kept", "dropped", "notes", "characters")}
        return cls(examples=values["examples"], **counters)

    def save(self, path: Path) -> None:
        """Write the counts as JSON."""
        write_json(path, self.to_json())

    @classmethod
    def load(cls, path: Path) -> "CorpusReport":
        """Read counts written by `save`.

        Raises:
          CorpusError: The file is damaged.
        """
        with as_damage(path, CorpusError, "remove it and the manifests of its split, and prepare the corpus again"):
            return cls.from_json(read_json(path))


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _in_order(common: type[_Label], names: Iterable[str]) -> list[str]:
    """Return the distinct names: the common ones in the order of their definition, then the others by name."""
    order = list(common)
    return sorted(set(names), key=lambda name: (order.index(common(name)) if name in order else len(order), name))


def _sample(characters: set[str]) -> str:
    """Format a set of characters, of which a script like the Chinese one has thousands."""
    ordered = sorted(characters)
    return "".join(ordered[:_MAX_LISTED]) + (" ..." if len(ordered) > _MAX_LISTED else "")
