"""Tables of transcripts: CSV and TSV files with a row per audio file.

```
id|raw text|normalized text          without a header, as in LJSpeech; the normalized text is used if it is not empty
file_name,transcription              with a header, as in Hugging Face's audiofolder; separated by commas, tabs or bars
file<tab>text                        without a header
```
"""

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from icefall_pathways.corpora.validation import CorpusError
from icefall_pathways.errors import quote
from icefall_pathways.files import read_text

#: File names of tables.
TABLE_NAMES = tuple(f"{stem}.{suffix}" for stem in ("metadata", "transcripts") for suffix in ("csv", "tsv"))

# Names of columns, in lower case, in the order of precedence.
_FILE_COLUMNS = ("file_name", "path", "file", "filename", "audio", "audio_file", "audio_filepath", "id")
_TEXT_COLUMNS = ("transcription", "text", "sentence", "normalized_text", "transcript")
_SPEAKER_COLUMNS = ("speaker", "speaker_id", "client_id")
_SPLIT_COLUMNS = ("split",)
_MAX_LISTED = 200  # characters of a header in errors


class Row(NamedTuple):
    """A row of a table.

    Attributes:
      file: The audio file, as the table names it: a path relative to the table, or a name without suffix.
      text: The transcript.
      speaker: The speaker; "" if the table has none.
      split: Name of the split; "" if the table has none.
    """

    file: str
    text: str
    speaker: str = ""
    split: str = ""


def read_table(path: Path) -> Iterator[Row]:
    """Yield the rows of a table.

    Raises:
      CorpusError: It has a header without a column for the transcripts, or rows without one, or quotation marks that
        are not closed.
      ValueError: It is not in UTF-8.
    """
    lines = [line for line in _read_rows(path) if any(cell.strip() for cell in line)]
    header = [cell.strip().lower() for cell in lines[0]] if lines else []
    if not set(header) & set(_FILE_COLUMNS):
        yield from (_row_without_header(path, line) for line in lines)
        return
    file, text = _column(header, _FILE_COLUMNS), _column(header, _TEXT_COLUMNS)
    if text is None:
        raise CorpusError(
            f"{path} has the columns {', '.join(header)[:_MAX_LISTED]}: expected the transcripts in one of "
            f"{', '.join(_TEXT_COLUMNS)}"
        )
    speaker, split = _column(header, _SPEAKER_COLUMNS), _column(header, _SPLIT_COLUMNS)
    for line in lines[1:]:
        yield Row(*(_cell(line, column) for column in (file, text, speaker, split)))


class _Quoted(csv.excel):
    strict = True  # else a quotation mark that is not closed joins rows to one transcript


class _Unquoted(csv.excel):
    quoting = csv.QUOTE_NONE


def _read_rows(path: Path) -> list[list[str]]:
    text = read_text(path)
    header = text.partition("\n")[0]
    delimiter = "\t" if "\t" in header else "|" if "|" in header else ","
    # Tables with tabs or bars contain single quotation marks.
    dialect = _Quoted if delimiter == "," else _Unquoted
    reader = csv.reader(io.StringIO(text, newline=""), dialect, delimiter=delimiter)
    try:
        return list(reader)
    except csv.Error as error:
        raise CorpusError(
            f"{path} is damaged at or before line {reader.line_num} ({error}): close quotation marks, and double those "
            "inside of transcripts in quotation marks"
        ) from error


def _row_without_header(path: Path, cells: Sequence[str]) -> Row:
    if len(cells) < 2:
        raise CorpusError(
            f"{path} has the line {quote(cells[0])} without a transcript: expected FILE and TEXT separated by a comma, "
            "a tab or a bar, or a header with these columns"
        )
    return Row(cells[0].strip(), next((cell.strip() for cell in reversed(cells[1:]) if cell.strip()), ""))


def _column(header: Sequence[str], names: Sequence[str]) -> int | None:
    return next((header.index(name) for name in names if name in header), None)


def _cell(cells: Sequence[str], column: int | None) -> str:
    return cells[column].strip() if column is not None and column < len(cells) else ""
