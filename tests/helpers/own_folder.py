"""A new user's folder: synthesized speech in all formats, with a text file beside each clip."""

import random
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from encoded_audio import encode

from icefall_pathways.constants import SAMPLE_RATE
from icefall_pathways.corpora.mini_speech import Synthesizer, draw_speakers, synthesize_utterance
from icefall_pathways.languages import get_language

SUFFIXES = ("wav", "mp3", "flac", "ogg", "opus")
SENTENCES = {
    "de": (
        "Guten Morgen, wie geht es dir?",
        "Wir fahren am Samstag in die Berge.",
        "Das Brot ist noch warm.",
        "Zwölf Boxkämpfer jagen Max.",
        "Bitte mach das Fenster zu!",
        "Mein Bruder spielt gern Klavier.",
        "Heute Abend gibt es Suppe.",
        "Die Straße ist sehr lang.",
        "Kannst du mir bitte helfen?",
        "Der Zug kommt um sieben Uhr.",
    ),
    "fr": (
        "Bonjour, comment allez-vous ?",
        "Nous partons samedi à la montagne.",
        "Le pain est encore chaud.",
        "Où est la gare, s'il vous plaît ?",
        "Ferme la fenêtre, il fait froid.",
        "Mon frère joue du piano.",
        "Ce soir, il y a de la soupe.",
        "La rue est très longue.",
        "Pouvez-vous m'aider ?",
        "Le train arrive à sept heures.",
    ),
}


def make_own_folder(root: Path, sentences: Mapping[str, Sequence[str]] = SENTENCES) -> Path:
    """Write a clip per sentence, in a folder per language and all formats, and return `root`."""
    synthesizer, rng = Synthesizer(), random.Random(1)
    for code, texts in sentences.items():
        speaker = draw_speakers(get_language(code), 1)[0]
        (root / code).mkdir(parents=True)
        for i, text in enumerate(texts):
            suffix = SUFFIXES[i % len(SUFFIXES)]
            samples = synthesize_utterance(synthesizer, text, speaker, 1, rng)
            rate = 48000 if suffix == "opus" else SAMPLE_RATE
            samples = np.repeat(samples, rate // SAMPLE_RATE)
            data = encode((samples * 32767).astype("<i2")[:, None], suffix, rate)
            (root / code / f"{i:02}.{suffix}").write_bytes(data)
            (root / code / f"{i:02}.txt").write_text(text + "\n", encoding="utf-8")
    return root
