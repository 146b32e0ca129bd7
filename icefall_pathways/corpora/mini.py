"""The embedded corpus: a small multi-speaker folder in MLS layout, synthesised on the spot.

Every utterance is a function of the seed, its language, split and number: the same options give the same bytes, however
many processes make them and in whatever order.
"""

import io
import math
import random
import shutil
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from os import cpu_count
from pathlib import Path

import numpy as np
import soundfile
import torch
from tqdm import tqdm

from icefall_pathways.constants import SAMPLE_RATE
from icefall_pathways.corpora.layout import SPLITS
from icefall_pathways.corpora.mini_speech import Speaker, Synthesizer, draw_speakers, synthesize_utterance
from icefall_pathways.corpora.mini_text import CONTENTS, draw_sentence
from icefall_pathways.corpora.mls import prepare_manifests
from icefall_pathways.files import atomic_write, read_json, write_json
from icefall_pathways.languages import Language, get_language, parse_languages
from icefall_pathways.options import to_dict

__all__ = ["MiniCorpusConfig", "acquire", "make_mini_corpus", "prepare_manifests"]

_OPTIONS_FILE = "mini_corpus.json"
_HELD_OUT_SPEAKERS = 8  # in dev, and as many others in test
_MEAN_DURATION = 2.0


@dataclass(frozen=True)
class MiniCorpusConfig:
    """What the embedded corpus holds."""

    corpus_dir: Path = Path("download/mls")
    """The folder to make."""

    languages: str = "en fr it nl"
    """Languages, of en fr it nl de es pt pl."""

    hours_per_language: float = 0.4
    """Hours of training speech in each language."""

    hours: str = ""
    """Hours of training speech where a language differs: "en=0.6 it=0.2"."""

    content: str = "numbers calendar"
    """Kinds of sentences, in equal shares: numbers, calendar, phrases (a large vocabulary)."""

    highest_number: int = 30
    """Numbers go from 0 to this one."""

    dev_utterances: int = 60
    """Utterances of the dev split of each language."""

    test_utterances: int = 120
    """Utterances of the test split of each language."""

    seed: int = 42
    """Another seed, another corpus."""

    num_jobs: int = 0
    """Processes that synthesise; 0 uses all cores."""

    overwrite: bool = False
    """Replace a corpus that was made with other options."""

    def hours_of(self, language: Language) -> float:
        """Hours of training speech of one language.

        Raises:
          ValueError: --hours is not a list of LANGUAGE=HOURS, or the number is not above 0.
        """
        hours = self._chosen_hours().get(language.code, self.hours_per_language)
        if not 0 < hours < math.inf:
            raise ValueError(f"{hours} hours of {language.name}: expected a number above 0")
        return hours

    def _chosen_hours(self) -> dict[str, float]:
        chosen: dict[str, float] = {}
        for word in self.hours.split():
            tag, _, value = word.partition("=")
            try:
                chosen[get_language(tag).code] = float(value)
            except ValueError as error:
                raise ValueError(
                    f'--hours {self.hours!r}, at {word!r}: {error}; expected such as "en=2 it=0.5"'
                ) from error
        return chosen

    def kinds(self) -> tuple[str, ...]:
        """The kinds of sentences.

        Raises:
          ValueError: One is not known.
        """
        kinds = tuple(self.content.split())
        if not kinds or not set(kinds) <= set(CONTENTS):
            raise ValueError(f"--content {self.content!r}: expected some of {', '.join(CONTENTS)}")
        return kinds

    def check(self) -> list[Language]:
        """Look at all options before any work is done.

        Returns:
          The languages.

        Raises:
          ValueError: One is out of range, or there are too few sentences for splits that share none.
        """
        languages = parse_languages(self.languages)
        if stray := set(self._chosen_hours()) - {language.code for language in languages}:
            raise ValueError(f"--hours names {' '.join(sorted(stray))}, which --languages {self.languages!r} does not")
        for option, value, least in (
            ("--dev-utterances", self.dev_utterances, 1),
            ("--test-utterances", self.test_utterances, 1),
            ("--highest-number", self.highest_number, 0),
            ("--num-jobs", self.num_jobs, 0),
        ):
            if value < least:
                raise ValueError(f"{option} {value}: expected {least} or more")
        for language in languages:
            self.hours_of(language)
            for split in SPLITS:
                draw_sentence(language, split, self.kinds(), self.highest_number, self.seed, random.Random(0))
        return languages


