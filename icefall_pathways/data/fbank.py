"""Compute the features of all splits of a corpus, and of MUSAN, from their manifests."""

import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing import get_context
from os import cpu_count
from pathlib import Path

import torch
from lhotse import CutSet, MonoCut, RecordingSet, SupervisionSet
from lhotse.cut import Cut, MultiCut
from tabulate import tabulate
from tqdm import tqdm

from icefall_pathways.constants import SAMPLE_RATE
from icefall_pathways.corpora.layout import SPLITS, SplitFiles, find_corpus
from icefall_pathways.corpora.validation import CorpusError, CorpusReport, Reason
from icefall_pathways.data.manifests import check_recording, check_sampling_rate
from icefall_pathways.data.shards import FeatureShards
from icefall_pathways.files import sha256
from icefall_pathways.languages import Language, parse_languages


@dataclass(frozen=True)
class ComputeFbankConfig:
    """Options of the feature extraction."""

    manifest_dir: Path = Path("data/manifests")
    """Folder of the recording and supervision manifests."""

    output_dir: Path = Path("data/fbank")
    """Folder for the features and the cuts with features."""

    languages: str = "en fr it nl"
    """Languages, separated by spaces."""

    store_feats: bool = True
    """Store features; 0: only detect unreadable audio, for training with --on-the-fly-feats 1."""

    perturb_speed: bool = False
    """Add copies of the training cuts at 0.9 and 1.1 times the speed."""

    min_duration: float = 0.2
    """Drop cuts shorter than this (seconds)."""

    max_duration: float = 30.0
    """Drop cuts longer than this (seconds)."""

    max_dropped_share: float = 0.1
    """Fail if a split of a language loses more than this share of its utterances."""

    num_jobs: int = 0
    """Processes; 0 uses all cores."""


def compute_fbank(config: ComputeFbankConfig) -> CorpusReport:
    """Compute the features and cuts of all languages and splits; completed splits are skipped.

    Audio is resampled to 16 kHz and downmixed to mono if necessary. Files that cannot be decoded completely are dropped
    and counted.

    Returns:
      The numbers of kept and dropped utterances, including those dropped from the manifests.

    Raises:
      CorpusError: Manifests are missing.
    """
    report = CorpusReport()
    with _process_pool(config.num_jobs) as pool:
        for language in parse_languages(config.languages):
            for split in SPLITS:
                report.add(_compute_split(config, language, split, pool))
    return report


def compute_fbank_musan(manifest_dir: Path, output_dir: Path, num_jobs: int) -> None:
    """Compute the features of MUSAN in windows of ten seconds and write output_dir/musan_cuts.jsonl.gz.

    Raises:
      CorpusError: The manifests of MUSAN are missing, or a file cannot be decoded.
    """
    output = output_dir / "musan_cuts.jsonl.gz"
    paths = sorted(manifest_dir.glob("musan_recordings_*.jsonl.gz"))
    if output.exists():
        return
    if not paths:
        raise CorpusError(
            f"no musan_recordings_*.jsonl.gz in {manifest_dir}: run prepare.sh --musan-dir DIR from stage 2"
        )
    recordings = (recording for path in paths for recording in RecordingSet.from_jsonl_lazy(path))
    cuts = CutSet.from_cuts(recording.resample(SAMPLE_RATE).to_cut() for recording in recordings)
    windows = cuts.cut_into_windows(10.0).filter(lambda cut: cut.duration > 5).to_eager()
    shards = FeatureShards(output_dir / "musan_feats", True, {"recordings": [sha256(path) for path in paths]})
    with _process_pool(num_jobs) as pool, tqdm(total=len(windows), desc="MUSAN", unit="cut") as bar:
        unreadable = shards.compute(windows, pool, _num_processes(num_jobs), bar)
    if unreadable:
        shards.remove()
        raise CorpusError(f"cannot decode {len(unreadable)} cuts of MUSAN, such as {unreadable[0]}: unpack it again")
    shards.join(output)


