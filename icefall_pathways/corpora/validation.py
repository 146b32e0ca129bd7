"""What a corpus loses on its way to features, counted per language and reason, and where to stop."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from tabulate import tabulate

from icefall_pathways.files import read_json, write_json
from icefall_pathways.languages import Language, get_language


class CorpusError(ValueError):
    """A corpus that is missing parts, or lost more than it may."""


class Reason(str, Enum):
    """Why an utterance is left out."""

    NO_AUDIO = "no audio"
    NO_TEXT = "no text"
    NAMED_TWICE = "named twice"
    FOREIGN_CHARACTERS = "foreign characters"
    UNREADABLE = "unreadable audio"
    TOO_SHORT = "too short"
    TOO_LONG = "too long"


class Note(str, Enum):
    """What is unusual about an utterance that is kept."""

    RESAMPLED = "resampled"
    DOWNMIXED = "downmixed"
    UNKNOWN_SPEAKER = "speaker not in metainfo.txt"


@dataclass
class CorpusReport:
    """Counts of utterances: kept, left out by reason, and noted, each per language and split.

    Attributes:
      kept: By (language, split).
      dropped: By (language, split, reason).
      notes: By (language, split, note).
      examples: The first identifiers for each (language, split, reason), with what was found.
    """

    kept: Counter[tuple[str, str]] = field(default_factory=Counter)
    dropped: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    notes: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    examples: dict[tuple[str, str, str], list[str]] = field(default_factory=dict)

    def keep(self, language: str, split: str, notes: Iterable[Note] = ()) -> None:
        """Count an utterance that is kept."""
        self.kept[language, split] += 1
        for note in notes:
            self.notes[language, split, note.value] += 1

    def drop(self, language: str, split: str, reason: Reason, example: str) -> None:
        """Count an utterance that is left out; `example` names it and says what was found."""
        key = (language, split, reason.value)
        self.dropped[key] += 1
        examples = self.examples.setdefault(key, [])
        if len(examples) < 3:
            examples.append(example)

    def add(self, other: "CorpusReport") -> None:
        """Add the counts of a part of the same corpus."""
        self.kept.update(other.kept)
        self.dropped.update(other.dropped)
        self.notes.update(other.notes)
        for key, examples in other.examples.items():
            self.examples[key] = (self.examples.get(key, []) + examples)[:3]

    def table(self) -> str:
        """A row per language and split, a column per reason and note that occurred, then examples."""
        reasons = [reason.value for reason in Reason if any(key[2] == reason for key in self.dropped)]
        notes = [note.value for note in Note if any(key[2] == note for key in self.notes)]
        places = self._places()
        rows = [
            [
                *place,
                self.kept[place],
                *(self.dropped[place[0], place[1], reason] for reason in reasons),
                *(self.notes[place[0], place[1], note] for note in notes),
            ]
            for place in places
        ]
        header = [
            "language",
            "split",
            "kept",
            *(f"dropped: {reason}" for reason in reasons),
            *(f"note: {n}" for n in notes),
        ]
        lines = [tabulate(rows, header, tablefmt="simple_outline")]
        for (language, split, reason), examples in sorted(self.examples.items()):
            lines += [f"  {language} {split}, {reason}: {example}" for example in examples]
        return "\n".join(lines)

    def check(self, max_dropped_share: float) -> None:
        """Stop where too much is lost.

        Raises:
          CorpusError: A language and split loses more than `max_dropped_share` of its utterances, or all of them.
        """
        for place in self._places():
            lost = sum(count for key, count in self.dropped.items() if key[:2] == place)
            total = lost + self.kept[place]
            if lost > max_dropped_share * total or self.kept[place] == 0:
                raise CorpusError(
                    f"{place[0]} {place[1]} loses {lost} of {total} utterances, more than --max-dropped-share "
                    f"{max_dropped_share} allows: look at the table above, and raise the share, or mend the corpus and "
                    f"remove what was made of it (files *-{get_language(place[0]).name}_*{place[1]}* in --data-dir)"
                )

    def _places(self) -> list[tuple[str, str]]:
        return sorted({*self.kept, *((language, split) for language, split, _ in self.dropped)})

    def save(self, path: Path) -> None:
        """Write the counts as JSON."""
        counts = {
            name: [[*key, count] for key, count in getattr(self, name).items()] for name in ("kept", "dropped", "notes")
        }
        write_json(path, counts | {"examples": [[*key, value] for key, value in self.examples.items()]})

    @classmethod
    def load(cls, path: Path) -> "CorpusReport":
        """Read counts written by `save`."""
        values = {name: {tuple(row[:-1]): row[-1] for row in rows} for name, rows in read_json(path).items()}
        return cls(Counter(values["kept"]), Counter(values["dropped"]), Counter(values["notes"]), values["examples"])


def foreign_characters(text: str, language: Language) -> str:
    """The characters of `text` that are not of the language's alphabet, sorted, each once."""
    return "".join(sorted(set(text) - language.alphabet))
