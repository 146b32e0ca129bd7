"""Compute and store the features of MUSAN's noise, music and babble in cuts of ten seconds, for noise augmentation.

Usage:

  ./local/compute_fbank_musan.py --manifest-dir data/manifests --output-dir data/fbank
"""

from dataclasses import dataclass
from pathlib import Path

from icefall_pathways.data.fbank import compute_fbank_musan
from icefall_pathways.ranges import Options

__all__ = ["Config", "run"]


@dataclass(frozen=True)
class Config(Options):
    """Options of MUSAN's features."""

    manifest_dir: Path = Path("data/manifests")
    """Folder with the manifests of `lhotse prepare musan`."""

    output_dir: Path = Path("data/fbank")
    """Folder for the features and musan_cuts.jsonl.gz."""

    num_jobs: int = 0
    """Number of processes; 0 uses all cores."""


def run(config: Config) -> None:
    """Store the features."""
    compute_fbank_musan(config.manifest_dir, config.output_dir, config.num_jobs)
