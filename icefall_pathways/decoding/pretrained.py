"""Loading a trained experiment for inference: weights, masks, tokenizer and options."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from icefall_pathways.data.datamodule import DataConfig
from icefall_pathways.data.tokenizer import Tokenizer
from icefall_pathways.decoding.config import TrainedModelConfig
from icefall_pathways.decoding.streaming import StreamEncoder, StreamingDecoder
from icefall_pathways.experiment import checkpoints, layout
from icefall_pathways.experiment.model_files import check_features, find_tokenizer
from icefall_pathways.models.transducer import Transducer
from icefall_pathways.options import from_dict
from icefall_pathways.pathways.activation import FoldedPathways
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
    """

    model: Transducer
    pathways: FoldedPathways
    tokenizer: Tokenizer
    data_config: DataConfig
    suffix: str
    description: str

    @property
    def masks(self) -> PathwayMasks | None:
        """Masks of the languages; None for a dense model."""
        return self.pathways.masks

    @property
    def languages(self) -> list[str]:
        """Codes of the supported languages: those with a pathway or, for a dense model, those of its training."""
        return list(self.data_config.languages if self.masks is None else self.masks.languages)

    def check_languages(self, languages: Iterable[str]) -> None:
        """Check that there is a pathway for each of these language codes.

        Raises:
          MasksError: A language has no pathway.
        """
        if self.masks is not None:
            for language in languages:
                self.masks.bit(language)

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
        encoder = StreamEncoder(self.model, self.pathways, config.engine)
        return StreamingDecoder(self.model, searches, self.data_config.fbank, self.pathways, encoder)


def load_trained_model(config: TrainedModelConfig) -> TrainedModel:
    """Load the model that `config` selects.

    Raises:
      ValueError: The checkpoint, masks or tokens are missing, damaged or inconsistent.
    """
    loaded = checkpoints.load_model(config.exp_dir, config.epoch, config.iter, config.avg, config.use_averaged_model)
    data_config = from_dict(DataConfig, loaded.config["data"])
    check_features(config.exp_dir, data_config.fbank)
    recorded = Path(loaded.config["training"]["bpe_model"])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    masks = _load_masks(config, loaded)
    model = loaded.model.to(device)
    return TrainedModel(
        model=model,
        pathways=FoldedPathways(model, masks if masks is None else masks.to(device), config.pathway_memory * 1e6),
        tokenizer=_load_tokenizer(config.bpe_model or find_tokenizer(config.exp_dir, recorded), model),
        data_config=data_config,
        suffix=_suffix(config, loaded.path.stem.replace("checkpoint-", "iter-")),
        description=f"{loaded.path}, {_describe_average(config, loaded.path)}, {_describe_masks(config, loaded)}",
    )


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
    return masks


def _load_tokenizer(path: Path, model: Transducer) -> Tokenizer:
    tokenizer, expected = Tokenizer(path), model.joiner.output_linear.out_features
    if tokenizer.vocab_size != expected:
        raise ValueError(
            f"{path} has {tokenizer.vocab_size} tokens and the model {expected}: pass the SentencePiece model of its "
            "training to --bpe-model (in Python: bpe_model)"
        )
    return tokenizer
