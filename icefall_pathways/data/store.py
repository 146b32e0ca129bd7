"""Manifests with audio become cuts with stored features."""

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from multiprocessing import get_context
from os import cpu_count
from pathlib import Path

import numpy as np
import torch
from lhotse import CutSet, FeatureExtractor, Features, LilcomChunkyWriter, MonoCut, RecordingSet, SupervisionSet
from tabulate import tabulate
from tqdm import tqdm

from icefall_pathways.corpora.mls import SAMPLE_RATE, SPLITS, manifest_paths
from icefall_pathways.corpora.validation import CorpusError, CorpusReport, Reason
from icefall_pathways.data.features import FbankConfig
from icefall_pathways.data.manifests import check_recording
from icefall_pathways.files import atomic_write
from icefall_pathways.languages import Language, parse_languages

_SHARD = 400  # cuts that one process takes at a time


@dataclass(frozen=True)
class StoreConfig:
    """Which features to make, from what, and what may be lost."""

    manifest_dir: Path = Path("data/manifests")
    """Where the recordings and supervisions are."""

    output_dir: Path = Path("data/fbank")
    """Where the features and the cuts with features go."""

    languages: str = "en fr it nl"
    """Languages."""

    store_feats: bool = True
    """Store features; 0: only find out which audio can be read, for training with --on-the-fly-feats 1."""

    perturb_speed: bool = False
    """Add copies of the training cuts at 0.9 and 1.1 times the speed."""

    min_duration: float = 0.2
    """Leave out cuts shorter than this (seconds)."""

    max_duration: float = 30.0
    """Leave out cuts longer than this (seconds)."""

    max_dropped_share: float = 0.1
    """Stop with an error if a language and split loses more than this share of its utterances."""

    num_jobs: int = 0
    """Processes; 0 uses all cores."""


def cuts_path(output_dir: Path, language: Language, split: str) -> Path:
    """Where the cuts with features of a split are."""
    return output_dir / f"mls-{language.name}_cuts_{split}.jsonl.gz"


def store_features(config: StoreConfig) -> CorpusReport:
    """Make features and cuts of all languages and splits; a finished split is read back, not made again.

    Audio that is not 16 kHz mono is resampled and downmixed. A file that cannot be decoded whole is left out, counted.

    Returns:
      What was kept and what was left out, from the reading of the transcripts on.

    Raises:
      CorpusError: Manifests are missing.
    """
    report = CorpusReport()
    with _process_pool(config.num_jobs) as pool:
        for language in parse_languages(config.languages):
            for split in SPLITS:
                report.add(_store_split(config, language, split, pool))
    return report


def store_musan(manifest_dir: Path, output_dir: Path, num_jobs: int) -> None:
    """Make features of MUSAN in pieces of ten seconds and write output_dir/musan_cuts.jsonl.gz.

    Raises:
      CorpusError: There are no manifests of it, or a file cannot be decoded.
    """
    output = output_dir / "musan_cuts.jsonl.gz"
    paths = sorted(manifest_dir.glob("musan_recordings_*.jsonl.gz"))
    if output.exists():
        return
    if not paths:
        raise CorpusError(
            f"no musan_recordings_*.jsonl.gz in {manifest_dir}: run prepare.sh --musan-dir DIR from stage 2"
        )
    whole = CutSet.from_cuts(r.resample(SAMPLE_RATE).to_cut() for path in paths for r in RecordingSet.from_file(path))
    pieces = whole.cut_into_windows(10.0).filter(lambda cut: cut.duration > 5).to_eager()
    with _process_pool(num_jobs) as pool:
        stored, unreadable = _store_cuts(pieces, output_dir / "musan_feats", "MUSAN", pool)
    if unreadable:
        raise CorpusError(f"cannot decode {len(unreadable)} pieces of MUSAN, such as {unreadable[0]}: unpack it again")
    _write_cuts(stored, output)


def describe(config: StoreConfig) -> str:
    """A table of the stored cuts: number, hours and durations of each language and split."""
    rows = []
    for language in parse_languages(config.languages):
        for split in SPLITS:
            durations = sorted(cut.duration for cut in CutSet.from_file(cuts_path(config.output_dir, language, split)))
            if durations:
                middle, longest = durations[len(durations) // 2], durations[-1]
                rows.append(
                    [language.code, split, len(durations), sum(durations) / 3600, durations[0], middle, longest]
                )
    header = ["language", "split", "cuts", "hours", "shortest (s)", "median (s)", "longest (s)"]
    return tabulate(rows, header, tablefmt="simple_outline", floatfmt=".2f")


def transcripts(cuts_dir: Path, languages: list[Language], split: str) -> Iterator[str]:
    """The transcripts of a split, language after language.

    Raises:
      CorpusError: The cuts of a language are missing.
    """
    for language in languages:
        path = cuts_path(cuts_dir, language, split)
        if not path.exists():
            raise CorpusError(f"no {path}: run prepare.sh from stage 3 for {language.name}")
        for cut in CutSet.from_file(path):
            yield from (supervision.text for supervision in cut.supervisions)


def _store_split(config: StoreConfig, language: Language, split: str, pool: ProcessPoolExecutor) -> CorpusReport:
    output = cuts_path(config.output_dir, language, split)
    report_path = config.output_dir / f"mls-{language.name}_report_{split}.json"
    if output.exists() and report_path.exists():
        return CorpusReport.load(report_path)
    report = _manifest_report(config.manifest_dir, language, split)
    folder = config.output_dir / f"mls-{language.name}_feats_{split}" if config.store_feats else None
    cuts = _cuts(config, language, split, report)
    stored, unreadable = _store_cuts(cuts, folder, f"fbank {language.code} {split}", pool)
    for cut_id, reason in unreadable:
        # It was counted as kept when its header was read.
        report.kept[language.code, split] -= 1
        report.drop(language.code, split, Reason.UNREADABLE, f"{cut_id}: {reason}")
    report.save(report_path)
    _write_cuts(stored, output)
    return report


def _process_pool(num_jobs: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(num_jobs or cpu_count() or 1, get_context("spawn"), torch.set_num_threads, (1,))


def _store_cuts(
    cuts: CutSet, folder: Path | None, title: str, pool: ProcessPoolExecutor
) -> tuple[list[MonoCut], list[tuple[str, str]]]:
    """Store the features of `cuts` in `folder`, if there is one: the cuts, and which could not be decoded and why."""
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    shards = list(_shards(cuts))
    jobs = [pool.submit(_store_shard, shard, folder and folder / f"feats-{i}") for i, shard in enumerate(shards)]
    stored: list[MonoCut] = []
    unreadable: list[tuple[str, str]] = []
    with tqdm(total=len(cuts), desc=title, unit="cut") as bar:
        for job, shard in zip(jobs, shards, strict=True):
            finished, failed = job.result()
            stored += finished
            unreadable += failed
            bar.update(len(shard))
    return stored, unreadable


def _write_cuts(cuts: list[MonoCut], path: Path) -> None:
    with atomic_write(path) as temporary:
        CutSet.from_cuts(cuts).to_file(temporary)


def _manifest_report(manifest_dir: Path, language: Language, split: str) -> CorpusReport:
    path = manifest_dir / f"mls-{language.name}_report_{split}.json"
    return CorpusReport.load(path) if path.exists() else CorpusReport()


def _cuts(config: StoreConfig, language: Language, split: str, report: CorpusReport) -> CutSet:
    """The cuts of a split within the limits of duration, with their perturbed copies if those are asked for."""
    paths = manifest_paths(config.manifest_dir, language, split)
    for path in paths:
        if not path.exists():
            raise CorpusError(f"no {path}: run prepare.sh from stage 1 for {language.name}")
    cuts = CutSet.from_manifests(RecordingSet.from_file(paths[0]), SupervisionSet.from_file(paths[1]))
    kept = []
    for cut in cuts:
        check_recording(cut.recording, f"recording {cut.recording_id} in {paths[0]}")
        reason = None
        if cut.duration < config.min_duration:
            reason = Reason.TOO_SHORT
        elif cut.duration > config.max_duration:
            reason = Reason.TOO_LONG
        if reason is None:
            kept.append(cut)
        else:
            report.kept[language.code, split] -= 1
            report.drop(language.code, split, reason, f"{cut.id} lasts {cut.duration:.2f} s")
    within = CutSet.from_cuts(kept)
    if config.perturb_speed and split == "train":
        copies = [within.perturb_speed(factor) for factor in (0.9, 1.1)]
        report.kept[language.code, split] += sum(len(copy) for copy in copies)
        within = CutSet.from_cuts([cut for part in (within, *copies) for cut in part])
    return within


def _shards(cuts: CutSet) -> Iterator[list[MonoCut]]:
    every = list(cuts)
    for start in range(0, len(every), _SHARD):
        yield every[start : start + _SHARD]


def _store_shard(cuts: list[MonoCut], path: Path | None) -> tuple[list[MonoCut], list[tuple[str, str]]]:
    """Store the features of some cuts, if there is a path; the cuts, and which could not be decoded and why."""
    extractor = FbankConfig().extractor()
    stored, unreadable = [], []
    with nullcontext() if path is None else LilcomChunkyWriter(path) as writer:
        for cut in cuts:
            try:
                audio = cut.recording.load_audio(offset=cut.start, duration=cut.duration)
            except Exception as error:  # the audio backends raise whatever they like
                unreadable.append((cut.id, str(error).strip().splitlines()[-1] if str(error).strip() else repr(error)))
                continue
            stored.append(cut if writer is None else _with_features(cut, audio, extractor, writer))
    return stored, unreadable


def _with_features(cut: MonoCut, audio: np.ndarray, extractor: FeatureExtractor, writer: LilcomChunkyWriter) -> MonoCut:
    """The cut with the features of its audio (channels, samples), downmixed."""
    features = np.asarray(extractor.extract(audio.mean(axis=0, keepdims=True), SAMPLE_RATE))
    key = writer.write(cut.id, features)
    stored = Features(
        type=extractor.name,
        num_frames=features.shape[0],
        num_features=features.shape[1],
        frame_shift=extractor.frame_shift,
        sampling_rate=SAMPLE_RATE,
        start=0.0,
        duration=cut.duration,
        storage_type=writer.name,
        storage_path=str(writer.storage_path),
        storage_key=key,
        recording_id=cut.recording_id,
        channels=0,
    )
    supervisions = [supervision.with_offset(0.0) for supervision in cut.supervisions]
    for supervision in supervisions:
        supervision.channel = 0  # the features are those of the downmixed audio
    return MonoCut(
        id=cut.id,
        start=0.0,
        duration=cut.duration,
        channel=0,
        supervisions=supervisions,
        features=stored,
        recording=cut.recording,
    )
