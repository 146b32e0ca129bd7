"""A prepared data folder can be moved, and used from any working directory."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_run
import torch
from lhotse import AudioSource, Recording
from mls_folder import TEXTS, make_language

from icefall_pathways.commands import compute_fbank, export_shar, prepare_manifests
from icefall_pathways.corpora.description import DESCRIPTION_FILE, CorpusDescription
from icefall_pathways.corpora.path_resolver import PathResolver
from icefall_pathways.data.datamodule import DataConfig, SpeechDataModule
from icefall_pathways.data.tokenizer import Tokenizer, train_tokenizer
from icefall_pathways.decoding.config import DecodeConfig, StreamingDecodeConfig
from icefall_pathways.decoding.decode_run import decode, decode_streaming
from icefall_pathways.files import read_json, write_json
from icefall_pathways.training import runs


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Prepare German in a folder, with paths relative to it: audio in download/, everything else in data/."""
    folder = tmp_path_factory.mktemp("prepared")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        make_language(Path("download"), "de")
        manifests, fbank = Path("data/manifests"), Path("data/fbank")
        prepare_manifests.run(prepare_manifests.Config("mls", Path("download"), manifests, "de", num_jobs=1))
        compute_fbank.run(compute_fbank.Config(manifests, fbank, "de", num_jobs=1))
        model = train_tokenizer(TEXTS["de"], 22, Path("data"))
        export_shar.run(export_shar.Config(manifest_dir=fbank, languages="de", bpe_model=model, num_jobs=1))
    return folder


def load(folder, **options):
    """Return a training batch and the dev batches."""
    config = DataConfig(manifest_dir=folder / "fbank", languages="de", num_workers=0, **options)
    data = SpeechDataModule(config, Tokenizer(folder / "bpe.model"))
    return [next(data.train_batches(0, 1, seed=1)), *data.loader("de", "dev")]


def equal(a, b):
    return all(torch.equal(x.inputs, y.inputs) and x.texts == y.texts for x, y in zip(a, b, strict=True))


MODES = [{}, {"on_the_fly_feats": True}, {"from_shar": True}]


@pytest.mark.parametrize("options", MODES, ids=["features", "audio", "shar"])
@pytest.mark.parametrize("moved", ["all", "data"])
def test_batches_of_moved_data_are_the_same_from_any_working_directory(prepared, tmp_path, monkeypatch, moved, options):
    monkeypatch.chdir(prepared)
    expected = load(Path("data"), enable_spec_aug=False, **options)
    monkeypatch.chdir(tmp_path)
    assert equal(expected, load(prepared / "data", enable_spec_aug=False, **options))
    copy = tmp_path / "copy"
    shutil.copytree(prepared, copy)
    if moved == "data":
        shutil.rmtree(copy / "download")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert equal(expected, load(Path("../copy/data"), enable_spec_aug=False, **options))


def test_a_moved_folder_trains_and_decodes_in_another_working_directory(prepared, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(prepared, tmp_path / "moved")
    description = tmp_path / "moved" / "data" / "fbank" / DESCRIPTION_FILE
    values = read_json(description)
    values["origins"][0]["absolute"] = "/nowhere"  # as if the original had been moved, not copied
    write_json(description, values)
    config = tiny_run.config(Path("moved/data"), Path("exp"), "de", num_updates=1, valid_interval=1)
    runs.train(replace(config, data=replace(config.data, on_the_fly_feats=True)))
    (tmp_path / "moved").rename(tmp_path / "again")
    options = {"exp_dir": Path("exp"), "manifest_dir": Path("again/data/fbank")}
    decode(DecodeConfig(**options))
    decode_streaming(StreamingDecodeConfig(**options))
    assert len(list(Path("exp").rglob("recogs-mls-german-test-*.txt"))) == 2


def test_a_folder_of_an_earlier_version_is_used_in_its_working_directory(prepared, tmp_path, monkeypatch):
    monkeypatch.chdir(prepared)
    expected = [load(Path("data"), **options) for options in MODES]
    old = tmp_path / "old"
    shutil.copytree(prepared, old)
    for path in old.rglob(DESCRIPTION_FILE):
        path.unlink()
    monkeypatch.chdir(old)
    assert all(equal(a, load(Path("data"), **options)) for a, options in zip(expected, MODES, strict=True))
    monkeypatch.chdir(tmp_path)
    assert equal(expected[0], load(Path("old/data"))), "features are found next to their manifests"


def test_features_of_the_data_folder_are_preferred_to_those_of_the_working_directory(prepared, tmp_path, monkeypatch):
    """Two projects have the same relative paths."""
    shutil.copytree(prepared / "data", tmp_path / "project" / "data")
    for path in (tmp_path / "project").rglob("feats-*.lca"):
        path.write_bytes(b"of another project")
    expected = load(prepared / "data")
    monkeypatch.chdir(tmp_path / "project")
    assert equal(expected, load(prepared / "data"))


def test_a_folder_that_is_continued_elsewhere_has_several_origins(tmp_path, monkeypatch):
    for name in ("a", "b", "b"):
        (tmp_path / name).mkdir(exist_ok=True)
        monkeypatch.chdir(tmp_path / name)
        CorpusDescription("mls").save(Path("../data"))
    stored = CorpusDescription.load(tmp_path / "data")
    assert [origin.absolute for origin in stored.origins] == [str(tmp_path / "a"), str(tmp_path / "b")]
    assert [origin.relative for origin in stored.origins] == ["../a", "../b"]


def test_absolute_paths_into_a_moved_tree_are_replaced(tmp_path, monkeypatch):
    (tmp_path / "old").mkdir()
    monkeypatch.chdir(tmp_path / "old")
    CorpusDescription("mls").save(Path("data"))
    (tmp_path / "old" / "audio").mkdir()
    (tmp_path / "old").rename(tmp_path / "new")
    monkeypatch.chdir(tmp_path)
    paths = PathResolver(Path("new/data"))
    recording = make_recording(tmp_path / "old" / "audio" / "x.wav")
    assert paths.resolve_recording(recording).sources[0].source == "new/audio/x.wav"
    for outside in ("/corpora/x.wav", "/x.wav"):
        assert paths.resolve_recording(make_recording(Path(outside))).sources[0].source == outside


def make_recording(path):
    return Recording("x", [AudioSource("file", [0], str(path))], 16000, 16000, 1.0)
