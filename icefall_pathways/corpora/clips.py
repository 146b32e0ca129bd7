"""Audio files with one transcript each, such as those of the corpora `folder` and `stamps`."""

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from lhotse import Recording, SupervisionSegment

from icefall_pathways.constants import SAMPLE_RATE
from icefall_pathways.corpora.layout import SPLITS, SplitFiles, write_manifests
from icefall_pathways.corpora.recordings import make_supervision, read_recording
from icefall_pathways.corpora.splitting import Speech, divide, sentence_key
from icefall_pathways.corpora.validation import CorpusError, CorpusReport, Note, Reason, Rejection
from icefall_pathways.errors import last_line
from icefall_pathways.languages import Language, foreign_characters
from icefall_pathways.sharding.executors import Workers


class Clip(NamedTuple):
    """An audio file and its transcript.

    Attributes:
      id: Unique in the language.
      path: The audio file.
      text: The transcript as the corpus has it.
      speaker: The speaker; "" if unknown.
      split: "train", "dev" or "test", if the corpus assigns one.
      problem: Reason to drop it, and a description.
      notes: Properties for the report.
    """

    id: str
    path: Path
    text: str = ""
    speaker: str = ""
    split: str | None = None
    problem: Rejection | None = None
    notes: tuple[str, ...] = ()

    def reject(self, reason: str, description: str) -> "Clip":
        """Return this clip with a reason to drop it."""
        return self._replace(problem=Rejection(reason, description))


def divide_clips(language: Language, clips: Sequence[Clip], corpus_dir: Path) -> list[Clip]:
    """Return the clips of a language with their splits, see `divide`; dropped ones get a reason.

    Args:
      language: The language.
      clips: All of its clips.
      corpus_dir: Their folder, for errors.

    Raises:
      CorpusError: Too few clips are usable for three splits.
    """
    clips = [clip if clip.problem else _check_text(clip, language) for clip in clips]
    usable = [clip for clip in clips if not clip.problem]
    try:
        division = divide([Speech(sentence_key(clip.text, language), clip.speaker, clip.split) for clip in usable])
    except CorpusError as error:
        dropped = _count_problems(clips)
        raise CorpusError(f"{language.name} in {corpus_dir}: {error}; dropped before: {dropped}") from error
    divided = [_with_split(clip, split, division.method) for clip, split in zip(usable, division.splits, strict=True)]
    return divided + [clip for clip in clips if clip.problem]


def _check_text(clip: Clip, language: Language) -> Clip:
    """Reject a clip whose text cannot be used, so that it is not held out: a small corpus would lose a whole split."""
    sentence = sentence_key(clip.text, language)
    if foreign := foreign_characters(sentence, language):
        return clip.reject(Reason.FOREIGN_CHARACTERS, f"{clip.id} has {foreign!r} in {clip.text!r}")
    return clip if sentence else clip.reject(Reason.NO_TEXT, f"{clip.path}")


def _with_split(clip: Clip, split: str | None, method: str) -> Clip:
    if split is None:
        return clip.reject(Reason.SHARED_SENTENCE, f"{clip.id}: {clip.text!r}")
    is_new = split not in (clip.split, "train")
    return clip._replace(split=split, notes=(*clip.notes, held_out_note(method)) if is_new else clip.notes)


def held_out_note(method: str) -> str:
    """Return the note for utterances of a split that the corpus does not assign."""
    return f"held out by {method}"


def write_clips(
    corpus: str, output_dir: Path, language: Language, clips: Sequence[Clip], workers: Workers | None = None
) -> CorpusReport:
    """Write the manifests of all splits of a language; a clip with a problem is counted in its split, else in train."""
    report = CorpusReport()
    for split in SPLITS:
        files = SplitFiles(output_dir, corpus, language, split)
        selected = [clip for clip in clips if (clip.split or "train") == split]
        report.add(write_manifests(files, selected, partial(_read_clips, language, split), workers))
    return report


def _count_problems(clips: Sequence[Clip]) -> str:
    """Return the numbers of clips by problem, most frequent first, such as "3 no transcript, 1 no audio"."""
    counts = Counter(clip.problem.reason for clip in clips if clip.problem)
    return ", ".join(f"{count} {reason}" for reason, count in counts.most_common()) or "none"


def _read_clips(
    language: Language, split: str, clips: Sequence[Clip], report: CorpusReport
) -> Iterator[tuple[Recording, SupervisionSegment]]:
    for clip in clips:
        recording = clip.problem or _read_recording(clip)
        if isinstance(recording, Rejection):
            report.drop(language.code, split, *recording)
            continue
        report.add_notes(language.code, split, [*clip.notes, *_notes(recording)])
        supervision = make_supervision(recording, clip.text, language.code, clip.speaker or None)
        yield recording.resample(SAMPLE_RATE), supervision


def _read_recording(clip: Clip) -> Recording | Rejection:
    """Return the recording of a clip, or the reason to drop it with a description of the problem."""
    try:
        recording = read_recording(clip.path, clip.id)
    except Exception as error:  # audio backends raise exceptions of many types
        return Rejection(Reason.UNREADABLE, f"{clip.path}: {last_line(error)}")
    return recording if recording.num_samples else Rejection(Reason.UNREADABLE, f"{clip.path}: it holds no samples")


def _notes(recording: Recording) -> list[str]:
    notes = {Note.RESAMPLED: recording.sampling_rate != SAMPLE_RATE, Note.DOWNMIXED: recording.num_channels > 1}
    return [note for note, applies in notes.items() if applies]
