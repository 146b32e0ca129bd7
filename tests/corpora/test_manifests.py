"""Lhotse manifests of any corpus: those of Lhotse's own recipes, segments, cuts, missing splits, weights."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from lhotse import CutSet, MonoCut, Recording, RecordingSet, SupervisionSegment, SupervisionSet
from lhotse.recipes import commonvoice, prepare_commonvoice, prepare_fleurs
from public_layouts import WORDS, make_common_voice, make_fleurs, sentence, write_clip
from tiny_run import BatchRecorder, config

from icefall_pathways.commands import prepare_manifests
from icefall_pathways.corpora.layout import SPLITS, SplitFiles
from icefall_pathways.corpora.lhotse_files import find_manifests
from icefall_pathways.corpora.manifests import discover_languages
from icefall_pathways.corpora.validation import CorpusError, CorpusReport
from icefall_pathways.data.datamodule import SpeechDataModule
from icefall_pathways.data.fbank import ComputeFbankConfig, compute_fbank
from icefall_pathways.data.features import FbankConfig
from icefall_pathways.data.tokenizer import Tokenizer, train_tokenizer
from icefall_pathways.languages import get_language
from icefall_pathways.training import runs


@pytest.fixture(scope="module")
def public_corpora(tmp_path_factory):
    """Run Lhotse's recipes on tiny folders, and return the folders of their manifests."""
    folder = tmp_path_factory.mktemp("public")
    with pytest.MonkeyPatch.context() as patch:  # each of its processes would import torch
        patch.setattr(commonvoice, "ProcessPoolExecutor", lambda **_: ThreadPoolExecutor(1))
        prepare_commonvoice(make_common_voice(folder / "cv", ["fr"]), folder / "cv_manifests", languages=["fr"])
    fleurs = make_fleurs(folder / "fleurs", {"fr_fr": "fr", "de_de": "de"})
    prepare_fleurs(fleurs, folder / "fleurs_manifests", languages=["fr_fr", "de_de"])
    return folder / "cv_manifests", folder / "fleurs_manifests"


def prepare(corpus_dir, output, languages, **options):
    options = {"max_dropped_share": 1.0, "num_jobs": 1} | options
    prepare_manifests.run(prepare_manifests.Config("manifests", corpus_dir, output, languages, **options))


def files(folder, split, language="fr"):
    return SplitFiles(folder, "manifests", get_language(language), split)


def supervisions(folder, split, language="fr"):
    return list(SupervisionSet.from_file(files(folder, split, language).supervisions))


def write_manifests(folder, name, utterances, seconds=1.5):
    """Write recordings and supervisions of (id, text, speaker, language)."""
    folder.mkdir(parents=True, exist_ok=True)
    recordings, segments = [], []
    for i, (utterance, text, speaker, language) in enumerate(utterances):
        path = write_clip(folder / "audio" / f"{utterance}.wav", seconds, seed=i)
        recordings.append(Recording.from_file(path, recording_id=utterance))
        segment = SupervisionSegment(utterance, utterance, 0.0, seconds, text=text, speaker=speaker, language=language)
        segments.append(segment)
    RecordingSet.from_recordings(recordings).to_file(folder / f"{name.format('recordings')}.jsonl.gz")
    SupervisionSet.from_segments(segments).to_file(folder / f"{name.format('supervisions')}.jsonl.gz")


def test_manifests_of_common_voice_and_fleurs_are_trained_on_together(public_corpora, tmp_path):
    both = Path(" ".join(map(str, public_corpora)))
    assert discover_languages(both) == ["de", "fr"]
    prepare(both, tmp_path / "manifests", "fr de", manifest_weights="1 0.5")
    train = supervisions(tmp_path / "manifests", "train")
    assert [item.id for item in train[:1] + train[-1:]] == [
        "cv_manifests-common_voice_fr_0",
        "fleurs_manifests-3_1_0377",
    ]
    assert [len(supervisions(tmp_path / "manifests", split)) for split in SPLITS] == [8, 8, 8]
    assert {item.speaker for item in train[:4]} == {"speaker00", "speaker01"}
    assert train[0].text == sentence("fr", 0)
    compute_fbank(ComputeFbankConfig(tmp_path / "manifests", tmp_path / "fbank", "fr de", num_jobs=1))
    train_tokenizer([" ".join(words) for words in WORDS.values()], 30, tmp_path)
    options = config(tmp_path, tmp_path / "exp", "fr de", num_updates=2)
    recorder = BatchRecorder()
    runs.train(options, [recorder])
    assert len(recorder.batches) == 2 and (tmp_path / "exp" / "checkpoint-2.pt").exists()
    data = SpeechDataModule(options.data, Tokenizer(tmp_path / "bpe.model"))
    french = data.training_cuts["fr"]
    visits = [french.numbers.tolist().count(i) for i in range(8)]
    assert visits == [2] * 4 + [1] * 4
    seconds = french.index.durations
    assert french.total_seconds == pytest.approx(seconds[:4].sum() + 0.5 * seconds[4:].sum())


