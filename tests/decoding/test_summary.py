"""The table of all languages is complete, whichever runs decode them."""

import json
import math
import time
from multiprocessing import get_context
from pathlib import Path

import pytest

from icefall_pathways.corpora.layout import SplitFiles
from icefall_pathways.decoding import summary as summary_module
from icefall_pathways.decoding.divided_test_sets import Timing
from icefall_pathways.decoding.scoring import Utterance, write_results
from icefall_pathways.decoding.summary import LanguageResult, ResultSummary
from icefall_pathways.experiment.result_summary import read_summary
from icefall_pathways.languages import get_language

LANGUAGES = ("en", "fr", "it")


def decode_language(folder: Path, code: str, model: str = "a", tokens: str = "good day") -> None:
    """Write the results of a language, as a decoding run does."""
    test_set = SplitFiles(folder, "mls", get_language(code), "test").test_set
    scores = write_results(folder, test_set, "greedy", [Utterance("cut", tokens.split(), ["good"])])
    results = {code: LanguageResult(scores, Timing(2.0, 1.0, 10.0))}
    ResultSummary(folder, "mls", "test", "greedy", model).write("greedy_search", results, LANGUAGES)


def summarized(folder: Path) -> dict:
    return json.loads((folder / "wer-summary-all-mls-test-greedy.json").read_text())["languages"]


def test_languages_of_earlier_runs_with_the_same_model_are_kept(tmp_path: Path) -> None:
    for code in ("it", "en"):
        decode_language(tmp_path, code)
    decode_language(tmp_path, "en", tokens="good")
    assert {code: figures["wer"] for code, figures in summarized(tmp_path).items()} == {"en": 0, "it": 50}
    assert list(summarized(tmp_path)) == ["en", "it"]
    decode_language(tmp_path, "fr", model="b")
    assert list(summarized(tmp_path)) == ["fr"]


def test_runs_that_end_at_the_same_time_keep_the_languages_of_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    summarize = summary_module.summarize

    def summarize_slowly(*args):
        time.sleep(0.5)  # between reading the other languages and writing
        return summarize(*args)

    monkeypatch.setattr(summary_module, "summarize", summarize_slowly)
    runs = [
        get_context("fork").Process(target=decode_language, args=(tmp_path / "results", code)) for code in LANGUAGES
    ]
    for run in runs:
        run.start()
    for run in runs:
        run.join()
    assert [run.exitcode for run in runs] == [0, 0, 0]
    assert list(summarized(tmp_path / "results")) == list(LANGUAGES)
    assert not (tmp_path / "results" / ".lock").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "it is '\\[\\]', expected an object"),
        ({"average_wer": 4.0}, "it lacks languages"),
        ({"average_wer": 4.0, "languages": {"en": {"utterances": 3}}}, "languages.en lacks wer"),
        ({"average_wer": 4.0, "languages": {"en": {"wer": "4", "utterances": 3}}}, "languages.en.wer is '4', expected"),
        ({"average_wer": None, "languages": {}}, "average_wer is 'None', expected a number"),
        ({"average_wer": math.inf, "languages": {}}, "average_wer is inf, expected a finite number"),
        ({"average_wer": 4.0, "languages": {}}, "it has no languages"),
    ],
)
def test_damaged_summaries_are_rejected_by_name(tmp_path: Path, content: object, message: str) -> None:
    path = tmp_path / "wer-summary-all-mls-test-greedy.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"{path.name} is not a summary of results: {message}"):
        read_summary(path)
