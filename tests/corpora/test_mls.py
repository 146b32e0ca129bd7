import shutil
import unicodedata

import numpy as np
import pytest
import soundfile
import torch
from encoded_audio import encode, speech_like
from lhotse import CutSet, RecordingSet, SupervisionSet
from mls_folder import add_utterance, make_language

from icefall_pathways.corpora import layout
from icefall_pathways.corpora.layout import SPLITS, SplitFiles
from icefall_pathways.corpora.mls import prepare_manifests
from icefall_pathways.corpora.validation import CorpusError, CorpusReport
from icefall_pathways.data import fbank
from icefall_pathways.data.fbank import ComputeFbankConfig, compute_fbank
from icefall_pathways.data.features import FbankConfig
from icefall_pathways.data.manifests import DataError
from icefall_pathways.languages import get_language
from icefall_pathways.sharding.shards import ShardedOutput

GERMAN, POLISH = get_language("de"), get_language("pl")


@pytest.fixture
def corpus(tmp_path):
    make_language(tmp_path / "corpus", "de")
    make_language(tmp_path / "corpus", "pl")
    return tmp_path / "corpus"


def manifests(corpus, **options):
    return prepare_manifests(corpus, corpus.parent / "manifests", [GERMAN, POLISH], **options)


def manifest_files(corpus, split="train", language=GERMAN):
    return SplitFiles(corpus.parent / "manifests", "mls", language, split)


def german_cuts(corpus):
    return SplitFiles(corpus.parent / "fbank", "mls", GERMAN, "train").cuts


def supervisions(corpus, split="train", language=GERMAN):
    return list(SupervisionSet.from_file(manifest_files(corpus, split, language).supervisions))


def features(corpus, **options):
    manifests(corpus)
    config = ComputeFbankConfig(corpus.parent / "manifests", corpus.parent / "fbank", "de pl", num_jobs=1, **options)
    report = compute_fbank(config)
    return report, {
        (language.code, split): list(CutSet.from_file(SplitFiles(config.output_dir, "mls", language, split).cuts))
        for language in (GERMAN, POLISH)
        for split in SPLITS
    }


def test_every_supervision_has_its_language_speaker_and_gender(corpus):
    report = manifests(corpus)
    assert report.kept[("de", "train")] == report.kept[("pl", "test")] == 4 and not report.dropped
    assert [s.language for s in supervisions(corpus, language=POLISH)] == ["pl"] * 4
    first = supervisions(corpus)[0]
    assert (first.speaker, first.gender, first.text) == ("10", "F", "eins zwei")


def test_opus_audio_is_read(corpus):
    add_utterance(corpus / "mls_german" / "train", "10_100_000099", "opus", suffix=".opus", rate=48000)
    manifests(corpus)
    manifest = manifest_files(corpus).recordings
    recording = next(r for r in RecordingSet.from_file(manifest) if r.id == "10_100_000099")
    assert recording.sampling_rate == 16000 and recording.load_audio().shape[1] == pytest.approx(16000, abs=10)


@pytest.mark.parametrize(
    ("text", "reason", "example"),
    [("", "no text", "10_100_000050"), ("zimmer 12", "foreign characters", "'12'"), ("ça va", "", "")],
)
def test_an_unusable_transcript_is_dropped_and_counted(corpus, text, reason, example):
    add_utterance(corpus / "mls_german" / "train", "10_100_000050", text)
    report = manifests(corpus)
    if reason:
        assert report.dropped == {("de", "train", reason): 1}
        assert example in report.table() and f"dropped: {reason}" in report.table()
    assert len(supervisions(corpus)) == (4 if reason else 5)
    assert report.kept[("pl", "train")] == 4


def test_a_line_without_audio_is_dropped(corpus):
    with (corpus / "mls_german" / "train" / "transcripts.txt").open("a") as file:
        file.write("10_100_000051\teins\n../../x_1_2\tzwei\n")
    assert manifests(corpus).dropped == {("de", "train", "no audio"): 2}


def test_an_unreadable_audio_file_is_dropped(corpus):
    add_utterance(corpus / "mls_german" / "train", "10_100_000052", "eins").write_bytes(b"")
    report = manifests(corpus)
    assert report.dropped == {("de", "train", "unreadable audio"): 1}
    assert "10_100_000052.flac" in report.table()