@dataclass(frozen=True)
class _Utterance:
    handle: str
    text: str
    speaker: Speaker
    duration: float


def make_mini_corpus(config: MiniCorpusConfig) -> None:
    """Make the corpus; a finished one is left as it is, an interrupted one is completed.

    Raises:
      ValueError: Options out of range, or the folder holds a corpus made with other options.
    """
    languages = config.check()
    if _open_folder(config):
        print(f"{config.corpus_dir} is finished already")
        return
    seconds = 3600 * sum(map(config.hours_of, languages)) + _MEAN_DURATION * len(languages) * (
        config.dev_utterances + config.test_utterances
    )
    jobs = config.num_jobs or cpu_count() or 1
    try:
        with (
            ProcessPoolExecutor(jobs, get_context("spawn"), _start_worker) as pool,
            tqdm(total=round(seconds), desc="synthesising", unit="s of audio", unit_scale=True) as bar,
        ):
            for language in languages:
                _make_language(config, language, pool, bar)
    except BrokenProcessPool as error:
        raise OSError(
            "a synthesising process was ended from outside, perhaps for want of memory: run the same command again, "
            f"with fewer processes than --num-jobs {jobs}; what is finished is kept"
        ) from error
    write_json(config.corpus_dir / _OPTIONS_FILE, _options(config) | {"finished": True})


def acquire(corpus_dir: Path, languages: Sequence[Language], num_jobs: int) -> None:
    """Synthesize the corpus with default options, see `CorpusModule`."""
    codes = " ".join(language.code for language in languages)
    make_mini_corpus(MiniCorpusConfig(corpus_dir, codes, num_jobs=num_jobs))


def _options(config: MiniCorpusConfig) -> dict[str, object]:
    """The options that decide what the corpus holds."""
    return {
        name: value for name, value in to_dict(config).items() if name not in ("corpus_dir", "num_jobs", "overwrite")
    }


def _open_folder(config: MiniCorpusConfig) -> bool:
    """Make the folder ready for a corpus with these options; true if it holds that corpus whole.

    Raises:
      ValueError: It holds another corpus, or something else.
    """
    stamp, options = config.corpus_dir / _OPTIONS_FILE, _options(config)
    if not stamp.exists() and config.corpus_dir.exists() and any(config.corpus_dir.iterdir()):
        raise ValueError(f"{config.corpus_dir} holds something that is no embedded corpus: name an empty --corpus-dir")
    if stamp.exists():
        there = read_json(stamp)
        finished = there.pop("finished", False)
        if there == options:
            _remove_leftovers(config.corpus_dir)
            return finished
        differing = [f"{name}={there.get(name)!r}" for name in options if there.get(name) != options[name]]
        if not config.overwrite:
            raise ValueError(
                f"{config.corpus_dir} holds a corpus made with {', '.join(differing)}: "
                "use the same options, --overwrite 1 to replace it, or another --corpus-dir"
            )
        shutil.rmtree(config.corpus_dir)
    write_json(stamp, options | {"finished": False})
    return False


def _remove_leftovers(corpus_dir: Path) -> None:
    """Remove what a killed process was writing: readers of the layout would take it for an utterance."""
    for path in corpus_dir.glob("mls_*/*/audio/*/*/.*.flac"):
        path.unlink()


def _make_language(config: MiniCorpusConfig, language: Language, pool: ProcessPoolExecutor, bar: tqdm) -> None:
    speakers = draw_speakers(language, config.seed)
    people = {
        "dev": speakers[:_HELD_OUT_SPEAKERS],
        "test": speakers[_HELD_OUT_SPEAKERS : 2 * _HELD_OUT_SPEAKERS],
        "train": speakers[2 * _HELD_OUT_SPEAKERS :],
    }
    made = {split: list(_make_split(config, language, split, people[split], pool, bar)) for split in SPLITS}
    for split in SPLITS:
        _write_split(config.corpus_dir, language, split, made[split])
    _write_metainfo(config.corpus_dir, language, made)


