"""Compute the features of all splits of a corpus, and of MUSAN, from their manifests."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

from lhotse import CutSet, MonoCut, Recording, SupervisionSegment
from lhotse.cut import Cut, MultiCut
from lhotse.serialization import deserialize_item
from tabulate import tabulate
from tqdm import tqdm

from icefall_pathways.constants import SAMPLE_RATE
from icefall_pathways.corpora.description import CorpusDescription
from icefall_pathways.corpora.layout import SPLITS, SplitFiles, describe_corpus, find_corpus
from icefall_pathways.corpora.path_resolver import PathResolver
from icefall_pathways.corpora.validation import CorpusError, CorpusReport, Reason
from icefall_pathways.data.feature_shards import FEATURES, SHARD_SIZE, write_shard
from icefall_pathways.data.manifests import (
    check_recording,
    check_sampling_rate,
    damaged_manifest,
    manifest_lines,
    read_cuts,
)
from icefall_pathways.files import sha256
from icefall_pathways.languages import Language, parse_languages
from icefall_pathways.ranges import PositiveFloat, Share
from icefall_pathways.sharding.executors import ExecutionConfig, Workers, open_workers
from icefall_pathways.sharding.shards import Shard, ShardedOutput

_MAX_MARGIN = 0.1  # seconds of a recording before and after its supervision, due to rounding


@dataclass(frozen=True)
class ComputeFbankConfig(ExecutionConfig):
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

    max_duration: PositiveFloat = 30.0
    """Drop cuts longer than this (seconds)."""

    max_dropped_share: Share = 0.1
    """Fail if a split of a language loses more than this share of its utterances."""


def compute_fbank(config: ComputeFbankConfig) -> CorpusReport:
    """Compute the features and cuts of all languages and splits; completed splits are skipped.

    Audio is resampled to 16 kHz and downmixed to mono if necessary. Files that cannot be decoded completely are dropped
    and counted.

    Returns:
      The numbers of kept and dropped utterances of the splits that are complete, including those dropped from the
      manifests.

    Raises:
      CorpusError: Manifests are missing.
    """
    report = CorpusReport()
    description = CorpusDescription.load(config.manifest_dir)
    if description is not None:
        describe_corpus(config.output_dir, description.name, description.text, description.label)
    with open_workers(config) as workers:
        for language in parse_languages(config.languages):
            for split in SPLITS:
                report.add(_compute_split(config, language, split, workers))
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
    recordings = (recording for path in paths for recording in _read_recordings(path))
    cuts = CutSet.from_cuts(recording.resample(SAMPLE_RATE).to_cut() for recording in recordings)
    windows = cuts.cut_into_windows(10.0).filter(lambda cut: cut.duration > 5).to_eager()
    items = [json.dumps(cut.to_dict()) for cut in windows]
    shards = ShardedOutput(output_dir / "musan_feats", {"version": 1}, SHARD_SIZE)
    with (
        open_workers(ExecutionConfig(num_jobs=num_jobs)) as workers,
        tqdm(total=len(items), desc="MUSAN", unit="cut") as bar,
    ):
        num_shards = shards.compute(items, _compute_musan_shard, workers, bar)
    assert num_shards is not None
    unreadable = [pair for result in shards.results(num_shards) for pair in result]
    if unreadable:
        shards.clean()
        raise CorpusError(f"cannot decode {len(unreadable)} cuts of MUSAN, such as {unreadable[0]}: unpack it again")
    shards.join(num_shards, {"cuts": output})
    shards.clean(keep=FEATURES)


def _read_recordings(path: Path) -> Iterator[Recording]:
    with damaged_manifest(path, stage=1):
        yield from (Recording.from_dict(json.loads(line)) for line in manifest_lines(path, stage=1))


def _compute_musan_shard(shard: Shard[str]) -> Any:
    cuts = (deserialize_item(json.loads(item)) for item in shard.items)
    return write_shard(shard, cuts, store_feats=True)[1]


def summarize_cuts(config: ComputeFbankConfig) -> str:
    """Return a table of the number of cuts, the hours, and the durations of each language and split."""
    rows, corpus = [], find_corpus(config.output_dir, "cuts")
    for language in parse_languages(config.languages):
        for split in SPLITS:
            files = SplitFiles(config.output_dir, corpus, language, split)
            durations = sorted(cut.duration for cut in read_cuts(files.cuts))
            if durations:
                median, longest = durations[len(durations) // 2], durations[-1]
                rows.append(
                    [language.code, split, len(durations), sum(durations) / 3600, durations[0], median, longest]
                )
    header = ["language", "split", "cuts", "hours", "shortest (s)", "median (s)", "longest (s)"]
    return tabulate(rows, header, tablefmt="simple_outline", floatfmt=".2f")


class _Utterance(NamedTuple):
    """Input of the feature extraction.

    Attributes:
      speed: Factor of the speed.
      position: Position in the manifests.
      recording: A line of the recording manifest; None after its end.
      supervision: The line of the supervision manifest at the same position.
    """

    speed: float
    position: int
    recording: bytes | None
    supervision: bytes | None


def _compute_split(config: ComputeFbankConfig, language: Language, split: str, workers: Workers) -> CorpusReport:
    output = SplitFiles(config.output_dir, find_corpus(config.output_dir, "cuts"), language, split)
    if output.cuts.exists() and output.report.exists():
        unfinished = ShardedOutput(output.features, {}, SHARD_SIZE)
        if unfinished.is_unfinished:
            unfinished.clean(keep=FEATURES)
        return CorpusReport.load(output.report)
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
    shards = ShardedOutput(output.features, options, SHARD_SIZE)
    total = len(speeds) * report.kept.pop((language.code, split), 0)
    with tqdm(total=total, desc=f"fbank {language.code} {split}", unit="cut") as bar:
        compute = partial(_compute_shard, config, manifests)
        num_shards = shards.compute(_utterances(manifests, speeds), compute, workers, bar)
    if num_shards is None:
        return CorpusReport()
    for result in shards.results(num_shards):
        report.add(CorpusReport.from_json(result))
    shards.join(num_shards, {"cuts": output.cuts})
    report.save(output.report)
    shards.clean(keep=FEATURES)
    return report


def _utterances(manifests: SplitFiles, speeds: Sequence[float]) -> Iterator[_Utterance]:
    """Yield what is needed for each utterance, once per speed; the lines are parsed by the workers."""
    for speed in speeds:
        lines = zip_longest(*(manifest_lines(path, stage=1) for path in (manifests.recordings, manifests.supervisions)))
        for position, (recording, supervision) in enumerate(lines):
            yield _Utterance(speed, position, recording, supervision)


def _compute_shard(config: ComputeFbankConfig, manifests: SplitFiles, shard: Shard[_Utterance]) -> Any:
    """Compute the features and cuts of a shard and return its report as a JSON value."""
    report = CorpusReport()
    language, split = manifests.language.code, manifests.split
    num_cuts, unreadable = write_shard(shard, _cuts(config, manifests, shard.items, report), config.store_feats)
    report.kept[language, split] = num_cuts
    for cut_id, error in unreadable:
        report.drop(language, split, Reason.UNREADABLE, f"{cut_id}: {error}")
    return report.to_json()


def _cuts(
    config: ComputeFbankConfig, manifests: SplitFiles, utterances: Sequence[_Utterance], report: CorpusReport
) -> Iterator[Cut]:
    """Yield the cuts within the duration limits, at their speed; count the others."""
    paths = PathResolver(manifests.folder)
    for utterance in utterances:
        cut = paths.resolve(_cut_of(manifests, utterance))
        reason = None
        if cut.duration < config.min_duration:
            reason = Reason.TOO_SHORT
        elif cut.duration > config.max_duration:
            reason = Reason.TOO_LONG
        if reason is None:
            yield cut if utterance.speed == 1.0 else cut.perturb_speed(utterance.speed)
        elif utterance.speed == 1.0:
            example = f"{cut.id} has a duration of {cut.duration:.2f} s"
            report.drop(manifests.language.code, manifests.split, reason, example)


def _cut_of(manifests: SplitFiles, utterance: _Utterance) -> Cut:
    """Return the cut of the whole recording, equal to that of `CutSet.from_manifests`, or of the supervised part."""
    if utterance.recording is None or utterance.supervision is None:
        raise _mismatch(manifests, f"line {utterance.position + 1}")
    with damaged_manifest(manifests.recordings, stage=1):
        recording = Recording.from_dict(json.loads(utterance.recording))
        context = f"recording {recording.id} in {manifests.recordings}"
        check_recording(recording, context)
        check_sampling_rate(recording, context)
    with damaged_manifest(manifests.supervisions, stage=1):
        supervision = SupervisionSegment.from_dict(json.loads(utterance.supervision))
        start, end = float(supervision.start), float(supervision.end)
    if supervision.recording_id != recording.id:
        raise _mismatch(manifests, recording.id)
    channels = recording.channel_ids
    cut_type, channel = (MonoCut, channels[0]) if len(channels) == 1 else (MultiCut, channels)
    if start > _MAX_MARGIN or end < recording.duration - _MAX_MARGIN:
        duration = min(supervision.duration, recording.duration - start)
    else:
        start, duration = 0.0, recording.duration
    return cut_type(
        id=f"{recording.id}-{utterance.position}",
        start=start,
        duration=duration,
        channel=channel,
        recording=recording,
        supervisions=[supervision.with_offset(-start)],
    )


def _mismatch(manifests: SplitFiles, position: str) -> CorpusError:
    return CorpusError(
        f"{manifests.supervisions} does not match {manifests.recordings} at {position}: expected a supervision for "
        "each recording, in the same order; remove both and run prepare.sh from stage 1"
    )
