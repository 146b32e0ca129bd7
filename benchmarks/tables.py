"""Tables of figures inside Markdown files, renewed by the benchmarks that measure them."""

from collections.abc import Sequence
from pathlib import Path

from tabulate import tabulate


def put_table(path: Path, name: str, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Replace what stands in a Markdown file between `<!-- NAME -->` and `<!-- end of NAME -->` by a table.

    Args:
      path: The file.
      name: The table's name.
      header: Its columns.
      rows: Its rows, with numbers as text already.

    Raises:
      ValueError: The file has no such place.
    """
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    text = path.read_text()
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise ValueError(f"{path} has no place for the table {name}: expected a line {begin} and below it a line {end}")
    table = tabulate(rows, header, tablefmt="pipe", disable_numparse=True)
    path.write_text(f"{before}{begin}\n{table}\n{end}{after}")