def _make_split(
    config: MiniCorpusConfig,
    language: Language,
    split: str,
    speakers: list[Speaker],
    pool: ProcessPoolExecutor,
    bar: tqdm,
) -> Iterator[_Utterance]:
    """The utterances of a split: up to the hours asked for in train, a number of them elsewhere."""
    counts = {"dev": config.dev_utterances, "test": config.test_utterances}
    wanted = math.inf if split in counts else 3600 * config.hours_of(language)
    seconds, start = 0.0, 0
    while seconds < wanted and start < counts.get(split, math.inf):
        # A batch is made whole and then cut where the hours are reached, so its size does not matter for the result.
        size = counts.get(split) or max(8, math.ceil((wanted - seconds) / _MEAN_DURATION))
        jobs = [(config, language, split, speakers, index) for index in range(start, start + size)]
        for utterance in pool.map(_make_utterance, jobs, chunksize=8):
            if seconds >= wanted:
                _audio_path(config.corpus_dir, language, split, utterance.handle).unlink()
                continue
            seconds += utterance.duration
            bar.update(utterance.duration)
            yield utterance
        start += size


def _start_worker() -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent process ends its workers, in order


@cache
def _synthesizer() -> Synthesizer:
    return Synthesizer()


def _make_utterance(job: tuple[MiniCorpusConfig, Language, str, list[Speaker], int]) -> _Utterance:
    config, language, split, speakers, index = job
    rng = random.Random(f"{config.seed}/{language.code}/{split}/{index}")
    speaker = rng.choice(speakers)
    text = draw_sentence(language, split, config.kinds(), config.highest_number, config.seed, rng)
    handle = f"{speaker.speaker_id}_{10000 + speaker.speaker_id}_{index:06d}"
    path = _audio_path(config.corpus_dir, language, split, handle)
    if not path.exists():
        _write_flac(path, synthesize_utterance(_synthesizer(), text, speaker, config.seed, rng))
    return _Utterance(handle, text, speaker, soundfile.info(path).duration)


def _write_flac(path: Path, samples: np.ndarray) -> None:
    """Write 16-bit flac; it is encoded in memory, since the codec's own writer does not tell that a disk is full."""
    encoded = io.BytesIO()
    soundfile.write(encoded, samples, SAMPLE_RATE, subtype="PCM_16", format="FLAC")
    try:
        with atomic_write(path) as temporary:
            temporary.write_bytes(encoded.getvalue())
    except OSError as error:
        raise OSError(
            f"{path} cannot be written ({error.strerror}): make room there or name another --corpus-dir; what is "
            "finished is kept, run the same command again to go on"
        ) from error


def _audio_path(corpus_dir: Path, language: Language, split: str, handle: str) -> Path:
    speaker, book, _ = handle.split("_")
    return corpus_dir / f"mls_{language.name}" / split / "audio" / speaker / book / f"{handle}.flac"


def _write_split(corpus_dir: Path, language: Language, split: str, utterances: list[_Utterance]) -> None:
    folder = corpus_dir / f"mls_{language.name}" / split
    _write_lines(folder / "transcripts.txt", [f"{u.handle}\t{u.text}" for u in utterances])
    _write_lines(
        folder / "segments.txt", [f"{u.handle}\t{u.speaker.voice}\t0.00\t{u.duration:.2f}" for u in utterances]
    )
    if split == "train":
        limited = folder / "limited_supervision"
        parts = {f"1hr/{fold}": _up_to(utterances, 600 * fold, 600 * (fold + 1)) for fold in range(6)}
        parts["9hr"] = _up_to(utterances, 3600, 36000)
        for part, handles in parts.items():
            if handles:  # less than an hour of speech fills some of the folds only
                _write_lines(limited / part / "handles.txt", handles)


def _up_to(utterances: list[_Utterance], start: float, end: float) -> list[str]:
    """The handles of the utterances that begin between `start` and `end` seconds of the split's audio."""
    handles, passed = [], 0.0
    for utterance in utterances:
        if start <= passed < end:
            handles.append(utterance.handle)
        passed += utterance.duration
    return handles


def _write_metainfo(corpus_dir: Path, language: Language, made: dict[str, list[_Utterance]]) -> None:
    lines = ["SPEAKER | GENDER | PARTITION | MINUTES | BOOK ID | TITLE | CHAPTER"]
    for split, utterances in made.items():
        minutes: dict[Speaker, float] = {}
        for utterance in utterances:
            minutes[utterance.speaker] = minutes.get(utterance.speaker, 0.0) + utterance.duration / 60
        for speaker, spoken in sorted(minutes.items(), key=lambda item: item[0].speaker_id):
            book = 10000 + speaker.speaker_id
            lines.append(
                f"{speaker.speaker_id} | {speaker.gender} | {split} | {spoken:.3f} | {book} | {speaker.voice} | -"
            )
    _write_lines(corpus_dir / f"mls_{language.name}" / "metainfo.txt", lines)


def _write_lines(path: Path, lines: list[str]) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
