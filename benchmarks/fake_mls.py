"""Corpora of the size of MLS for benchmarks: its layout, generated transcripts, and hard links to few audio files."""

import math
import random
import string
from collections.abc import Iterator
from functools import cache
from itertools import count, cycle, islice
from pathlib import Path

import numpy as np
import soundfile

from icefall_pathways.constants import SAMPLE_RATE
from icefall_pathways.corpora import mls_layout
from icefall_pathways.corpora.layout import SPLITS, SplitFiles
from icefall_pathways.files import atomic_write
from icefall_pathways.languages import Language
from icefall_pathways.sharding.jsonl import write_jsonl

MLS_UTTERANCES = 13_600_000  # of 50,500 hours, in eight languages
MEAN_SECONDS = 15.0
_MEAN_WORDS = 38  # 200 characters
_NUM_RECORDINGS = 16  # a file system limits the links of a file, ext4 to 65,000
_UTTERANCES_PER_BOOK, _BOOKS_PER_SPEAKER = 200, 10
_VOCABULARY = 50_000


def make_language(
    folder: Path, language: Language, num_utterances: int, audio_format: str = "flac", held_out: int = 100
) -> Path:
    """Create a language in the layout of MLS.

    Args:
      folder: Folder of the corpus.
      language: The language.
      num_utterances: Training utterances.
      audio_format: "flac" or "opus".
      held_out: Utterances of dev, and of test.

    Returns:
      The folder of the language.
    """
    path = folder / mls_layout.folder_name(language, audio_format)
    speakers: dict[str, None] = {}
    recordings = _recordings(path, audio_format)
    for index, split in enumerate(SPLITS):
        size = num_utterances if split == "train" else held_out
        with atomic_write(path / split / mls_layout.TRANSCRIPTS_FILE) as temporary, temporary.open("w") as file:
            for handle, text in islice(_utterances(language, index), size):
                speakers[handle.split("_")[0]] = None
                audio = mls_layout.audio_file(path / split, handle, f".{audio_format}")
                audio.parent.mkdir(parents=True, exist_ok=True)
                audio.hardlink_to(next(recordings))
                file.write(f"{handle}\t{text}\n")
    rows = "".join(f"{speaker} | F | - | 1 | 1 | - | -\n" for speaker in speakers)
    (path / mls_layout.METAINFO_FILE).write_text(rows)
    return path


def write_cuts(folder: Path, language: Language, num_cuts: int) -> None:
    """Write a training manifest of cuts with transcripts, and without recordings and features."""
    files = SplitFiles(folder, "mls", language, "train")
    cuts = (
        {"id": f"{handle}-{index}", "supervisions": [{"id": handle, "text": text, "language": language.code}]}
        for index, (handle, text) in enumerate(islice(_utterances(language, 0), num_cuts))
    )
    with atomic_write(files.cuts) as temporary:
        write_jsonl(temporary, cuts)


def _utterances(language: Language, split: int) -> Iterator[tuple[str, str]]:
    """Yield handles and texts without end."""
    generator = random.Random(f"{language.code}/{split}")
    words, weights = _words(language)
    for index in count():
        book, in_book = divmod(index, _UTTERANCES_PER_BOOK)
        speaker = 10_000 * (split + 1) + book // _BOOKS_PER_SPEAKER
        length = max(3, round(generator.gauss(_MEAN_WORDS, 8)))
        text = " ".join(generator.choices(words, cum_weights=weights, k=length))
        yield f"{speaker}_{book}_{in_book:06d}", text


@cache
def _words(language: Language) -> tuple[list[str], list[float]]:
    """Return random words of the language's letters with cumulative weights of Zipf's law."""
    generator = random.Random(language.code)
    letters = sorted(language.alphabet - set(" '-"))
    frequent = [letter for letter in letters if letter in string.ascii_lowercase] * 20 + letters
    lengths = [max(1, round(generator.gauss(4.5, 2))) for _ in range(_VOCABULARY)]
    words = ["".join(generator.choices(frequent, k=length)) for length in lengths]
    return words, np.cumsum(1 / np.arange(1, _VOCABULARY + 1)).tolist()


def _recordings(folder: Path, audio_format: str) -> Iterator[Path]:
    """Create the recordings, of 10 to 20 s, and yield their paths in turn, without end."""
    paths = []
    for index in range(_NUM_RECORDINGS):
        path = folder / "recordings" / f"{index}.{audio_format}"
        path.parent.mkdir(parents=True, exist_ok=True)
        seconds = MEAN_SECONDS + 10 * (index / (_NUM_RECORDINGS - 1) - 0.5)
        options = {"subtype": "OPUS", "format": "OGG"} if audio_format == "opus" else {"subtype": "PCM_16"}
        soundfile.write(path, speech_like(seconds, index), SAMPLE_RATE, **options)
        paths.append(path)
    return cycle(paths)


def speech_like(seconds: float, seed: int) -> np.ndarray:
    """Return samples (n,): harmonics of a varying pitch in syllables, with noise, which codecs treat like speech."""
    generator = np.random.default_rng(seed)
    time = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    pitch = 120 + 30 * np.sin(2 * math.pi * 0.7 * time + seed)
    phase = 2 * math.pi * np.cumsum(pitch) / SAMPLE_RATE
    voice = sum(np.sin(k * phase) / k for k in range(1, 30))
    syllables = np.clip(np.sin(2 * math.pi * 4 * time), 0, 1)
    return (0.1 * voice * syllables + generator.normal(0, 0.003, len(time))).astype(np.float32)
