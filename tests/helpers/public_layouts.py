"""Tiny folders in the layouts of public corpora, with noise as audio."""

import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import soundfile
from mls_folder import write_audio

WORDS = {
    "fr": ["un", "deux", "trois", "quatre", "cinq", "six", "sept", "huit", "neuf", "dix", "onze", "douze"],
    "de": ["eins", "zwei", "drei", "vier", "fünf", "sechs", "sieben", "acht", "neun", "zehn", "elf", "zwölf"],
}
SPLITS = ("train", "dev", "test")


def sentence(language: str, index: int) -> str:
    """Return a sentence of two words; the first twelve differ."""
    words = WORDS[language]
    return f"{words[index % 12]} {words[(index + 1 + index // 12) % 12]}"


def write_clip(path: Path, seconds: float = 1.5, seed: int = 0, rate: int = 16000) -> Path:
    """Write noise in the format of the suffix; opus has a sampling rate of 48 kHz."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rate = 48000 if path.suffix == ".opus" else rate
    options = {"format": "OGG", "subtype": "OPUS"} if path.suffix == ".opus" else {}
    noise = np.random.default_rng(seed).normal(0, 0.1, int(seconds * rate))
    soundfile.write(path, noise.astype(np.float32), rate, **options)
    return path


def make_folder(root: Path, languages: Mapping[str, str], num_clips: int = 10) -> Path:
    """Write clips of all formats with text files; `languages` maps names of folders to codes. Return `root`."""
    suffixes = (".wav", ".mp3", ".flac", ".ogg", ".opus")
    for name, code in languages.items():
        for i in range(num_clips):
            path = write_clip(root / name / f"clip {i}{suffixes[i % 5]}", 1.5 + 0.1 * i, seed=i)
            path.with_suffix(".txt").write_text(sentence(code, i) + "\n", encoding="utf-8")
    return root


def make_common_voice(root: Path, languages: Sequence[str]) -> Path:
    """Write the layout of Common Voice, with four clips per split, and return `root`."""
    columns = ["client_id", "path", "sentence", "age", "gender", "accents", "variant"]
    for language in languages:
        for i, split in enumerate(SPLITS):
            rows = []
            for k in range(4):
                name = f"common_voice_{language}_{4 * i + k}.mp3"
                write_clip(root / language / "clips" / name, 1.2 + 0.2 * k, seed=k, rate=32000)
                text = sentence(language, 4 * i + k).capitalize() + "."
                rows.append([f"speaker{i}{k % 2}", name, text, "", "", "", ""])
            lines = ["\t".join(row) for row in [columns, *rows]]
            (root / language / f"{split}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return root


def make_fleurs(root: Path, languages: Mapping[str, str]) -> Path:
    """Write the layout of FLEURS, with four clips per split; `languages` maps its codes to those of `WORDS`."""
    for name, code in languages.items():
        (root / "metadata" / name).mkdir(parents=True)
        for i, split in enumerate(SPLITS):
            lines = []
            for k in range(4):
                file, seconds = f"{i}{k}77.wav", 1.3 + 0.2 * k
                write_audio(root / name / split / file, seconds, seed=k)
                text = sentence(code, 4 * i + k)
                values = [str(100 * i + k), file, f"{text.capitalize()}.", text, "u n |", str(int(seconds * 16000))]
                lines.append("\t".join([*values, "FEMALE"]))
            (root / "metadata" / name / f"{split}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return root


def write_stamp(folder: Path, name: str, texts: Mapping[str, str], seconds: float | Mapping[str, float] = 1.5) -> None:
    """Write a stamp of Tux Paint with its texts and clips."""
    path = folder / f"{name}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ["English text.", *(f"{language}.utf8={text}" for language, text in texts.items())]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    for language in texts:
        duration = seconds if isinstance(seconds, float) else seconds[language]
        (folder / f"{name}_desc_{language}.ogg").write_bytes(_ogg(duration))


@cache
def _ogg(seconds: float) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        return write_clip(Path(folder) / "a.ogg", seconds).read_bytes()


def make_package(content: Path, package: Path) -> Path:
    """Build a Debian package with the files of a folder, and return its path."""
    control = content / "DEBIAN" / "control"
    control.parent.mkdir()
    fields = {"Package": package.name.split("_")[0], "Version": "1", "Architecture": "all"}
    fields |= {"Maintainer": "A <a@example.com>", "Description": "stamps"}
    control.write_text("".join(f"{name}: {value}\n" for name, value in fields.items()))
    subprocess.run(["dpkg-deb", "--build", str(content), str(package)], check=True, capture_output=True)
    return package