def test_a_truncated_flac_is_dropped_by_the_feature_extraction(corpus):
    path = add_utterance(corpus / "mls_german" / "train", "10_100_000053", "eins", seconds=3.0)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    report, cuts = features(corpus)
    assert report.dropped == {("de", "train", "unreadable audio"): 1}
    assert report.kept[("de", "train")] == len(cuts["de", "train"]) == 4
    assert len(cuts["pl", "train"]) == 4
    assert "10_100_000053" in report.table()


def test_a_flac_without_a_length_is_dropped_with_the_cause(corpus):
    path = add_utterance(corpus / "mls_german" / "train", "10_100_000056", "eins")
    path.write_bytes(encode(speech_like(2.0, 16000), "flac", 16000, seekable=False))
    report = manifests(corpus)
    assert report.dropped == {("de", "train", "unreadable audio"): 1}
    assert "10_100_000056.flac: its header does not state the number of samples" in report.table()


def test_stereo_and_8_khz_audio_is_converted_and_noted(corpus):
    split = corpus / "mls_german" / "train"
    stereo = add_utterance(split, "10_100_000054", "eins", channels=2)
    add_utterance(split, "10_100_000055", "zwei", rate=8000)
    report, cuts = features(corpus)
    assert report.notes == {("de", "train", "downmixed"): 1, ("de", "train", "resampled"): 1}
    by_name = {cut.id.rsplit("-", 1)[0]: cut for cut in cuts["de", "train"]}
    assert len(by_name) == 6
    samples, _ = soundfile.read(stereo, dtype="float32")
    expected = FbankConfig().extractor().extract(torch.from_numpy(samples.mean(axis=1)), 16000)
    stored = by_name["10_100_000054"].load_features()
    assert stored.shape == expected.shape and np.abs(stored - expected.numpy()).max() < 0.2  # lossy storage
    assert by_name["10_100_000055"].num_frames == 100


def test_a_speaker_missing_from_metainfo_is_kept_and_noted(corpus):
    add_utterance(corpus / "mls_german" / "train", "77_770_000000", "eins")
    report = manifests(corpus)
    assert report.notes == {("de", "train", "speaker not in metainfo.txt"): 1}
    assert {s.speaker: s.gender for s in supervisions(corpus)}["77"] is None


def test_a_duplicate_handle_is_dropped(corpus):
    with (corpus / "mls_german" / "train" / "transcripts.txt").open("a") as file:
        file.write("10_100_000001\tzwei\n")
    assert manifests(corpus).dropped == {("de", "train", "named twice"): 1}
    assert [s.text for s in supervisions(corpus)] == ["eins zwei", "drei vier", "fünf sechs", "über größe"]


def test_texts_are_converted_to_normalization_form_c(corpus):
    path = corpus / "mls_german" / "train" / "transcripts.txt"
    decomposed = unicodedata.normalize("NFD", path.read_text(encoding="utf-8"))
    assert "u\u0308" in decomposed
    path.write_text("\ufeff" + decomposed, encoding="utf-8")
    assert not manifests(corpus).dropped
    assert [s.text for s in supervisions(corpus)][2:] == ["fünf sechs", "über größe"]


@pytest.mark.parametrize("name", ["dev/transcripts.txt", "metainfo.txt", "train/limited_supervision/9hr/handles.txt"])
@pytest.mark.parametrize("encoding", ["latin1", "utf-16"])
def test_an_encoding_other_than_utf_8_is_an_error(corpus, name, encoding):
    path = corpus / "mls_german" / name
    handles = corpus / "mls_german" / "train" / "limited_supervision" / "9hr" / "handles.txt"
    handles.parent.mkdir(parents=True)
    handles.write_text("10_100_000000\n")
    path.write_text("10_100_000000\tfünf", encoding=encoding)
    with pytest.raises(ValueError, match=rf"{name}, line 1 is not in UTF-8 .*iconv -f {encoding} -t utf-8"):
        manifests(corpus, subset="9hr")


def test_byte_order_marks_and_line_ends_of_other_systems_are_accepted(corpus):
    folder = corpus / "mls_german"
    handles = folder / "train" / "limited_supervision" / "9hr" / "handles.txt"
    handles.parent.mkdir(parents=True)
    handles.write_text("10_100_000000\n10_100_000001\n\n")
    for path in (handles, folder / "metainfo.txt", folder / "train" / "transcripts.txt"):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    report = prepare_manifests(corpus, corpus.parent / "manifests", [GERMAN], subset="9hr")
    assert report.kept["de", "train"] == 2 and not report.dropped and not report.notes
    assert [s.text for s in supervisions(corpus)] == ["eins zwei", "drei vier"]


