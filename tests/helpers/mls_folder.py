"""Small corpora in the MLS layout, with noise as audio."""

from pathlib import Path

import numpy as np
import soundfile

from icefall_pathways.languages import get_language

TEXTS = {
    "de": ["eins zwei", "drei vier", "fünf sechs", "über größe"],
    "nl": ["een twee", "drie vier", "vijf zes", "één"],
    "pl": ["raz dwa", "trzy cztery", "pięć", "śżź"],
}


def write_audio(path: Path, seconds: float = 1.0, rate: int = 16000, channels: int = 1, seed: int = 0) -> None:
    """Write noise of rising amplitude as flac or opus, according to the suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    size = int(seconds * rate)
    noise = np.random.default_rng(seed).normal(0, 0.1, (size, channels)) * np.linspace(0.2, 1, size)[:, None]
    subtype = {"subtype": "OPUS", "format": "OGG"} if path.suffix == ".opus" else {}
    soundfile.write(path, noise.astype(np.float32), rate, **subtype)


def add_utterance(split: Path, handle: str, text: str, suffix: str = ".flac", **audio: object) -> Path:
    """Add a transcript and its audio to a split, and return the path of the audio."""
    speaker, book, _ = handle.rsplit("_", 2)
    path = split / "audio" / speaker / book / f"{handle}{suffix}"
    write_audio(path, **audio)
    with (split / "transcripts.txt").open("a", encoding="utf-8") as file:
        file.write(f"{handle}\t{text}\n")
    return path


def make_language(corpus: Path, code: str, num_utterances: int = 4) -> Path:
    """Create a language with `num_utterances` utterances in each split, and return its folder."""
    folder = corpus / f"mls_{get_language(code).name}"
    for i, split in enumerate(("train", "dev", "test")):
        for k in range(num_utterances):
            add_utterance(folder / split, f"{i + 1}0_{i + 1}00_{k:06d}", TEXTS[code][k % 4], seed=10 * i + k)
    rows = ["SPEAKER | GENDER | PARTITION | MINUTES | BOOK ID | TITLE | CHAPTER"]
    rows += [f"{i}0 | {'MF'[i % 2]} | x | 1 | {i}00 | t | c" for i in (1, 2, 3)]
    (folder / "metainfo.txt").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder
