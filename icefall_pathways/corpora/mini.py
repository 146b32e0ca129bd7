"""The embedded corpus: a small folder of synthetic multi-speaker speech in MLS layout.

Every utterance is a function of the seed, its language, its split, and its index: the same options produce identical
files, with any number of processes.
"""

import io
import json
import math
import random
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from os import cpu_count
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from tqdm import tqdm

from icefall_pathways.constants import SAMPLE_RATE
from icefall_pathways.corpora import mls_layout
from icefall_pathways.corpora.layout import SPLITS, SplitFiles, find_corpus
from icefall_pathways.corpora.mini_speech import Speaker, Synthesizer, draw_speakers, synthesize_utterance
from icefall_pathways.corpora.mini_text import check_content, draw_sentence, parse_content
from icefall_pathways.corpora.mls import prepare_manifests
from icefall_pathways.corpora.registry import get_corpus
from icefall_pathways.corpora.validation import CorpusError
from icefall_pathways.files import atomic_write, read_json, write_json
from icefall_pathways.languages import Language, codes_of, get_language, parse_languages
from icefall_pathways.options import to_dict
from icefall_pathways.ranges import Options, PositiveFloat, PositiveInt, Seed
from icefall_pathways.sharding.executors import process_pool
from icefall_pathways.sharding.jsonl import read_lines

__all__ = ["MiniCorpusConfig", "acquire", "make_mini_corpus", "prepare_manifests"]

_HELD_OUT_SPEAKERS = 8  # in dev, and the same number of others in test
_MEAN_DURATION = 2.0


@dataclass(frozen=True)
class MiniCorpusConfig(Options):
    """Options of the embedded corpus."""

    corpus_dir: Path = Path("download/mls")
    """Folder of the corpus."""

    languages: str = "en fr it nl"
    """Languages, separated by spaces."""

    hours_per_language: PositiveFloat = 0.4
    """Hours of training speech per language."""

    hours: str = ""
    """Hours of training speech of some languages, such as "en=0.6 it=0.2"."""

    content: str = "numbers calendar"
    """Types of sentences, in equal shares: numbers, calendar, phrases (a large vocabulary), names (of countries,
    languages and currencies; without numbers, for languages that have no number words here), transcripts."""

    transcripts_dir: str = ""
    """Folder of the prepared manifests of another corpus, whose training transcripts are the sentences of the type
    transcripts."""

    highest_number: int = 30
    """Largest number in sentences."""

    dev_utterances: PositiveInt = 60
    """Dev utterances per language."""

    test_utterances: PositiveInt = 120
    """Test utterances per language."""

    seed: Seed = 42
    """Seed of sentences, speakers, and recordings."""

    num_jobs: int = 0
    """Processes; 0 uses all cores."""

    overwrite: bool = False
    """Replace a corpus that was made with other options."""

    def hours_of(self, language: Language) -> float:
        """Return the hours of training speech of a language.

        Raises:
          ValueError: --hours is not a list of LANGUAGE=HOURS, or the hours are not positive and finite.
        """
        hours = self._hours_by_language().get(language.code, self.hours_per_language)
        if not 0 < hours < math.inf:
            raise ValueError(f"{hours} hours of {language.name}: expected a number above 0")
        return hours

    def _hours_by_language(self) -> dict[str, float]:
        hours: dict[str, float] = {}
        for word in self.hours.split():
            tag, _, value = word.partition("=")
            try:
                hours[get_language(tag).code] = float(value)
            except ValueError as error:
                raise ValueError(
                    f'--hours {self.hours!r}, at {word!r}: {error}; expected a list such as "en=2 it=0.5"'
                ) from error
        return hours

    def sentence_types(self) -> tuple[str, ...]:
        """Return the types of sentences.

        Raises:
          ValueError: There are none, or one is unknown.
        """
        return parse_content(self.content, self.transcripts_dir)

    def draw(self, language: Language, split: str, rng: random.Random) -> str:
        """Draw a sentence of a split.

        Raises:
          ValueError: There are too few sentences, or no transcripts of the language.
        """
        transcripts = _read_transcripts(self.transcripts_dir, language) if self.transcripts_dir else ()
        return draw_sentence(language, split, self.sentence_types(), self.highest_number, self.seed, rng, transcripts)

    def check(self) -> list[Language]:
        """Check all options.

        Returns:
          The languages.

        Raises:
          ValueError: An option is out of range, a language has no number words, or there are too few sentences for
            disjoint splits.
        """
        languages = parse_languages(self.languages)
        get_corpus("mini").check_languages(languages)
        if unused := set(self._hours_by_language()) - {language.code for language in languages}:
            raise ValueError(f"--hours names {' '.join(sorted(unused))}: expected only --languages {self.languages!r}")
        for language in languages:
            self.hours_of(language)
            check_content(language, self.sentence_types())
            for split in SPLITS:
                self.draw(language, split, random.Random(0))
        return languages


