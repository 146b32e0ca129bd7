"""Summaries of decoding results: the files `wer-summary-all-*.json`."""

from pathlib import Path
from typing import Any

from icefall_pathways.files import read_json
from icefall_pathways.json_types import ANY_KEY, NUMERIC, check_types

_TYPES: dict[str, Any] = {"languages": {ANY_KEY: {"wer": NUMERIC, "utterances": int}}, "average_wer": NUMERIC}


def read_summary(path: Path) -> dict[str, Any]:
    """Read a file `wer-summary-all-*.json`.

    Raises:
      ValueError: The file is damaged, or not a summary.
    """
    summary: dict[str, Any] = read_json(path)
    try:
        check_types(summary, _TYPES, complete=True)
        if not summary["languages"]:
            raise ValueError("it has no languages")
    except ValueError as error:
        raise ValueError(f"{path} is not a summary of results: {error}; restore it, or decode again") from error
    return summary
