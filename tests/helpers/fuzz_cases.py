"""Readers for fuzzing, with their valid files; see `fuzzing.Case`."""

import io
import json
import tempfile
import zipfile
from collections.abc import Iterable, Sequence
from functools import cache, partial
from pathlib import Path

import torch
from encoded_audio import FORMATS, SlowPipe, encode, speech_like
from fuzzing import Case, Files
from lhotse import AudioSource, Recording, SupervisionSegment
from mls_folder import make_language
from public_layouts import sentence, write_clip, write_stamp
from safetensors.torch import save
from speech_cuts import make_cuts
from tiny_experiment import TEXTS, VOCAB_SIZE, make_experiment, write_complementary_masks

from icefall_pathways.commands.export import Config, run
from icefall_pathways.corpora import folder as own_folder
from icefall_pathways.corpora import manifests, mls, stamps
from icefall_pathways.corpora.description import CorpusDescription
from icefall_pathways.corpora.validation import CorpusReport
from icefall_pathways.data.datamodule import DataConfig, SpeechDataModule
from icefall_pathways.data.fbank import ComputeFbankConfig, compute_fbank
from icefall_pathways.data.tokenizer import Tokenizer, train_tokenizer
from icefall_pathways.data.tokenizer_texts import SampleConfig, TokenizerTexts
from icefall_pathways.decoding.language_id.model import LanguageIdModel
from icefall_pathways.decoding.parts import Decoded
from icefall_pathways.decoding.scoring import Utterance, read_results, write_results
from icefall_pathways.decoding.streaming import AudioError
from icefall_pathways.experiment import checkpoints, icefall_checkpoints, layout, model_files
from icefall_pathways.export.package import read_package
from icefall_pathways.files import sha256
from icefall_pathways.languages import get_language
from icefall_pathways.pathways.masks import PathwayMasks
from icefall_pathways.searches.context_graph import build_context_graph, read_context_file
from icefall_pathways.searches.ngram import read_ngram
from icefall_pathways.transcription.audio import AudioOptions, read_file, read_pipe

FRENCH, ENGLISH = get_language("fr"), get_language("en")
MAX_SECONDS = 3600  # decoded; longer results of a few kilobytes are not bounded by the input
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


def _files_in(folder: Path) -> Files:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


# Audio


@cache
def _audio() -> Sequence[Files]:
    samples = {channels: speech_like(0.3, channels=channels) for channels in (1, 2)}
    return [{"audio": encode(samples[channels], name)} for name in FORMATS for channels in (1, 2)]


def _check_blocks(blocks: Iterable[torch.Tensor], name: str) -> None:
    num_samples = 0
    try:
        for block in blocks:
            assert block.dim() == 1
            num_samples += len(block)
            assert num_samples < MAX_SECONDS * 16000
    except AudioError as error:
        assert 10 < len(str(error)) < 400 and "\n" not in str(error), error
        raise ValueError(f"{name}: {error}") from error  # transcribe.py adds the name


def _read_audio_file(folder: Path) -> None:
    _check_blocks(read_file(folder / "audio"), f"{folder}")


def _read_audio_pipe(folder: Path) -> None:
    path = folder / "audio"
    data = path.read_bytes() if path.exists() else b""
    _check_blocks(read_pipe(io.BufferedReader(SlowPipe(data, step=1500))), f"{folder}")


def _read_raw_pipe(folder: Path) -> None:
    path = folder / "audio"
    data = path.read_bytes() if path.exists() else b""
    _check_blocks(read_pipe(io.BytesIO(data), AudioOptions(sample_rate=16000)), f"{folder}")


# Manifests


def _jsonl(items: Iterable[object]) -> bytes:
    return "".join(json.dumps(item.to_dict(), ensure_ascii=False) + "\n" for item in items).encode()


