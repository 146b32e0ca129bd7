"""Update of result tables in Markdown files."""

from collections.abc import Sequence
from pathlib import Path

from tabulate import tabulate


def put_table(path: Path, name: str, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Replace the text between `<!-- NAME -->` and `<!-- end of NAME -->` in a Markdown file by a table.

    Args:
      path: The file.
      name: The name of the table.
      header: The column headers.
      rows: The rows, with numbers already formatted as text.

    Raises:
      ValueError: The file lacks one of the markers.
    """
    start, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    text = path.read_text()
    before, start_marker, rest = text.partition(start)
    _, end_marker, after = rest.partition(end)
    if not (start_marker and end_marker):
        raise ValueError(
            f"{path} has no markers for the table {name}: expected a line {start}, followed by a line {end}"
        )
    path.write_text(f"{before}{start}\n{_format(header, rows)}\n{end}{after}")


def print_table(header: Sequence[str], rows: Sequence[Sequence[object]], path: Path | None, name: str) -> None:
    """Print a table, and put it into a Markdown file unless `path` is None; see `put_table`."""
    print(_format(header, rows), end="\n\n")
    if path is not None:
        put_table(path, name, header, rows)


def _format(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    return tabulate(rows, header, tablefmt="pipe", disable_numparse=True)
