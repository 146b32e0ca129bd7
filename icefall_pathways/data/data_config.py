"""Options of the data module."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from icefall_pathways.data.augmentation import AugmentationConfig
from icefall_pathways.data.features import FbankConfig
from icefall_pathways.data.sampling import SamplingConfig
from icefall_pathways.languages import DEFAULT_LANGUAGES, LanguageCode, LanguageList, get_language, normalize_languages
from icefall_pathways.ranges import PositiveFloat

_TRAINING_CUTS = "_cuts_train.jsonl.gz"  # end of the names of manifests


@dataclass(frozen=True)
class DataConfig(SamplingConfig, AugmentationConfig):
    """Options of the data and the sampling of batches."""

    manifest_dir: Path = Path("data/fbank")
    """Folder of the cuts with features."""

    index_dir: Path | None = None
    """Folder of the indexes of the training cuts. None: the folder index in --manifest-dir."""

    languages: LanguageList = DEFAULT_LANGUAGES
    """Languages, by code or name, in the order of their bits in masks. Unless given: all of --manifest-dir if it lacks
    one of the default."""

    from_shar: bool = False
    """Read the training cuts from the tar files that ./prepare.sh --store shar wrote, one after another."""

    shar_dir: str = ""
    """With --from-shar 1: folder or URL, such as s3://bucket/shar, to which the tar files have been moved, with their
    folders."""

    on_the_fly_feats: bool = False
    """Compute features from the audio during training; 0 reads the features that prepare.sh stored."""

    level_norm: Literal["auto", "none", "running-max"] = "auto"
    """Normalization of the level of features. running-max: subtract a running maximum of the energy, without
    look-ahead; auto: as in the training that is resumed or in --init-from, and running-max for a new model."""

    num_workers: int = 2
    """Data loader workers; 0 loads batches in the training process."""

    min_cut_duration: float = 0.0
    """Drop training cuts shorter than this (seconds)."""

    max_cut_duration: PositiveFloat = 20.0
    """Drop training cuts longer than this (seconds)."""

    @property
    def fbank(self) -> FbankConfig:
        """The features of batches; a normalization that is not resolved is none, as in models of earlier versions."""
        return FbankConfig(level_norm="none" if self.level_norm == "auto" else self.level_norm)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "languages", normalize_languages(self.languages))


def default_languages(config: DataConfig) -> tuple[LanguageCode, ...]:
    """Return `DEFAULT_LANGUAGES`, or, if the data folder lacks one of them, all languages of the folder.

    A folder without training cuts gives `DEFAULT_LANGUAGES`.
    """
    names = (path.name.removesuffix(_TRAINING_CUTS) for path in config.manifest_dir.glob(f"*-*{_TRAINING_CUTS}"))
    prepared = {get_language(name.rsplit("-", 1)[1]).code for name in names}
    return DEFAULT_LANGUAGES if prepared >= set(DEFAULT_LANGUAGES) else tuple(sorted(prepared)) or DEFAULT_LANGUAGES
