"""Lhotse manifests of any corpus, such as those of `lhotse prepare commonvoice`; see `lhotse_files` for their names.

Supervisions name their language, by its code or its English name. Several corpora can be combined, with weights: a
weight of 0.5 makes a corpus count as half of its hours in the sampling of training batches.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from lhotse import Recording, SupervisionSegment
from lhotse.utils import fastcopy

from icefall_pathways.constants import SAMPLE_RATE
from icefall_pathways.corpora.clips import held_out_note
from icefall_pathways.corpora.layout import SPLITS, SplitFiles, write_manifests
from icefall_pathways.corpora.lhotse_files import (
    Entry,
    ManifestFile,
    find_manifests,
    language_counts,
    language_name,
    read_entries,
    read_supervisions,
    resolve_paths,
)
from icefall_pathways.corpora.splitting import Division, Speech, divide, sentence_key
from icefall_pathways.corpora.validation import CorpusError, CorpusReport, Note, Reason, Rejection
from icefall_pathways.errors import first_line
from icefall_pathways.languages import Language, LanguageCode, get_language
from icefall_pathways.sharding.executors import Workers

CORPUS = "manifests"  # first part of the names of manifests

_SPEECH_OUTSIDE = "speech outside of the recording"  # reasons to drop an utterance
_ONE_CHANNEL = "one channel of several"
_DAMAGED = "damaged record"
_TOLERANCE = 1.0  # seconds by which a supervision may exceed its recording


class _Content(NamedTuple):
    """Languages of a file.

    Attributes:
      file: The file.
      codes: Codes by the names that its supervisions use.
      counts: Number of supervisions by code.
    """

    file: ManifestFile
    codes: dict[str, LanguageCode]
    counts: dict[LanguageCode, int]

    def code_of(self, supervision: Mapping[str, Any]) -> LanguageCode:
        """Return the language of a supervision."""
        return self.codes[language_name(supervision)]


def discover_languages(corpus_dir: Path, manifest_weights: str = "", language_map: str = "") -> list[LanguageCode]:
    """Return the languages of all supervisions, by code; see `prepare_manifests` for arguments and errors."""
    return sorted(
        {code for content in _read_contents(corpus_dir, manifest_weights, language_map) for code in content.counts}
    )


def prepare_manifests(
    corpus_dir: Path,
    output_dir: Path,
    languages: Sequence[Language],
    subset: str = "train",
    workers: Workers | None = None,
    manifest_weights: str = "",
    language_map: str = "",
) -> CorpusReport:
    """Write the manifests of all splits; see `CorpusModule`.

    Splits that no file name states are held out from the training data, see `divide`.

    Args:
      corpus_dir: Folder of the manifests, or several folders, separated by spaces.
      output_dir: Folder for the manifests.
      languages: Languages to prepare.
      subset: "train".
      workers: Convert the utterances; None converts them in this process.
      manifest_weights: A weight per folder; "": 1 for all.
      language_map: Languages by the names that supervisions use, such as "Castilian=es,none=fr"; "none" stands for
        supervisions without a language.

    Raises:
      CorpusError: Manifests are missing or damaged, a supervision has an unknown language, or a language has too few
        sentences.
    """
    contents = _read_contents(corpus_dir, manifest_weights, language_map)
    report = CorpusReport()
    for language in languages:
        selected = [content for content in contents if language.code in content.counts]
        if not selected:
            offered = sorted({code for content in contents for code in content.counts})
            raise CorpusError(
                f"no supervision of {language.name} in the manifests of {corpus_dir}, which have {', '.join(offered)}: "
                "check --languages, or map names of languages with --language-map"
            )
        division = _divide(language, selected, corpus_dir)
        for split in SPLITS:
            files = SplitFiles(output_dir, CORPUS, language, split)
            entries = _SplitEntries(language.code, selected, division, split)
            report.add(write_manifests(files, entries, partial(_read_utterances, language, split), workers))
    return report


def _read_contents(corpus_dir: Path, manifest_weights: str, language_map: str) -> list[_Content]:
    mapped = _parse_language_map(language_map)
    contents = []
    for file in find_manifests(corpus_dir, manifest_weights):
        names = language_counts(file)
        codes = {name: _code_of(name, mapped, file) for name in names}
        counts: dict[LanguageCode, int] = {}
        for name, count in names.items():
            counts[codes[name]] = counts.get(codes[name], 0) + count
        contents.append(_Content(file, codes, counts))
    return contents


def _parse_language_map(text: str) -> dict[str, LanguageCode]:
    mapped = {}
    for item in filter(None, (item.strip() for item in text.split(","))):
        name, separator, code = item.partition("=")
        if not separator:
            raise CorpusError(f'--language-map {text!r}, at {item!r}: expected NAME=CODE, as in "Castilian=es,none=fr"')
        mapped[name.strip()] = get_language(code.strip()).code
    return mapped


def _code_of(name: str, mapped: Mapping[str, LanguageCode], file: ManifestFile) -> LanguageCode:
    try:
        return mapped[name] if name in mapped else get_language(name).code
    except ValueError as error:
        raise CorpusError(
            f'{file.path} has supervisions of the language {name!r} ({error}): map it, as in --language-map "{name}=fr"'
        ) from error


def _divide(language: Language, contents: Sequence[_Content], corpus_dir: Path) -> Division | None:
    """Return the splits of all utterances, in the order of the files; None if the names of the files state them."""
    if {content.file.split for content in contents} >= set(SPLITS):
        return None
    speech = [
        _speech(supervision, content.file.split, language)
        for content in contents
        for supervision in read_supervisions(content.file)
        if content.code_of(supervision) == language.code
    ]
    try:
        return divide(speech)
    except CorpusError as error:
        raise CorpusError(f"{language.name} in {corpus_dir}: {error}") from error


def _speech(supervision: Mapping[str, Any], split: str | None, language: Language) -> Speech:
    return Speech(sentence_key(supervision.get("text") or "", language), supervision.get("speaker") or "", split)


class _Utterance(NamedTuple):
    """A recording at 16 kHz and a supervision of a part or all of it, both with the id of the utterance.

    Attributes:
      recording: The recording.
      supervision: The supervision.
      notes: Properties for the report.
    """

    recording: Recording
    supervision: SupervisionSegment
    notes: list[str]


class _SplitEntries:
    """Utterances of a split of a language, read in every iteration.

    Args:
      language: Code of the language.
      contents: The files.
      division: Splits of all utterances; None: those of the files.
      split: The split.
    """

    def __init__(
        self, language: LanguageCode, contents: Sequence[_Content], division: Division | None, split: str
    ) -> None:
        self._language = language
        self._contents = [content for content in contents if division or content.file.split == split]
        self._division = division
        self._split = split

    def __len__(self) -> int:
        if self._division is None:
            return sum(content.counts[self._language] for content in self._contents)
        return [split or "train" for split in self._division.splits].count(self._split)

    def __iter__(self) -> Iterator[Entry]:
        entries = (
            entry
            for content in self._contents
            for entry in read_entries(content.file)
            if content.code_of(entry.supervision) == self._language
        )
        if self._division is None:
            yield from entries
            return
        for entry, split in zip(entries, self._division.splits, strict=True):
            if split is None and self._split == "train":
                yield entry._replace(problem=Rejection(Reason.SHARED_SENTENCE, _describe(entry)))
            elif split == self._split:
                is_new = split not in (entry.file.split, "train")
                yield entry._replace(note=held_out_note(self._division.method) if is_new else "")


def _describe(entry: Entry) -> str:
    return f"{entry.supervision['id']} in {entry.file.path}: {entry.supervision.get('text')!r}"


def _read_utterances(
    language: Language, split: str, entries: Sequence[Entry], report: CorpusReport
) -> Iterator[tuple[Recording, SupervisionSegment]]:
    for entry in entries:
        utterance = entry.problem or _convert(entry, language)
        if isinstance(utterance, Rejection):
            report.drop(language.code, split, *utterance)
            continue
        report.add_notes(language.code, split, utterance.notes)
        yield utterance.recording, utterance.supervision


def _convert(entry: Entry, language: Language) -> _Utterance | Rejection:
    """Return the utterance, or the reason to drop it."""
    try:
        return _convert_record(entry, language)
    except Exception as error:  # the values of a damaged record cause exceptions of many types
        return Rejection(_DAMAGED, f"{_describe(entry)}: {first_line(error)}")


def _convert_record(entry: Entry, language: Language) -> _Utterance | Rejection:
    recording = Recording.from_dict(resolve_paths(entry.recording or {}, entry.file.recordings or entry.file.path))
    supervision = SupervisionSegment.from_dict(entry.supervision)
    start, end = float(supervision.start), float(supervision.end)
    if not -_TOLERANCE <= start < end <= recording.duration + _TOLERANCE:
        times = f"{start:g} to {end:g} of {recording.duration:g} s"
        return Rejection(_SPEECH_OUTSIDE, f"{_describe(entry)}, at {times}")
    channels = supervision.channel if isinstance(supervision.channel, list) else [supervision.channel]
    if max(channels) > 0 and len(channels) < recording.num_channels:
        return Rejection(_ONE_CHANNEL, f"{_describe(entry)}, of channel {supervision.channel}")
    name = "-".join(filter(None, (entry.file.source, supervision.id)))
    custom = {"weight": entry.file.weight} if entry.file.weight != 1 else {}
    converted = fastcopy(
        supervision,
        id=name,
        recording_id=name,
        start=max(0.0, start),
        duration=min(end, recording.duration) - max(0.0, start),
        channel=recording.channel_ids if recording.num_channels > 1 else 0,
        language=language.code,
        custom=custom or None,
        alignment=None,
    )
    notes = {
        Note.RESAMPLED: recording.sampling_rate != SAMPLE_RATE,
        Note.DOWNMIXED: recording.num_channels > 1,
        entry.note: bool(entry.note),
    }
    resampled = fastcopy(recording, id=name).resample(SAMPLE_RATE)
    return _Utterance(resampled, converted, [note for note, applies in notes.items() if applies])
