"""Description of a folder of manifests: its corpus, the normalization of its transcripts, and where it was prepared.

Preparation writes it next to the manifests. Folders of earlier versions have none: their corpus is named by the
manifests, and their transcripts are in lower case and without punctuation.
"""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from icefall_pathways.corpora.validation import CorpusError
from icefall_pathways.files import read_json, write_json
from icefall_pathways.languages import TextOptions

DESCRIPTION_FILE = "corpus.json"


@dataclass(frozen=True)
class Origin:
    """A working directory in which a folder was prepared, to which paths in its manifests are relative.

    Attributes:
      relative: The directory, relative to the folder.
      absolute: The directory.
    """

    relative: str
    absolute: str

    @classmethod
    def of(cls, folder: Path) -> "Origin":
        """Return the current working directory, as the origin of a folder."""
        return cls(os.path.relpath(Path.cwd(), folder), str(Path.cwd()))


@dataclass(frozen=True)
class CorpusDescription:
    """Properties of a folder of manifests.

    Attributes:
      name: Name of the corpus, the first part of the names of manifests.
      text: Normalization of the transcripts; None if they are used unchanged, as those of MLS.
      origins: Working directories of the preparation; several if the folder was moved and continued.
      label: First part of the names of result files, such as the name of the user's folder; "": `name`.
    """

    name: str
    text: TextOptions | None = None
    origins: tuple[Origin, ...] = field(default=(), compare=False)
    label: str = field(default="", compare=False)

    @classmethod
    def load(cls, folder: Path) -> "CorpusDescription | None":
        """Read the description of a folder; None if it has none.

        Raises:
          CorpusError: It is damaged.
        """
        path = folder / DESCRIPTION_FILE
        if not path.is_file():
            return None
        try:
            return cls._from_json(read_json(path))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise CorpusError(f"{path} is damaged ({error}): restore it, or prepare {folder} again") from error

    @classmethod
    def _from_json(cls, values: Mapping[str, Any]) -> "CorpusDescription":
        text = values["text"]
        origins = tuple(Origin(**origin) for origin in values.get("origins", ()))
        label = str(values.get("label", ""))  # folders of earlier versions have none
        return cls(str(values["name"]), None if text is None else TextOptions(**text), origins, label)

    def save(self, folder: Path) -> None:
        """Write the description of a folder whose manifests are about to be written in this working directory.

        Raises:
          CorpusError: The folder has another one.
        """
        stored = CorpusDescription.load(folder) or self
        origin = Origin.of(folder)
        if stored != self:
            raise CorpusError(
                f"{folder} holds {stored}, but now it would be {self}: expected one corpus, prepared with the same "
                "options, per folder; use another --data-dir, or remove this one"
            )
        if origin not in stored.origins:
            write_json(folder / DESCRIPTION_FILE, asdict(replace(stored, origins=(*stored.origins, origin))))

    def __str__(self) -> str:
        text = ", ".join(f"{name} {int(value)}" for name, value in asdict(self.text).items()) if self.text else ""
        return f"the corpus {self.name}" + (f" ({text})" if text else "")