def test_selected_handles_without_transcript_are_counted(corpus):
    handles = corpus / "mls_german" / "train" / "limited_supervision" / "9hr" / "handles.txt"
    handles.parent.mkdir(parents=True)
    handles.write_text("10_100_000000\n10_100_000099\n")
    report = prepare_manifests(corpus, corpus.parent / "manifests", [GERMAN], subset="9hr")
    assert report.kept["de", "train"] == 1 and report.dropped == {("de", "train", "no transcript"): 1}
    assert "10_100_000099 is in handles.txt, but not in" in report.table()


@pytest.mark.parametrize("speaker", ["anna-maria", "spk_01", "Dr.Ümit"])
def test_names_of_speakers(corpus, speaker):
    add_utterance(corpus / "mls_german" / "train", f"{speaker}_100_000000", "eins")
    with (corpus / "mls_german" / "metainfo.txt").open("a", encoding="utf-8") as file:
        file.write(f"{speaker} | F | train | 1 | 100 | t | c\n")
    report = manifests(corpus)
    assert not report.dropped and not report.notes
    assert (supervisions(corpus)[-1].speaker, supervisions(corpus)[-1].gender) == (speaker, "F")


@pytest.mark.parametrize(
    "handle",
    [
        *("..", "../../x_1_2", "a_.._b", "_1_2", "10_100", "x", "a/b_1_2", "~_1_2"),
        pytest.param("10_100_" + 300 * "9", id="too long for a file name"),
    ],
)
def test_handles_that_name_no_file_of_the_corpus_are_dropped(corpus, handle):
    with (corpus / "mls_german" / "train" / "transcripts.txt").open("a") as file:
        file.write(f"{handle}\teins\n")
    assert manifests(corpus).dropped == {("de", "train", "no audio"): 1}


def test_training_utterances_that_are_also_in_dev_or_test_are_dropped(corpus):
    folder = corpus / "mls_german"
    for split, handle in (("train", "30_300_000001"), ("train", "20_200_000000"), ("dev", "30_300_000002")):
        add_utterance(folder / split, handle, "eins")
    report = manifests(corpus)
    assert report.dropped == {("de", "train", "also in dev or test"): 2, ("de", "dev", "also in dev or test"): 1}
    assert all(report.kept["de", split] == 4 for split in SPLITS)


def test_reading_in_parts_gives_the_same_manifests(corpus, monkeypatch):
    whole = manifests(corpus), [supervisions(corpus, language=language) for language in (GERMAN, POLISH)]
    shutil.rmtree(corpus.parent / "manifests")
    monkeypatch.setattr(layout, "_SHARD_SIZE", 3)
    assert (manifests(corpus), [supervisions(corpus, language=language) for language in (GERMAN, POLISH)]) == whole


def test_error_of_a_missing_split_names_existing_splits(corpus):
    (corpus / "mls_polish" / "dev").rename(corpus / "mls_polish" / "valid")
    with pytest.raises(CorpusError, match=r"mls_polish lacks the split dev \(found: test, train, valid\)"):
        manifests(corpus)
    assert len(supervisions(corpus)) == 4  # the previous language is complete


def test_error_of_a_missing_language_names_existing_folders(corpus):
    with pytest.raises(CorpusError, match=r"no mls_french or mls_french_opus in .*found: mls_german, mls_polish"):
        prepare_manifests(corpus, corpus.parent / "m", [get_language("fr")])


def test_too_many_dropped_utterances_are_an_error(corpus):
    add_utterance(corpus / "mls_german" / "dev", "20_200_000050", "12")
    report = manifests(corpus)
    with pytest.raises(CorpusError, match=r"de dev loses 1 of 5 utterances, more than --max-dropped-share 0\.1"):
        report.check([GERMAN, POLISH], SPLITS, 0.1)
    report.check([GERMAN, POLISH], SPLITS, 0.2)
    assert len(supervisions(corpus, language=POLISH)) == 4


@pytest.mark.parametrize("empty", [SPLITS, ("dev",)], ids=["corpus", "split"])
def test_a_split_without_utterances_is_an_error(corpus, empty):
    for split in empty:
        (corpus / "mls_german" / split / "transcripts.txt").write_text("")
    report = prepare_manifests(corpus, corpus.parent / "manifests", [GERMAN])
    with pytest.raises(CorpusError, match=rf"de {empty[0]} has no utterances, .* fix the corpus and remove the files"):
        report.check([GERMAN], SPLITS, 1.0)


