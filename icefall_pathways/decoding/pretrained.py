"""Reading a trained experiment back, for whatever runs it: its weights, masks, tokens and options."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from icefall_pathways.data.datamodule import DataConfig
from icefall_pathways.data.features import FbankConfig
from icefall_pathways.data.tokenizer import Tokenizer
from icefall_pathways.decoding.config import TrainedModelConfig
from icefall_pathways.decoding.streaming import StreamingDecoder
from icefall_pathways.experiment import checkpoints, layout
from icefall_pathways.languages import codes_of
from icefall_pathways.models.transducer import Transducer
from icefall_pathways.options import from_dict
from icefall_pathways.pathways.activation import FoldedPathways
from icefall_pathways.pathways.masks import PathwayMasks
from icefall_pathways.searches.config import make_search


@dataclass(frozen=True)
class TrainedModel:
    """What running a trained experiment needs of it.

    Attributes:
      model: In eval mode, on the device where it runs.
      pathways: The languages' sub-networks of `model`.
      tokenizer: The model's.
      data_config: With which data it was trained.
      suffix: The settings, as they end the names of result files.
    """

    model: Transducer
    pathways: FoldedPathways
    tokenizer: Tokenizer
    data_config: DataConfig
    suffix: str

    @property
    def masks(self) -> PathwayMasks | None:
        """The languages' sub-networks; None for a dense model."""
        return self.pathways.masks

    @property
    def languages(self) -> list[str]:
        """The codes of the languages that it knows: those with a pathway; of a dense model, those it was trained on."""
        return list(codes_of(self.data_config.languages) if self.masks is None else self.masks.languages)

    def check_languages(self, languages: Iterable[str]) -> None:
        """Check that there is a pathway for each of these codes.

        Raises:
          MasksError: There is not.
        """
        if self.masks is not None:
            for language in languages:
                self.masks.bit(language)

    def decoder(self, config: TrainedModelConfig, languages: Iterable[str]) -> StreamingDecoder:
        """A decoder of streams in these languages.

        Raises:
          ValueError: An option of the search has an impossible value, or a file is missing or damaged.
        """
        searches = {language: make_search(config, self.model, self.tokenizer, language) for language in languages}
        return StreamingDecoder(self.model, searches, FbankConfig(), self.pathways)


def load_trained_model(config: TrainedModelConfig) -> TrainedModel:
    """Read back the model that `config` names.

    Raises:
      ValueError: The checkpoint, masks or tokens are missing, damaged or do not fit together.
    """
    epoch, iteration = _chosen_checkpoint(config)
    model, options = checkpoints.load_model(config.exp_dir, epoch, iteration, config.avg, config.use_averaged_model)
    masks = _load_masks(config, model, epoch, iteration)
    model = model.to(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    return TrainedModel(
        model=model,
        pathways=FoldedPathways(model, masks),
        tokenizer=_load_tokenizer(config.bpe_model or Path(options["training"]["bpe_model"]), model),
        data_config=from_dict(DataConfig, options["data"]),
        suffix=_suffix(config, f"iter-{iteration}" if iteration else f"epoch-{epoch}"),
    )


def _chosen_checkpoint(config: TrainedModelConfig) -> tuple[int, int]:
    """The epoch and the update to decode, one of them 0; the newest checkpoint's where the options name none."""
    if config.epoch or config.iter:
        return (0, config.iter) if config.iter else (config.epoch, 0)
    path, _ = checkpoints.find(config.exp_dir)
    kind, number = path.stem.split("-")
    return (int(number), 0) if kind == "epoch" else (0, int(number))


def _suffix(config: TrainedModelConfig, checkpoint: str) -> str:
    """What distinguishes this result from others in its folder, as icefall names it."""
    parts = [checkpoint, f"avg-{config.avg}", config.search_suffix]
    if config.use_averaged_model:
        parts.append("use-averaged-model")
    if config.masks:
        parts.append("dense" if config.masks == "none" else f"{Path(config.masks).absolute().parent.name}-masks")
    return "-".join(parts)


def _load_masks(config: TrainedModelConfig, model: Transducer, epoch: int, iteration: int) -> PathwayMasks | None:
    own = config.exp_dir / layout.MASKS_FILE
    masks = None
    if not config.masks:
        masks = checkpoints.load_masks(config.exp_dir, epoch, iteration)
    if masks is None and config.masks != "none" and (config.masks or own.exists()):
        masks = PathwayMasks.load(config.masks or own)
    if masks is None:
        return None
    masks.check(model)
    return masks.to(torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def _load_tokenizer(path: Path, model: Transducer) -> Tokenizer:
    tokenizer, expected = Tokenizer(path), model.joiner.output_linear.out_features
    if tokenizer.vocab_size != expected:
        raise ValueError(
            f"{path} has {tokenizer.vocab_size} tokens and the model {expected}: give the SentencePiece model it was "
            "trained with by --bpe-model"
        )
    return tokenizer