@dataclass(frozen=True)
class _Utterance:
    handle: str
    text: str
    speaker: Speaker
    duration: float


def make_mini_corpus(config: MiniCorpusConfig) -> None:
    """Synthesize the corpus; an interrupted synthesis is resumed, and a complete corpus is left unchanged.

    Raises:
      ValueError: Options are out of range, or the folder holds something other than a corpus with these options.
      OSError: A process was killed, or a file cannot be written.
    """
    languages = config.check()
    if _prepare_folder(config):
        print(f"{config.corpus_dir} is already complete")
        return
    seconds = 3600 * sum(map(config.hours_of, languages)) + _MEAN_DURATION * len(languages) * (
        config.dev_utterances + config.test_utterances
    )
    jobs = config.num_jobs or cpu_count() or 1
    with (
        process_pool(jobs) as pool,
        tqdm(total=round(seconds), desc="synthesizing", unit="s of audio", unit_scale=True) as bar,
    ):
        for language in languages:
            _make_language(config, language, pool, bar)
    path = config.corpus_dir / mls_layout.MINI_OPTIONS_FILE
    finished = _finished_languages(read_json(path)) | {language.code for language in languages}
    write_json(path, _options(config) | {"finished": sorted(finished)})


def acquire(corpus_dir: Path, languages: Sequence[Language], num_jobs: int) -> None:
    """Synthesize the corpus with default options, see `CorpusModule`."""
    codes = " ".join(language.code for language in languages)
    make_mini_corpus(MiniCorpusConfig(corpus_dir, codes, num_jobs=num_jobs))


def _options(config: MiniCorpusConfig) -> dict[str, object]:
    """Return the options that determine the content of the corpus; those of earlier versions have no transcripts."""
    return {
        name: value
        for name, value in to_dict(config).items()
        if name not in ("corpus_dir", "languages", "num_jobs", "overwrite") and (name != "transcripts_dir" or value)
    }


def _prepare_folder(config: MiniCorpusConfig) -> bool:
    """Prepare the folder for a corpus with these options.

    Returns:
      True if it holds the complete corpus.

    Raises:
      ValueError: It holds another corpus, or something else.
    """
    path, options = config.corpus_dir / mls_layout.MINI_OPTIONS_FILE, _options(config)
    languages: set[str] = {language.code for language in parse_languages(config.languages)}
    finished: set[str] = set()
    if not path.exists() and config.corpus_dir.exists() and any(config.corpus_dir.iterdir()):
        raise ValueError(f"{config.corpus_dir} holds files of another origin: expected an empty --corpus-dir")
    if path.exists():
        stored = read_json(path)
        finished = _finished_languages(stored)
        differing = [f"{name}={stored.get(name)!r}" for name in options if stored.get(name) != options[name]]
        if not differing:
            _remove_unfinished(config.corpus_dir)
        elif config.overwrite:
            shutil.rmtree(config.corpus_dir)
            finished = set()
        else:
            raise ValueError(
                f"{config.corpus_dir} holds a corpus made with {', '.join(differing)}: "
                "use the same options, --overwrite 1 to replace it, or another --corpus-dir"
            )
    if languages <= finished:
        return True
    write_json(path, options | {"finished": sorted(finished)})
    return False


def _finished_languages(stored: dict[str, Any]) -> set[str]:
    """Return the languages of the corpus that are complete; earlier versions stored a Boolean for all of them."""
    finished = stored["finished"]
    if isinstance(finished, bool):
        return set(codes_of(stored["languages"])) if finished else set()
    return set(finished)


def _remove_unfinished(corpus_dir: Path) -> None:
    """Remove the temporary files of a killed process, which other readers of the layout could take for utterances."""
    for path in corpus_dir.glob("mls_*/*/audio/*/*/.*.flac"):
        path.unlink()


def _make_language(config: MiniCorpusConfig, language: Language, pool: ProcessPoolExecutor, bar: tqdm) -> None:
    speakers = draw_speakers(language, config.seed)
    speakers_by_split = {
        "dev": speakers[:_HELD_OUT_SPEAKERS],
        "test": speakers[_HELD_OUT_SPEAKERS : 2 * _HELD_OUT_SPEAKERS],
        "train": speakers[2 * _HELD_OUT_SPEAKERS :],
    }
    utterances = {
        split: list(_make_split(config, language, split, speakers_by_split[split], pool, bar)) for split in SPLITS
    }
    for split in SPLITS:
        _write_split(config.corpus_dir, language, split, utterances[split])
    _write_metainfo(config.corpus_dir, language, utterances)


