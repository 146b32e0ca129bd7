"""Loading a trained experiment for inference: weights, masks, tokenizer and options."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from icefall_pathways.data.datamodule import DataConfig
from icefall_pathways.data.tokenizer import Tokenizer
from icefall_pathways.decoding.config import TrainedModelConfig
from icefall_pathways.decoding.language_id.model import LanguageIdModel
from icefall_pathways.decoding.streaming import StreamEncoder, StreamingDecoder
from icefall_pathways.errors import as_damage
from icefall_pathways.experiment import checkpoints, layout
from icefall_pathways.experiment.model_files import check_features, find_tokenizer
from icefall_pathways.export.package import Package, PackageError, is_package, read_package
from icefall_pathways.languages import normalize_languages
from icefall_pathways.models.transducer import Transducer
from icefall_pathways.options import from_dict
from icefall_pathways.pathways.activation import FoldedPathways
from icefall_pathways.pathways.finite import check_finite
from icefall_pathways.pathways.masks import PathwayMasks


@dataclass(frozen=True)
class TrainedModel:
    """A trained model with everything that inference needs.

    Attributes:
      model: The transducer, in eval mode and on its device.
      pathways: The languages' sub-networks of `model`.
      tokenizer: The tokenizer of the model.
      data_config: Data options used in training.
      suffix: The decoding settings, as the last part of the names of result files.
      description: The checkpoint, average and masks in use, in one line.
      options: The options of the training, see `options.to_dict`.
    """

    model: Transducer
    pathways: FoldedPathways
    tokenizer: Tokenizer
    data_config: DataConfig
    suffix: str
    description: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def masks(self) -> PathwayMasks | None:
        """Masks of the languages; None for a dense model."""
        return self.pathways.masks

    @property
    def covers_narrowband(self) -> bool:
        """True if the model was also trained on narrowband audio, as of telephones."""
        return self.data_config.narrowband_perturb > 0

    @property
    def languages(self) -> list[str]:
        """Codes of the supported languages: those with a pathway or, for a dense model, those of its training."""
        return list(self.data_config.languages if self.masks is None else self.masks.languages)

    def check_languages(self, languages: Iterable[str]) -> None:
        """Check that there is a pathway for each of these language codes.

        Raises:
          ValueError: A language has no pathway.
        """
        for language in languages:
            self.pathways.check_language(language)

    def hash(self) -> str:
        """Return a hash of the weights and masks; no pathway may be active."""
        digest = hashlib.sha256()
        codes = {} if self.masks is None else {f"{name} {self.languages}": c for name, c in self.masks.codes.items()}
        for name, tensor in (self.model.state_dict() | codes).items():
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.cpu().numpy().tobytes())
        return digest.hexdigest()[:32]

    def build_decoder(self, config: TrainedModelConfig, languages: Iterable[str]) -> StreamingDecoder:
        """Build a streaming decoder for these languages.

        Raises:
          ValueError: An option of the search is out of range, a file is missing or damaged, or the engine does not
            support the device.
        """
        searches = {language: config.build_search(self.model, self.tokenizer, language) for language in languages}
        # Its own cache, from which the masked weights of an encoder in ONNX Runtime are excluded.
        pathways = FoldedPathways(self.model, self.masks, self.pathways.max_bytes)
        encoder = StreamEncoder(self.model, pathways, config.engine)
        return StreamingDecoder(self.model, searches, self.data_config.fbank, pathways, encoder)


def load_trained_model(config: TrainedModelConfig) -> TrainedModel:
    """Load the model that `config` selects: of an experiment folder, or a package.

    Raises:
      ValueError: The checkpoint, masks or tokens are missing, damaged or inconsistent.
    """
    if is_package(config.exp_dir):
        return _load_package(config)
    loaded = checkpoints.load_model(config.exp_dir, config.epoch, config.iter, config.avg, config.use_averaged_model)
    data_config = from_dict(DataConfig, loaded.config["data"])
    check_features(config.exp_dir, data_config.fbank)
    recorded = Path(loaded.config["training"]["bpe_model"])
    masks, model = _load_masks(config, loaded), loaded.model
    with as_damage(loaded.path, checkpoints.CheckpointError, "use another checkpoint, or copy it again"):
        check_finite(model.state_dict(), {} if masks is None else masks.codes)
    pathways = _fold(model, masks, config)
    return TrainedModel(
        model=model,
        pathways=pathways,
        tokenizer=_load_tokenizer(config, config.bpe_model or find_tokenizer(config.exp_dir, recorded), model),
        data_config=data_config,
        suffix=_suffix(config, loaded.path.stem.replace("checkpoint-", "iter-")),
        description=f"{loaded.path}, {_describe_average(config, loaded.path)}, {_describe_masks(config, loaded)}",
        options=loaded.config,
    )


def _load_package(config: TrainedModelConfig) -> TrainedModel:
    selected = {"epoch": 0, "iter": 0, "avg": 1, "use_averaged_model": True, "masks": ""}
    if given := [name for name, default in selected.items() if getattr(config, name) != default]:
        raise ValueError(
            f"{config.exp_dir} is a package, with one set of weights and masks: omit {', '.join(given)}, or use an "
            "experiment folder"
        )
    package = read_package(config.exp_dir)
    _check_language_id(config.exp_dir, package)
    card, precision = package.card, package.card["precision"]
    options = card.get("training_options", {})
    covers_narrowband = options.get("data", {}).get("narrowband_perturb", 0) > 0
    return TrainedModel(
        model=package.model,
        pathways=_fold(package.model, package.masks, config),
        tokenizer=_load_tokenizer(config, config.bpe_model, package.model) if config.bpe_model else package.tokenizer,
        data_config=DataConfig(
            languages=normalize_languages(package.masks.languages),
            level_norm=card["features"]["level_norm"],
            narrowband_perturb=float(covers_narrowband),
        ),
        suffix=f"package-{precision}-{config.search_suffix}",
        description=f"{config.exp_dir}, a package with weights in {precision}",
        options=options | {"model": card["model"]},
    )


def _check_language_id(folder: Path, package: Package) -> None:
    """Check the language identification of a package, if it has one."""
    path = layout.language_id_file(folder)
    if not path.is_file():
        return
    try:
        reason = LanguageIdModel.load(path).mismatch(package.masks.languages, package.tokenizer.vocab_size)
    except ValueError as error:
        raise PackageError(str(error)) from error
    if reason:
        raise PackageError(
            f"{path} does not belong to the package ({reason}): copy the whole package again, or remove the file and "
            "run calibrate_language_id.py"
        )


def _fold(model: Transducer, masks: PathwayMasks | None, config: TrainedModelConfig) -> FoldedPathways:
    """Move the model and its masks to the GPU if there is one."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return FoldedPathways(model.to(device), None if masks is None else masks.to(device), config.pathway_memory * 1e6)