def test_the_language_map_renames_languages(tmp_path):
    utterances = [(f"u{i}", sentence("fr", i), None, "Castilian" if i % 2 else None) for i in range(12)]
    write_manifests(tmp_path / "in", "own_{}_all", utterances)
    with pytest.raises(CorpusError, match=r"supervisions of the language '(none|Castilian)' .*--language-map"):
        discover_languages(tmp_path / "in")
    assert discover_languages(tmp_path / "in", language_map="Castilian=Spanish, none=fr") == ["es", "fr"]
    with pytest.raises(CorpusError, match=r"--language-map 'es', at 'es': expected NAME=CODE"):
        discover_languages(tmp_path / "in", language_map="es")
    with pytest.raises(CorpusError, match=r"no supervision of german in .*, which have es, fr"):
        prepare(tmp_path / "in", tmp_path, "de", language_map="Castilian=es,none=fr")


def test_missing_splits_are_held_out_by_speaker_or_sentence(tmp_path):
    known = [(f"u{i}", sentence("fr", i), f"s{i % 12}", "French") for i in range(36)]
    write_manifests(tmp_path / "in", "own_{}_train", known)
    write_manifests(tmp_path / "in", "own_{}_test", [("t", "onze onze", "s0", "fr"), ("u", "douze douze", "t", "fr")])
    prepare(tmp_path / "in", tmp_path / "out", "fr")
    speakers = [{item.speaker for item in supervisions(tmp_path / "out", split)} for split in SPLITS]
    assert speakers[1] and not speakers[0] & speakers[1] and speakers[2] == {"s0", "t"}
    report = CorpusReport.load(files(tmp_path / "out", "dev").report)
    assert report.notes == {("fr", "dev", "held out by speaker"): 3}
    unknown = [(name, text, None, "fr") for name, text, *_ in known]
    write_manifests(tmp_path / "unknown", "own_{}_train", unknown)
    prepare(tmp_path / "unknown", tmp_path / "out2", "fr")
    texts = [{item.text for item in supervisions(tmp_path / "out2", split)} for split in SPLITS]
    assert sum(map(len, texts)) == 36 and len(texts[1]) == len(texts[2]) == 3


def test_segments_of_recordings_and_of_cuts_become_cuts_of_their_own(tmp_path):
    path = write_clip(tmp_path / "in" / "long.wav", 6.0)
    recording = Recording.from_file(path, recording_id="long")
    segments = [
        SupervisionSegment(f"s{i}", "long", 2.0 * i, 1.5, text=sentence("fr", i), language="fr") for i in range(3)
    ]
    SupervisionSet.from_segments(segments).to_file(tmp_path / "in" / "own_supervisions_train.jsonl.gz")
    RecordingSet.from_recordings([recording]).to_file(tmp_path / "in" / "own_recordings_train.jsonl.gz")
    moved = SupervisionSegment("c", "long", 0.5, 2.0, text=sentence("fr", 9), language="fr")
    cut = MonoCut("cut", 1.0, 4.0, 0, supervisions=[moved], recording=recording)
    CutSet.from_cuts([cut]).to_file(tmp_path / "in" / "own_cuts_dev.jsonl.gz")
    silent, other = (
        MonoCut(name, 0.0, 6.0, 0, supervisions=[segments[0]], recording=audio)
        for name, audio in (("silent", None), ("other", recording))
    )
    CutSet.from_cuts([cut.pad(duration=5.0), silent, other]).to_file(tmp_path / "in" / "own_cuts_test.jsonl.gz")
    prepare(tmp_path / "in", tmp_path / "manifests", "fr")
    report = compute_fbank(ComputeFbankConfig(tmp_path / "manifests", tmp_path / "fbank", "fr", num_jobs=1))
    assert report.dropped == {("fr", "test", "cut of several recordings"): 1, ("fr", "test", "no audio"): 1}
    train, dev, test = (list(CutSet.from_file(files(tmp_path / "fbank", split).cuts)) for split in SPLITS)
    assert [(item.start, item.duration, item.num_frames) for item in train] == [(2.0 * i, 1.5, 150) for i in range(3)]
    assert [(item.start, item.duration) for item in dev] == [(1.5, 2.0)] and test[0].start == 0.0
    assert all(item.supervisions[0].start == 0.0 for item in (*train, *dev, *test))
    for item in train:  # the features are those of the segment's own audio
        own = item.compute_features(FbankConfig().extractor())
        assert abs(own - item.load_features()).max() < 0.2