def summarize_cuts(config: ComputeFbankConfig) -> str:
    """Return a table of the number of cuts, the hours, and the durations of each language and split."""
    rows, corpus = [], find_corpus(config.output_dir, "cuts")
    for language in parse_languages(config.languages):
        for split in SPLITS:
            files = SplitFiles(config.output_dir, corpus, language, split)
            durations = sorted(cut.duration for cut in CutSet.from_jsonl_lazy(files.cuts))
            if durations:
                median, longest = durations[len(durations) // 2], durations[-1]
                rows.append(
                    [language.code, split, len(durations), sum(durations) / 3600, durations[0], median, longest]
                )
    header = ["language", "split", "cuts", "hours", "shortest (s)", "median (s)", "longest (s)"]
    return tabulate(rows, header, tablefmt="simple_outline", floatfmt=".2f")


def transcripts(cuts_dir: Path, languages: list[Language], split: str) -> Iterator[str]:
    """Yield the transcripts of a split, language by language.

    Raises:
      CorpusError: The cuts of a language are missing.
    """
    corpus = find_corpus(cuts_dir, "cuts")
    for language in languages:
        path = SplitFiles(cuts_dir, corpus, language, split).cuts
        if not path.exists():
            raise CorpusError(f"no {path}: run prepare.sh from stage 3 for {language.name}")
        for cut in CutSet.from_jsonl_lazy(path):
            yield from (supervision.text for supervision in cut.supervisions)


def _compute_split(
    config: ComputeFbankConfig, language: Language, split: str, pool: ProcessPoolExecutor
) -> CorpusReport:
    completed = SplitFiles(config.output_dir, find_corpus(config.output_dir, "cuts"), language, split)
    if completed.cuts.exists() and completed.report.exists():
        return CorpusReport.load(completed.report)
    manifests = SplitFiles(config.manifest_dir, find_corpus(config.manifest_dir, "recordings"), language, split)
    for path in (manifests.recordings, manifests.supervisions):
        if not path.exists():
            raise CorpusError(f"no {path}: run prepare.sh from stage 1 for {language.name}")
    output = replace(manifests, folder=config.output_dir)
    report = CorpusReport.load(manifests.report) if manifests.report.exists() else CorpusReport()
    speeds = (1.0, 0.9, 1.1) if config.perturb_speed and split == "train" else (1.0,)
    options = {
        "min_duration": config.min_duration,
        "max_duration": config.max_duration,
        "speeds": list(speeds),
        "store_feats": config.store_feats,
        "recordings": sha256(manifests.recordings),
        "texts": sha256(manifests.supervisions),
    }
    shards = FeatureShards(output.features, config.store_feats, options)
    total = len(speeds) * report.kept[language.code, split]
    with tqdm(total=total, desc=f"fbank {language.code} {split}", unit="cut") as bar:
        cuts = _cuts(config, manifests, speeds, report)
        unreadable = shards.compute(cuts, pool, _num_processes(config.num_jobs), bar)
    for cut_id, error in unreadable:
        # The utterance was counted as kept when its header was read.
        report.kept[language.code, split] -= 1
        report.drop(language.code, split, Reason.UNREADABLE, f"{cut_id}: {error}")
    report.save(output.report)
    shards.join(output.cuts)
    return report


def _num_processes(num_jobs: int) -> int:
    return num_jobs or cpu_count() or 1


@contextmanager
def _process_pool(num_jobs: int) -> Iterator[ProcessPoolExecutor]:
    """Start single-threaded worker processes; cancel their queue after an error or Ctrl-C.

    Raises:
      OSError: A worker process was killed.
    """
    pool = ProcessPoolExecutor(_num_processes(num_jobs), get_context("spawn"), _start_worker)
    try:
        yield pool
    except BrokenProcessPool as error:
        raise OSError(
            "a process that computes features was killed, most likely because it ran out of memory: run the same "
            "command again with a smaller --num-jobs; completed work is kept"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent process shuts down its workers


def _cuts(
    config: ComputeFbankConfig, manifests: SplitFiles, speeds: Sequence[float], report: CorpusReport
) -> Iterator[Cut]:
    """Yield the cuts of a split within the duration limits, once per speed; manifests are read lazily."""
    language, split = manifests.language.code, manifests.split
    for speed in speeds:
        for cut in _whole_recordings(manifests.recordings, manifests.supervisions):
            reason = None
            if cut.duration < config.min_duration:
                reason = Reason.TOO_SHORT
            elif cut.duration > config.max_duration:
                reason = Reason.TOO_LONG
            if speed != 1.0 and reason is None:
                report.kept[language, split] += 1
                yield cut.perturb_speed(speed)
            elif reason is None:
                yield cut
            elif speed == 1.0:
                report.kept[language, split] -= 1
                report.drop(language, split, reason, f"{cut.id} has a duration of {cut.duration:.2f} s")


def _whole_recordings(recordings_path: Path, supervisions_path: Path) -> Iterator[Cut]:
    """Yield a cut for each recording and its supervision, equal to the cuts of `CutSet.from_manifests`."""
    supervisions = iter(SupervisionSet.from_jsonl_lazy(supervisions_path))
    for index, recording in enumerate(RecordingSet.from_jsonl_lazy(recordings_path)):
        context = f"recording {recording.id} in {recordings_path}"
        check_recording(recording, context)
        check_sampling_rate(recording, context)
        supervision = next(supervisions, None)
        if supervision is None or supervision.recording_id != recording.id:
            raise CorpusError(
                f"{supervisions_path} does not match {recordings_path} at {recording.id}: expected a supervision for "
                "each recording, in the same order; remove both and run prepare.sh from stage 1"
            )
        channels = recording.channel_ids
        cut_type, channel = (MonoCut, channels[0]) if len(channels) == 1 else (MultiCut, channels)
        yield cut_type(
            id=f"{recording.id}-{index}",
            start=0,
            duration=recording.duration,
            channel=channel,
            recording=recording,
            supervisions=[supervision],
        )
