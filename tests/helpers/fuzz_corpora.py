"""Readers of corpora, manifests and cuts for fuzzing, with their valid files; see `fuzzing.Case`."""

import json
import tempfile
from collections.abc import Iterable, Sequence
from functools import cache, partial
from pathlib import Path

from fuzzing import Case, Files, files_in
from lhotse import AudioSource, Recording, SupervisionSegment
from mls_folder import make_language
from public_layouts import sentence, write_clip, write_stamp
from speech_cuts import make_cuts
from tiny_experiment import TEXTS, VOCAB_SIZE

from icefall_pathways.corpora import folder as own_folder
from icefall_pathways.corpora import manifests, mls, stamps
from icefall_pathways.data.datamodule import DataConfig, SpeechDataModule
from icefall_pathways.data.fbank import ComputeFbankConfig, compute_fbank
from icefall_pathways.data.tokenizer import Tokenizer, train_tokenizer
from icefall_pathways.data.tokenizer_texts import SampleConfig, TokenizerTexts
from icefall_pathways.languages import get_language

FRENCH, ENGLISH = get_language("fr"), get_language("en")


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
def tokenizer_model() -> bytes:
    """Return the file of a tokenizer."""
    with tempfile.TemporaryDirectory() as name:
        return train_tokenizer(TEXTS, VOCAB_SIZE, Path(name)).read_bytes()


@cache
def _cuts() -> Sequence[Files]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made = {split: make_cuts(folder, split, "en", [100, 120], TEXTS[0]) for split in ("train", "dev")}
        files: Files = {"bpe.model": tokenizer_model()}
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


@cache
def _mls() -> Sequence[Files]:
    with tempfile.TemporaryDirectory() as name:
        folder = make_language(Path(name), "de", 2)
        handles = folder / "train" / "limited_supervision" / "9hr" / "handles.txt"
        handles.parent.mkdir(parents=True)
        handles.write_text("10_100_000000\n10_100_000001\n")
        return [{path: data for path, data in files_in(Path(name)).items() if not path.endswith("1.flac")}]


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
        return [files_in(Path(name))]


def _prepare_stamps(folder: Path) -> None:
    stamps.prepare_manifests(folder, folder / "out", [FRENCH], "train")


CASES = {
    "manifests": Case(_lhotse_manifests, (manifests.discover_languages, _prepare_manifests), weight=0.5),
    "cuts": Case(_cuts, (_read_training_batch, _read_dev_batches, _sample_texts), names=r"\bcuts?\b", weight=0.5),
    "manifests of features": Case(_corpus_manifests, (_compute_fbank,), weight=0.5),
    "MLS texts": Case(_mls, (partial(_prepare_mls, subset="train"), partial(_prepare_mls, subset="9hr")), weight=0.4),
    "own folders": Case(_own_folder, (own_folder.discover_languages, _prepare_own_folder), weight=0.5),
    "stamps": Case(_stamps, (_prepare_stamps,), weight=0.5),
}
