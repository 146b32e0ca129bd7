"""Cuts of random features, in the files the data module reads."""

from pathlib import Path

import numpy as np
from lhotse import CutSet, Features, LilcomChunkyWriter, MonoCut, SupervisionSegment

from icefall_pathways.corpora.layout import SplitFiles
from icefall_pathways.languages import get_language

TEXTS = {"en": "one two three", "fr": "un deux trois", "it": "uno due tre"}
SIZES = {"en": 60, "fr": 30, "it": 12}  # training cuts


def make_cuts(folder: Path, name: str, language: str, frames: list[int], text: str = "") -> list[MonoCut]:
    """Return cuts of the given lengths (frames of 10 ms) with random features, stored in a file of `folder`."""
    rng = np.random.default_rng(len(frames))
    cuts = []
    with LilcomChunkyWriter(folder / f"feats-{name}") as writer:
        for i, length in enumerate(frames):
            cut_id, duration = f"{name}-{i}", length / 100
            key = writer.write(cut_id, rng.normal(-8, 2, (length, 80)).astype(np.float32))
            features = Features(
                type="kaldifeat-fbank",
                num_frames=length,
                num_features=80,
                frame_shift=0.01,
                sampling_rate=16000,
                start=0.0,
                duration=duration,
                storage_type=writer.name,
                storage_path=str(writer.storage_path),
                storage_key=key,
                recording_id=cut_id,
                channels=0,
            )
            supervision = SupervisionSegment(
                cut_id, cut_id, 0.0, duration, text=text or TEXTS[language], language=language
            )
            cuts.append(MonoCut(cut_id, 0.0, duration, 0, supervisions=[supervision], features=features))
    return cuts


def write_cuts(folder: Path, language: str, split: str, cuts: list[MonoCut]) -> Path:
    """Write cuts to the manifest that the data module reads, and return its path."""
    path = SplitFiles(folder, "mls", get_language(language), split).cuts
    CutSet.from_cuts(cuts).to_file(path)
    return path


def lengths(num_cuts: int) -> list[int]:
    """Return numbers of frames between 80 and 400 (0.8 and 4 s), unsorted."""
    return [80 + (i * 137) % 320 for i in range(num_cuts)]