def test_limited_supervision_selects_the_handles_of_the_subset(corpus):
    for language in ("german", "polish"):
        folder = corpus / f"mls_{language}" / "train" / "limited_supervision" / "1hr" / "0"
        folder.mkdir(parents=True)
        (folder / "handles.txt").write_text("10_100_000001\n10_100_000003\n")
    assert manifests(corpus, subset="1hr").kept[("de", "train")] == 2
    with pytest.raises(CorpusError, match=r"no handles\.txt below .*9hr: the corpus lacks this subset"):
        prepare_manifests(corpus, corpus.parent / "other", [GERMAN], subset="9hr")
    nine = corpus / "mls_german" / "train" / "limited_supervision" / "9hr"
    nine.mkdir()
    (nine / "handles.txt").write_text("10_100_000002\n")
    ten = prepare_manifests(corpus, corpus.parent / "ten", [GERMAN], subset="10hr")
    assert ten.kept["de", "train"] == 3 and ten.kept["de", "dev"] == 4


def test_short_and_long_cuts_are_dropped_and_perturbed_copies_keep_the_language(corpus):
    add_utterance(corpus / "mls_german" / "train", "10_100_000056", "eins", seconds=0.1)
    add_utterance(corpus / "mls_german" / "train", "10_100_000057", "zwei", seconds=3.0)
    report, cuts = features(corpus, max_duration=2.0, perturb_speed=True)
    assert report.dropped == {("de", "train", "too short"): 1, ("de", "train", "too long"): 1}
    assert len(cuts["de", "train"]) == report.kept[("de", "train")] == 12
    assert {s.language for cut in cuts["de", "train"] for s in cut.supervisions} == {"de"}
    assert sorted({cut.num_frames for cut in cuts["de", "train"]}) == [91, 100, 111]
    assert len(cuts["de", "dev"]) == 4


def test_complete_features_are_not_computed_again(corpus):
    report, _cuts = features(corpus)
    stamp = german_cuts(corpus).stat().st_mtime_ns
    again, _ = features(corpus)
    assert again == report
    assert german_cuts(corpus).stat().st_mtime_ns == stamp


def test_feature_extraction_resumes(corpus, monkeypatch):
    """Complete shards are not computed again, and unfinished ones of other options are not removed."""
    monkeypatch.setattr(fbank, "SHARD_SIZE", 3)
    whole = features(corpus, perturb_speed=True)
    shutil.rmtree(corpus.parent / "fbank")
    folder = corpus.parent / "fbank" / "mls-german_feats_train"
    with monkeypatch.context() as patch:
        patch.setattr(ShardedOutput, "join", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            features(corpus, perturb_speed=True)
    (folder / "part-1.json").unlink()
    stamps = {path: path.stat().st_mtime_ns for path in folder.glob("feats-*")}
    assert len(stamps) == 4
    with pytest.raises(ValueError, match=r"feats_train holds unfinished work of other options \(speeds .* remove"):
        features(corpus, perturb_speed=False)
    report, cuts = features(corpus, perturb_speed=True)
    assert (report, cuts) == whole
    assert [path.name for path, time in stamps.items() if path.stat().st_mtime_ns != time] == ["feats-1.lca"]
    assert sorted(path.name for path in folder.iterdir()) == [f"feats-{i}.lca" for i in range(4)]


def test_manifests_with_another_sampling_rate_are_rejected(corpus):
    manifests(corpus)
    path = manifest_files(corpus).recordings
    RecordingSet.from_recordings([r.resample(8000) for r in RecordingSet.from_file(path)]).to_file(path)
    message = r"recording 10_100_000000 in .* has a sampling rate of 8000 Hz: expected 16000 Hz; .*resample\(16000\)"
    with pytest.raises(DataError, match=message):
        features(corpus)


def test_mismatched_manifests_are_rejected(corpus):
    manifests(corpus)
    path = manifest_files(corpus).supervisions
    SupervisionSet.from_segments(supervisions(corpus)[1:]).to_file(path)
    with pytest.raises(CorpusError, match=r"supervisions_train.* does not match .* at 10_100_000000"):
        features(corpus)


def test_a_report_is_restored_from_its_file(corpus):
    add_utterance(corpus / "mls_german" / "dev", "20_200_000050", "12")
    report = manifests(corpus)
    report.save(corpus / "report.json")
    assert CorpusReport.load(corpus / "report.json") == report