def test_unusable_utterances_are_counted_with_a_reason(tmp_path):
    utterances = [(f"u{i}", sentence("fr", i), None, "fr") for i in range(36)]
    write_manifests(tmp_path / "in", "own_{}", [*utterances, ("stereo", "onze un", None, "fr")])
    path = tmp_path / "in" / "own_supervisions.jsonl.gz"
    segments = list(SupervisionSet.from_file(path))
    segments[-1].channel = 1
    stereo = {"id": "stereo2", "sampling_rate": 16000, "num_samples": 16000, "duration": 1.0}
    segments += [
        SupervisionSegment("late", "u0", 4.0, 1.0, text="un un", language="fr"),
        SupervisionSegment("lost", "lost", 0.0, 1.0, text="un six", language="fr"),
        SupervisionSegment("odd", "odd", 0.0, 1.0, text="six six", language="fr"),
        SupervisionSegment("right", "stereo2", 0.0, 1.0, channel=1, text="six dix", language="fr"),
    ]
    SupervisionSet.from_segments(segments).to_file(path)
    lines = [{"id": "odd"}, stereo | {"sources": [], "channel_ids": [0, 1]}]
    with (tmp_path / "in" / "own_recordings.jsonl").open("w") as file:
        for recording in RecordingSet.from_file(tmp_path / "in" / "own_recordings.jsonl.gz"):
            file.write(json.dumps(recording.to_dict()) + "\n")
        file.writelines(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "in" / "own_recordings.jsonl.gz").unlink()
    prepare(tmp_path / "in", tmp_path, "fr")
    report = CorpusReport()
    for split in SPLITS:
        report.add(CorpusReport.load(files(tmp_path, split).report))
    dropped = {}
    for (_, _, reason), count in report.dropped.items():
        dropped[reason] = dropped.get(reason, 0) + count
    expected = ("speech outside of the recording", "no audio", "damaged record", "one channel of several")
    assert dropped == dict.fromkeys(expected, 1)
    assert sum(report.kept.values()) == 37


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["cv-fr_{}_train", "cv-fr_{}_dev", "cv-fr_{}_invalidated"], {"train", "dev"}),
        (["{}_train-clean-100", "{}_dev-other", "x_{}_test"], {"train", "dev", "test"}),
        (["cv_{}_en_validation", "train_{}"], {"dev", "train"}),
        (["own_{}", "{}_part2"], {None}),
    ],
)
def test_splits_are_read_from_file_names(tmp_path, names, expected):
    for name in names:
        for kind in ("recordings", "supervisions"):
            (tmp_path / f"{name.format(kind)}.jsonl.gz").touch()
    assert {file.split for file in find_manifests(tmp_path)} == expected


def test_relative_paths_are_looked_for_above_the_manifests(tmp_path):
    write_clip(tmp_path / "corpus" / "clips" / "a.wav")
    (tmp_path / "corpus" / "manifests").mkdir()
    recording = Recording.from_file(tmp_path / "corpus" / "clips" / "a.wav", recording_id="a")
    recording.sources[0].source = "clips/a.wav"
    cuts = [
        MonoCut(
            f"{i}",
            0.0,
            1.5,
            0,
            supervisions=[SupervisionSegment(f"{i}", "a", 0.0, 1.5, text=sentence("fr", i), language="fr")],
            recording=recording,
        )
        for i in range(3)
    ]
    CutSet.from_cuts(cuts).to_file(tmp_path / "corpus" / "manifests" / "cuts.jsonl.gz")
    prepare(tmp_path / "corpus" / "manifests", tmp_path, "fr")
    (recording,) = RecordingSet.from_file(files(tmp_path, "train").recordings)
    assert recording.sources[0].source == str(tmp_path / "corpus" / "clips" / "a.wav")


@pytest.mark.parametrize(
    ("folders", "options", "message"),
    [
        ("missing", {}, r"--manifests: .*missing is not a folder"),
        ("empty", {}, r"no manifests in .*empty: expected \*_recordings_"),
        ("empty", {"manifest_weights": "1 2"}, r"'1 2' has 2 weights for 1 folders"),
        ("empty", {"manifest_weights": "0"}, r"--manifest-weights is 0.0: expected more than 0"),
        ("damaged", {}, r"own_cuts_train.jsonl is damaged at line 2 .*: write it again"),
    ],
)
def test_unusable_manifests_are_errors(tmp_path, folders, options, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "own_cuts_train.jsonl").write_text('{"id": "a", "supervisions": []}\n{"id"')
    with pytest.raises(ValueError, match=message):
        discover_languages(tmp_path / folders, **options)