def _utterance(index: int, corpus_language: str = "fr") -> tuple[Recording, SupervisionSegment]:
    name = f"u{index}"
    recording = Recording(name, [AudioSource("file", [0], f"{name}.wav")], 16000, 24000, 1.5)
    text = sentence("fr", index)
    return recording, SupervisionSegment(name, name, 0.0, 1.5, text=text, language=corpus_language, speaker=f"s{index}")


@cache
def _lhotse_manifests() -> Sequence[Files]:
    pairs: Files = {}
    cuts: Files = {}
    for i, split in enumerate(("train", "dev", "test")):
        recordings, supervisions = zip(*[_utterance(3 * i + k, "french") for k in range(2)], strict=True)
        pairs[f"c_recordings_{split}.jsonl"] = _jsonl(recordings)
        pairs[f"c_supervisions_{split}.jsonl.gz"] = _jsonl(supervisions)
        made = [r.to_cut() for r in recordings]
        for cut, supervision in zip(made, supervisions, strict=True):
            cut.supervisions = [supervision]
        cuts[f"c_cuts_{split}.jsonl"] = _jsonl(made)
    whole = {f"c_cuts.jsonl{suffix}": b"".join(cuts.values()) for suffix in ("", ".gz")}
    return [pairs, cuts, *({name: data} for name, data in whole.items())]


def _prepare_manifests(folder: Path) -> None:
    manifests.prepare_manifests(folder, folder / "out", [FRENCH])


@cache
def _tokenizer() -> bytes:
    with tempfile.TemporaryDirectory() as name:
        return train_tokenizer(TEXTS, VOCAB_SIZE, Path(name)).read_bytes()


@cache
def _cuts() -> Sequence[Files]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made = {split: make_cuts(folder, split, "en", [100, 120], TEXTS[0]) for split in ("train", "dev")}
        files: Files = {"bpe.model": _tokenizer()}
        for split, cuts in made.items():
            for cut in cuts:
                cut.features.storage_path = f"feats/{Path(cut.features.storage_path).name}"
            files[f"mls-english_cuts_{split}.jsonl.gz"] = _jsonl(cuts)
            (features,) = folder.glob(f"feats-{split}*")
            files[f"feats/{features.name}"] = features.read_bytes()
        description = {"name": "mls", "text": None, "origins": [{"relative": ".", "absolute": "/absent"}], "label": "x"}
        return [files, files | {"corpus.json": json.dumps(description).encode()}]


def _data(folder: Path) -> SpeechDataModule:
    config = DataConfig(manifest_dir=folder, languages="en", num_workers=0)
    return SpeechDataModule(config, Tokenizer(folder / "bpe.model"))


def _read_training_batch(folder: Path) -> None:
    next(iter(_data(folder).train_batches(0, 1, seed=1)))


def _read_dev_batches(folder: Path) -> None:
    list(_data(folder).loader("en", "dev"))


def _sample_texts(folder: Path) -> None:
    list(TokenizerTexts(folder, [ENGLISH], SampleConfig()).sample())


@cache
def _corpus_manifests() -> Sequence[Files]:
    files: Files = {}
    report = {"kept": [["fr", "train", 2]], "dropped": [], "notes": [], "examples": []}
    for split in ("train", "dev", "test"):
        recordings, supervisions = zip(*map(_utterance, range(2)), strict=True)
        files[f"mls-french_recordings_{split}.jsonl.gz"] = _jsonl(recordings)
        files[f"mls-french_supervisions_{split}.jsonl.gz"] = _jsonl(supervisions)
        files[f"mls-french_report_{split}.json"] = json.dumps(report).encode()
    return [files]


def _compute_fbank(folder: Path) -> None:
    compute_fbank(ComputeFbankConfig(manifest_dir=folder, output_dir=folder / "out", languages="fr", num_jobs=1))


# Models