def _describe_average(config: TrainedModelConfig, path: Path) -> str:
    if not config.use_averaged_model:
        return f"mean of {config.avg} checkpoints" if config.avg > 1 else "no averaging"
    start = checkpoints.start_of_average(path, config.avg)
    return f"weights averaged over all updates since {start.name if start else 'the start of the training'}"


def _describe_masks(config: TrainedModelConfig, loaded: checkpoints.LoadedModel) -> str:
    own = config.exp_dir / layout.MASKS_FILE
    if config.masks == "none":
        return "no masks"
    if config.masks:
        return f"masks of {config.masks}"
    if loaded.masks is not None:
        return "masks of the checkpoint"
    return f"masks of {own}" if own.exists() else "no masks"


def _suffix(config: TrainedModelConfig, checkpoint: str) -> str:
    """Return the settings that distinguish result files of one folder, in icefall's notation."""
    parts = [checkpoint, f"avg-{config.avg}", config.search_suffix]
    if config.use_averaged_model:
        parts.append("use-averaged-model")
    if config.masks:
        parts.append("dense" if config.masks == "none" else f"{Path(config.masks).absolute().parent.name}-masks")
    return "-".join(parts)


def _load_masks(config: TrainedModelConfig, loaded: checkpoints.LoadedModel) -> PathwayMasks | None:
    """Return the masks of --masks, else those of the checkpoint, else those of the experiment folder."""
    own = config.exp_dir / layout.MASKS_FILE
    masks = loaded.masks if not config.masks else None
    if masks is None and config.masks != "none" and (config.masks or own.exists()):
        masks = PathwayMasks.load(config.masks or own)
    if masks is not None:
        masks.check(loaded.model)
        masks.check_not_empty()
    return masks


def _load_tokenizer(config: TrainedModelConfig, path: Path, model: Transducer) -> Tokenizer:
    tokenizer, vocab_size = Tokenizer(path), model.joiner.output_linear.out_features
    # A model that is selected by --bpe-model may have other symbols.
    tokens_file = config.exp_dir / layout.TOKENS_FILE if config.bpe_model is None else None
    if reason := tokenizer.mismatch(vocab_size, tokens_file):
        raise ValueError(
            f"{reason}: pass the SentencePiece model of its training to --bpe-model (in Python: bpe_model)"
        )
    return tokenizer
