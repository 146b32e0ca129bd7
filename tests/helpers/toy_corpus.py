"""A small corpus in the layout LANGUAGE_NAME/SPLIT/ID.wav and ID.txt, as an example of a corpus module."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from lhotse import Recording, SupervisionSegment
from mls_folder import write_audio

from icefall_pathways.constants import SAMPLE_RATE
from icefall_pathways.corpora.layout import SPLITS, SplitFiles, write_manifests
from icefall_pathways.corpora.recordings import read_recording
from icefall_pathways.corpora.registry import CorpusSpec
from icefall_pathways.corpora.validation import CorpusError, CorpusReport
from icefall_pathways.languages import Language, LanguageCode
from icefall_pathways.sharding.executors import Workers

TEXTS = ("one two three", "two three", "three one")


def prepare_manifests(
    corpus_dir: Path, output_dir: Path, languages: Sequence[Language], subset: str, workers: Workers
) -> CorpusReport:
    """Write the manifests of all splits; see `CorpusModule`."""
    if subset != "train":
        raise CorpusError(f"--subset {subset}: the toy corpus has no subsets; expected train")
    report = CorpusReport()
    for language in languages:
        for split in SPLITS:
            paths = sorted((corpus_dir / language.name / split).glob("*.wav"))
            files = SplitFiles(output_dir, "toy", language, split)
            report.add(write_manifests(files, paths, partial(_read, language.code), workers))
    return report


def _read(language: str, paths: Sequence[Path], report: CorpusReport) -> Iterator[tuple[Recording, SupervisionSegment]]:
    for path in paths:
        recording = read_recording(path, path.stem).resample(SAMPLE_RATE)
        text = path.with_suffix(".txt").read_text(encoding="utf-8")
        yield (
            recording,
            SupervisionSegment(recording.id, recording.id, 0.0, recording.duration, text=text, language=language),
        )


def acquire(corpus_dir: Path, languages: Sequence[Language], num_jobs: int) -> None:
    """Write three utterances per split of each language."""
    for language in languages:
        for split in SPLITS:
            for index, text in enumerate(TEXTS):
                path = corpus_dir / language.name / split / f"{split}-{index}.wav"
                write_audio(path, seconds=1.0 + 0.5 * index, seed=index)
                path.with_suffix(".txt").write_text(text, encoding="utf-8")


#: The registry entry.
SPEC = CorpusSpec("toy", "a toy corpus", "toy_corpus", (LanguageCode("en"),), acquire_command="get_corpus")