@cache
def _experiment() -> Files:
    """Return the files of an experiment with masks, and of two packages of it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_experiment(folder)
        write_complementary_masks(folder / "exp")
        for precision in ("float32", "int8"):
            run(Config(folder / "exp", output_dir=folder / precision, format="package", precisions=(precision,)))
        return _files_in(folder)


def _below(prefix: str) -> Files:
    return {name.removeprefix(prefix): data for name, data in _experiment().items() if name.startswith(prefix)}


def _with_hashes(contents: Files, header: str, update: str) -> Files:
    """Set the SHA-256 in a JSON file to those of the other files, if it is still a JSON object."""
    try:
        values = json.loads(contents[header])
    except (KeyError, ValueError, RecursionError):
        return contents
    if not isinstance(values, dict):
        return contents
    hashes = {}
    with tempfile.TemporaryDirectory() as name:
        for path, data in contents.items():
            (Path(name) / path).write_bytes(data)
            hashes[path] = sha256(Path(name) / path)
    values["sha256"] = hashes.get(update) if update else hashes
    return contents | {header: json.dumps(values).encode()}


def _load_masks(folder: Path) -> None:
    masks = PathwayMasks.load(folder / "masks.safetensors")
    masks.overlaps()
    assert all(0 <= masks.sparsity(language) <= 1 for language in masks.languages)


def _records(archive: bytes) -> Files:
    with zipfile.ZipFile(io.BytesIO(archive)) as source:
        return {name: source.read(name) for name in source.namelist()}


def _archive(records: Files) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for name, data in records.items():
            archive.writestr(zipfile.ZipInfo(name), data)  # without the time, so that inputs can be repeated
    return target.getvalue()


def _seal_checkpoint(contents: Files) -> Files:
    """Write a checkpoint of records, or of its options with the tensors of the valid one."""
    if "options.json" not in contents:
        return {"checkpoint-5.pt": _archive(contents)}
    stored = torch.load(io.BytesIO(_experiment()["exp/checkpoint-5.pt"]), weights_only=True)
    target = io.BytesIO()
    torch.save(stored | {"plain": contents["options.json"].decode("utf-8", "replace")}, target)
    return {"checkpoint-5.pt": target.getvalue()}


@cache
def _checkpoints() -> Sequence[Files]:
    archive = _experiment()["exp/checkpoint-5.pt"]
    plain = torch.load(io.BytesIO(archive), weights_only=True)["plain"]
    return [{"options.json": plain.encode()}, _records(archive)]


@cache
def _foreign() -> Sequence[Files]:
    weights = {"a.weight": torch.randn(3, 4), "a.bias": torch.randn(3)}
    files = []
    for content in ({"model": weights, "model_avg": weights, "sampler": {"x": 1}}, weights):
        target = io.BytesIO()
        torch.save(content, target)
        files.append(_records(target.getvalue()))
    return [*files, {"weights.safetensors": save(weights)}]


def _seal_foreign(contents: Files) -> Files:
    return contents if "weights.safetensors" in contents else {"epoch-1.pt": _archive(contents)}


def _foreign_path(folder: Path) -> Path:
    return next(iter(folder.iterdir()), folder / "epoch-1.pt")


def _read_package(folder: Path) -> None:
    package = read_package(folder)
    package.tokenizer.decode(package.tokenizer.encode(["un deux"]))


# Text


@cache
def _mls() -> Sequence[Files]:
    with tempfile.TemporaryDirectory() as name:
        folder = make_language(Path(name), "de", 2)
        handles = folder / "train" / "limited_supervision" / "9hr" / "handles.txt"
        handles.parent.mkdir(parents=True)
        handles.write_text("10_100_000000\n10_100_000001\n")
        return [{path: data for path, data in _files_in(Path(name)).items() if not path.endswith("1.flac")}]


def _prepare_mls(folder: Path, subset: str) -> None:
    mls.prepare_manifests(folder, folder / "out", [get_language("de")], subset)


@cache
def _own_folder() -> Sequence[Files]:
    rows = [(f"{i}.wav", sentence("fr", i), f"s{i}", ("train", "dev", "test")[i]) for i in range(3)]
    header = ("file_name", "transcription", "speaker", "split")
    with tempfile.TemporaryDirectory() as name:
        clip = write_clip(Path(name) / "a.wav", 0.2).read_bytes()
    clips = {f"fr/{i}.wav": clip for i in range(3)}
    tables = {
        "metadata.csv": "".join(",".join(row) + "\n" for row in (header, *rows)),
        "transcripts.tsv": "".join(f"{file}\t{text}\n" for file, text, _, _ in rows),
        "transcripts.csv": "".join(f"{file[:-4]}|{text}|{text}\n" for file, text, _, _ in rows),
    }
    texts = {f"fr/{i}.txt": sentence("fr", i).encode() for i in range(3)}
    return [*(clips | {f"fr/{name}": text.encode()} for name, text in tables.items()), clips | texts]


def _prepare_own_folder(folder: Path) -> None:
    own_folder.prepare_manifests(folder, folder / "out", [FRENCH], "train")


@cache
def _stamps() -> Sequence[Files]:
    with tempfile.TemporaryDirectory() as name:
        for i in range(12):
            write_stamp(Path(name), f"s{i}", {"fr": sentence("fr", i)}, 1.0)
        return [_files_in(Path(name))]


def _prepare_stamps(folder: Path) -> None:
    stamps.prepare_manifests(folder, folder / "out", [FRENCH], "train")


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
    "audio": Case(_audio, (_read_audio_file, _read_audio_pipe, _read_raw_pipe), weight=0.5),
    "manifests": Case(_lhotse_manifests, (manifests.discover_languages, _prepare_manifests), weight=0.5),
    "cuts": Case(_cuts, (_read_training_batch, _read_dev_batches, _sample_texts), names=r"\bcuts?\b", weight=0.5),
    "manifests of features": Case(_corpus_manifests, (_compute_fbank,), weight=0.5),
    "masks": Case(
        lambda: [{name: data for name, data in _below("exp/").items() if name.startswith("masks.")}],
        (_load_masks,),
        seal=partial(_with_hashes, header="masks.json", update="masks.safetensors"),
    ),
    "checkpoints": Case(
        _checkpoints, (checkpoints.load_model, icefall_checkpoints.is_foreign), seal=_seal_checkpoint, weight=0.7
    ),
    "foreign checkpoints": Case(
        _foreign,
        (
            lambda folder: icefall_checkpoints.read_weights(_foreign_path(folder)),
            lambda folder: icefall_checkpoints.is_foreign(_foreign_path(folder)),
        ),
        seal=_seal_foreign,
        weight=2,
    ),
    "packages": Case(
        lambda: [_below("float32/"), _below("int8/")],
        (_read_package,),
        seal=partial(_with_hashes, header="model.json", update=""),
        weight=0.7,
    ),
    "JSON files": Case(_json_files, (_read_json_files,), weight=2),
    "MLS texts": Case(_mls, (partial(_prepare_mls, subset="train"), partial(_prepare_mls, subset="9hr")), weight=0.4),
    "own folders": Case(_own_folder, (own_folder.discover_languages, _prepare_own_folder), weight=0.5),
    "stamps": Case(_stamps, (_prepare_stamps,), weight=0.5),
    "language models": Case(
        lambda: [{"lm.arpa": ARPA.encode()}, {"lm.arpa.gz": ARPA.encode()}],
        (partial(_read_arpa, scale=0.3), partial(_read_arpa, scale=-0.3)),
        weight=2,
    ),
    "hotwords": Case(
        lambda: [{"bpe.model": _tokenizer(), "hotwords.txt": b"one two :1.5\nfour\n\nfive :-2\n"}],
        (_read_hotwords,),
        weight=1.5,
    ),
    "results": Case(_results, (lambda folder: read_results(folder, "mls-french-test", "greedy"),), weight=2),
}


def check_case(argument: tuple[str, Files]) -> None:
    """Read the files of a case, in a process of its own; see `Case.check`."""
    name, files = argument
    CASES[name].check(files)
