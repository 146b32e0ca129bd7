"""The table of all languages, which several runs with the same model and options complete."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from icefall_pathways.corpora.layout import SplitFiles
from icefall_pathways.decoding.divided_test_sets import Timing
from icefall_pathways.decoding.scoring import Score, read_results, score, summarize, write_summary
from icefall_pathways.experiment import layout
from icefall_pathways.experiment.result_summary import read_summary
from icefall_pathways.files import exclusive_lock
from icefall_pathways.languages import get_language, scored_by_characters


@dataclass(frozen=True)
class LanguageResult:
    """Score and durations of the decoding of one language."""

    score: Score
    timing: Timing


@dataclass(frozen=True)
class ResultSummary:
    """The summary of a split: `wer-summary-all-` files.

    Attributes:
      folder: Folder of the results.
      corpus: Name of the corpus.
      split: "test" or "dev".
      suffix: The decoding settings, the last part of file names.
      model: Hash of the model.
    """

    folder: Path
    corpus: str
    split: str
    suffix: str
    model: str

    def write(self, method: str, results: Mapping[str, LanguageResult], order: Sequence[str]) -> str:
        """Write the summary and return its table, with the real-time factor in streaming decoding.

        Languages that another run decoded with the same model and settings are kept. Runs that end at the same time
        write one after another.

        Args:
          method: The decoding method.
          results: Results by language code.
          order: Codes in the order of the table; other languages follow.
        """
        with exclusive_lock(self.folder.with_name(f".{self.folder.name}{layout.LOCK_FILE}"), wait=True):
            return self._write(method, {**self._earlier(set(results)), **results}, order)

    def _write(self, method: str, merged: Mapping[str, LanguageResult], order: Sequence[str]) -> str:
        codes = sorted(merged, key=[*order, *merged].index)
        timings = {code: merged[code].timing for code in codes}
        extra: dict[str, Any] = {"model": self.model}
        footer = ""
        total = Timing.sum(timings.values())
        if total.total:
            extra |= {"real_time_factor": total.real_time_factor}
            footer = f"\nreal-time factor: {total.real_time_factor:.4f} for {total.audio:.0f} s of audio"
        extra["timing"] = {code: asdict(timing) for code, timing in timings.items()}
        summary = summarize(self.split, method, {code: merged[code].score for code in codes}, extra)
        return write_summary(self.folder, self.corpus, self.suffix, summary) + footer

    def _earlier(self, decoded: set[str]) -> dict[str, LanguageResult]:
        """Return the results of the languages that the existing summary has in addition to those `decoded` now."""
        path = layout.result_file(self.folder, "wer-summary", f"all-{self.corpus}-{self.split}", self.suffix, ".json")
        if not path.exists():
            return {}
        summary = read_summary(path)
        codes = [code for code in summary["languages"] if code not in decoded]
        if codes and summary.get("model") != self.model:
            print(f"{path} has results of another model for {', '.join(codes)}: they are not in the new table")
            return {}
        results = {}
        for code in codes:
            test_set = SplitFiles(self.folder, self.corpus, get_language(code), self.split).test_set
            try:
                utterances = read_results(self.folder, test_set, self.suffix)
            except ValueError as error:
                print(f"{get_language(code).name} is not in the new table: {error}")
            else:
                results[code] = LanguageResult(
                    score(utterances, scored_by_characters(code)), Timing(**summary["timing"][code])
                )
        return results
