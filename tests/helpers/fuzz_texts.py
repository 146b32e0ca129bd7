"""Readers of text and JSON files for fuzzing, with their valid files; see `fuzzing.Case`."""

import json
import tempfile
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path

import torch
from fuzz_corpora import tokenizer_model
from fuzzing import Case, Files

from icefall_pathways.corpora.description import CorpusDescription
from icefall_pathways.corpora.validation import CorpusReport
from icefall_pathways.data.tokenizer import Tokenizer
from icefall_pathways.decoding.divided_test_sets import Decoded
from icefall_pathways.decoding.language_id.model import LanguageIdModel
from icefall_pathways.decoding.scoring import Utterance, read_results, write_results
from icefall_pathways.experiment import layout, model_files
from icefall_pathways.searches.context_graph import build_context_graph, read_context_file
from icefall_pathways.searches.ngram import read_ngram

SYMBOLS = ("<blk>", "<sos/eos>", "<unk>", "a", "b", "▁c", "d")
ARPA = """
\\data\\
ngram 1=5
ngram 2=3
ngram 3=1

\\1-grams:
-99\t<s>\t-0.5
-0.5\ta\t-0.2
-1.0\tb\t0.1
-0.9\t</s>
-2.1\t<unk>

\\2-grams:
-0.3\ta b\t-0.1
-0.4\t<s> a
-0.7\tb a

\\3-grams:
-0.2\t<s> a b

\\end\\
"""


def _read_arpa(folder: Path, scale: float) -> None:
    path = next((path for path in folder.glob("lm.arpa*")), folder / "lm.arpa")
    model = read_ngram(path, SYMBOLS, scale)
    assert model.scores(torch.arange(model.num_states)).isfinite().all(), "scores are not finite"


def _read_hotwords(folder: Path) -> None:
    tokenizer = Tokenizer(folder / "bpe.model")
    graph = build_context_graph(read_context_file(folder / "hotwords.txt", tokenizer, 2.0), tokenizer.vocab_size)
    assert graph.scores(torch.arange(graph.num_states)).isfinite().all(), "scores are not finite"


@cache
def _results() -> Sequence[Files]:
    utterances = [Utterance(f"c{i}", ["un", "deux"], ["un", "d'eux"]) for i in range(3)]
    with tempfile.TemporaryDirectory() as name:
        write_results(Path(name), "mls-french-test", "greedy", utterances)
        path = layout.result_file(Path(name), "recogs", "mls-french-test", "greedy")
        return [{path.name: path.read_bytes()}]


@cache
def _json_files() -> Sequence[Files]:
    report = CorpusReport()
    report.drop("fr", "train", "no text", "x")
    report.keep("fr", "train")
    report.add_characters("fr", "train", "ab")
    description = {"name": "mls", "text": {"keep_case": True, "keep_punctuation": False}, "origins": []}
    language_id = {
        "weights": {"confidence": 1.0},
        "offsets": {"en": 0.5, "fr": -0.5},
        "unigrams": {"en": [0.5, 0.5], "fr": [0.1, 0.9]},
        "seconds": 1.0,
    }
    decoded = {
        "utterances": [{"cut_id": "c", "ref": ["a"], "hyp": ["b"], "alternatives": []}],
        "errors": {"d": "message"},
        "timing": {},
    }
    features = {"level_norm": "running-max", "num_bins": 80}
    values = (report.to_json(), description, language_id, decoded, features)
    names = ("report.json", "corpus.json", "language_id.json", "decoded.json", "features.json")
    return [{name: json.dumps(value).encode()} for name, value in zip(names, values, strict=True)]


def _read_json_files(folder: Path) -> None:
    readers = {
        "report.json": lambda: CorpusReport.load(folder / "report.json").table(),
        "corpus.json": lambda: CorpusDescription.load(folder),
        "language_id.json": lambda: LanguageIdModel.load(folder / "language_id.json"),
        "decoded.json": lambda: Decoded.load(folder / "decoded.json"),
        "features.json": lambda: model_files.stored_level_norm(folder),
    }
    for path in folder.iterdir():
        readers[path.name]()


CASES = {
    "JSON files": Case(_json_files, (_read_json_files,), weight=2),
    "language models": Case(
        lambda: [{"lm.arpa": ARPA.encode()}, {"lm.arpa.gz": ARPA.encode()}],
        (partial(_read_arpa, scale=0.3), partial(_read_arpa, scale=-0.3)),
        weight=2,
    ),
    "hotwords": Case(
        lambda: [{"bpe.model": tokenizer_model(), "hotwords.txt": b"one two :1.5\nfour\n\nfive :-2\n"}],
        (_read_hotwords,),
        weight=1.5,
    ),
    "results": Case(_results, (lambda folder: read_results(folder, "mls-french-test", "greedy"),), weight=2),
}