def _make_split(
    config: MiniCorpusConfig,
    language: Language,
    split: str,
    speakers: list[Speaker],
    pool: ProcessPoolExecutor,
    bar: tqdm,
) -> Iterator[_Utterance]:
    """Yield the utterances of a split: up to its hours (train) or its number of utterances (dev and test)."""
    counts = {"dev": config.dev_utterances, "test": config.test_utterances}
    target = math.inf if split in counts else 3600 * config.hours_of(language)
    seconds, start = 0.0, 0
    while seconds < target and start < counts.get(split, math.inf):
        # All utterances of a batch are made, and those past the target removed: the result does not depend on `size`.
        size = counts.get(split) or max(8, math.ceil((target - seconds) / _MEAN_DURATION))
        jobs = [(config, language, split, speakers, index) for index in range(start, start + size)]
        for utterance in pool.map(_make_utterance, jobs, chunksize=8):
            if seconds >= target:
                _audio_path(config.corpus_dir, language, split, utterance.handle).unlink()
                continue
            seconds += utterance.duration
            bar.update(utterance.duration)
            yield utterance
        start += size


@cache
def _read_transcripts(folder: str, language: Language) -> list[str]:
    """Return the distinct training transcripts of a language, sorted.

    Raises:
      CorpusError: The manifests of the language are missing.
    """
    path = SplitFiles(Path(folder), find_corpus(Path(folder), "supervisions"), language, "train").supervisions
    if not path.exists():
        raise CorpusError(f"no {path}: expected the folder of manifests of a corpus prepared for {language.name}")
    texts = {str(json.loads(line)["text"]) for line in read_lines(path)}
    return sorted(text for text in texts if text.strip())


@cache
def _synthesizer() -> Synthesizer:
    return Synthesizer()


def _make_utterance(job: tuple[MiniCorpusConfig, Language, str, list[Speaker], int]) -> _Utterance:
    config, language, split, speakers, index = job
    rng = random.Random(f"{config.seed}/{language.code}/{split}/{index}")
    speaker = rng.choice(speakers)
    text = config.draw(language, split, rng)
    handle = f"{speaker.speaker_id}_{10000 + speaker.speaker_id}_{index:06d}"
    path = _audio_path(config.corpus_dir, language, split, handle)
    if not path.exists():
        _write_flac(path, synthesize_utterance(_synthesizer(), text, speaker, config.seed, rng))
    return _Utterance(handle, text, speaker, soundfile.info(path).duration)


def _write_flac(path: Path, samples: np.ndarray) -> None:
    """Write 16-bit flac, encoded in memory because libsndfile does not report a full disk."""
    encoded = io.BytesIO()
    soundfile.write(encoded, samples, SAMPLE_RATE, subtype="PCM_16", format="FLAC")
    with atomic_write(path) as temporary:
        temporary.write_bytes(encoded.getvalue())


def _audio_path(corpus_dir: Path, language: Language, split: str, handle: str) -> Path:
    return mls_layout.audio_file(corpus_dir / mls_layout.folder_name(language) / split, handle, ".flac")


def _write_split(corpus_dir: Path, language: Language, split: str, utterances: list[_Utterance]) -> None:
    folder = corpus_dir / mls_layout.folder_name(language) / split
    _write_lines(folder / mls_layout.TRANSCRIPTS_FILE, [f"{u.handle}\t{u.text}" for u in utterances])
    _write_lines(
        folder / mls_layout.SEGMENTS_FILE,
        [f"{u.handle}\t{u.speaker.voice}\t0.00\t{u.duration:.2f}" for u in utterances],
    )
    if split == "train":
        limited = folder / mls_layout.LIMITED_DIR
        parts = {f"1hr/{fold}": _handles_between(utterances, 600 * fold, 600 * (fold + 1)) for fold in range(6)}
        parts["9hr"] = _handles_between(utterances, 3600, 36000)
        for part, handles in parts.items():
            if handles:  # small corpora fill only the first folds
                _write_lines(limited / part / mls_layout.HANDLES_FILE, handles)


def _handles_between(utterances: list[_Utterance], start: float, end: float) -> list[str]:
    """Return the handles of the utterances that start between `start` and `end` seconds of the split's audio."""
    handles, elapsed = [], 0.0
    for utterance in utterances:
        if start <= elapsed < end:
            handles.append(utterance.handle)
        elapsed += utterance.duration
    return handles


def _write_metainfo(corpus_dir: Path, language: Language, by_split: dict[str, list[_Utterance]]) -> None:
    lines = ["SPEAKER | GENDER | PARTITION | MINUTES | BOOK ID | TITLE | CHAPTER"]
    for split, utterances in by_split.items():
        minutes: dict[Speaker, float] = {}
        for utterance in utterances:
            minutes[utterance.speaker] = minutes.get(utterance.speaker, 0.0) + utterance.duration / 60
        for speaker, total in sorted(minutes.items(), key=lambda item: item[0].speaker_id):
            book = 10000 + speaker.speaker_id
            lines.append(
                f"{speaker.speaker_id} | {speaker.gender} | {split} | {total:.3f} | {book} | {speaker.voice} | -"
            )
    _write_lines(corpus_dir / mls_layout.folder_name(language) / mls_layout.METAINFO_FILE, lines)


def _write_lines(path: Path, lines: list[str]) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
