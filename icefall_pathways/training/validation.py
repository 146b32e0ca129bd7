"""Validation: losses and word error rates on the dev set of each language, through its sub-network."""

import logging
import math
from functools import cached_property
from itertools import compress

import torch
from kaldialign import edit_distance
from torch import Tensor
from tqdm import tqdm

from icefall_pathways.data.batch import Batch
from icefall_pathways.data.datamodule import SpeechDataModule, SplitLoader
from icefall_pathways.data.tokenizer import Tokenizer
from icefall_pathways.data.usable_cuts import drop_report, has_dropped
from icefall_pathways.languages import scored_by_characters, scored_units
from icefall_pathways.launch.ranks import Rank
from icefall_pathways.models.transducer import Transducer
from icefall_pathways.pathways.activation import PathwayModule, activate
from icefall_pathways.searches import GreedySearch
from icefall_pathways.training.callbacks import Callback, CallbackList, UpdateResult
from icefall_pathways.training.config import TrainingConfig
from icefall_pathways.training.metrics import LossSums, bar_position
from icefall_pathways.training.objective import Objective
from icefall_pathways.training.train_state import TrainState

logger = logging.getLogger("icefall_pathways")


class Validator:
    """Compute validation metrics; the batches are distributed over the ranks.

    Args:
      pathways: The model, a Transducer, with its masks.
      objective: Computes the losses.
      data: The source of the dev sets.
      tokenizer: Decodes tokens to words.
      rank: This process.
      options: Hours of dev audio, number of cuts that are decoded, and the seed of the draw.
    """

    def __init__(
        self,
        pathways: PathwayModule,
        objective: Objective,
        data: SpeechDataModule,
        tokenizer: Tokenizer,
        rank: Rank,
        options: TrainingConfig,
    ) -> None:
        self._pathways = pathways
        self._objective = objective
        self._data = data
        self._tokenizer = tokenizer
        self._rank = rank
        self._options = options

    @cached_property
    def loaders(self) -> dict[str, SplitLoader]:
        """The dev cuts of each language, drawn on first access.

        Raises:
          DataError: A dev set is missing or damaged.
        """
        max_hours = self._options.valid_max_hours or math.inf
        loaders: dict[str, SplitLoader] = {
            language.code: self._data.loader(language.code, "dev", max_hours, self._options.seed)
            for language in self._data.languages
        }
        if self._rank.is_main and has_dropped(loaders):
            logger.warning("dev cuts:\n%s", drop_report(loaders, "dev"))
        return loaders

    @torch.no_grad()
    def __call__(self, update: int) -> dict[str, dict[str, float]]:
        """Return the metrics by language: mean losses per token, seconds of audio, and word error rate in percent.

        All ranks must call this together, and get the same result.

        Args:
          update: The update, from 1, whose loss scales apply.
        """
        self._pathways.eval()
        codes = list(self.loaders)
        sums = LossSums(codes, self._rank.device)
        errors = torch.zeros(len(codes), 2, dtype=torch.float64)
        hidden = not self._rank.is_main or bar_position() is not None
        for i, (code, loader) in enumerate(self.loaders.items()):
            decoded = loader.every(self._options.valid_wer_cuts)
            batches = loader.shard(self._rank.index, self._rank.world_size, self._data.config.num_workers)
            length = -(-len(loader) // self._rank.world_size)
            for batch in tqdm(batches, f"validating {code}", length, leave=False, disable=hidden):
                losses = self._objective(batch, self._pathways, update)
                sums.add(code, losses, batch.total_tokens, batch.seconds)
                errors[i] += self._word_errors(batch, [name in decoded for name in batch.cut_ids])
        metrics = sums.flush(self._rank)
        totals = self._rank.sum(errors.to(self._rank.device)).tolist()
        for code, (num_errors, num_words) in zip(codes, totals, strict=True):
            if num_words and code in metrics:
                metrics[code]["wer"] = 100 * num_errors / num_words
        return metrics

    def _word_errors(self, batch: Batch, selected: list[bool]) -> Tensor:
        """Decode the selected cuts of a batch; return the number of errors and of words (2,)."""
        texts = list(compress(batch.texts, selected))
        if not texts:
            return torch.zeros(2, dtype=torch.float64)
        model, device = self._pathways.model, self._rank.device
        assert isinstance(model, Transducer)
        lens = batch.num_frames[selected]
        x = batch.inputs[selected, : int(lens.max())]
        with activate(model, self._pathways.masks, batch.language), self._objective.autocast():
            search = GreedySearch(model)
            encoder_out, lens = model.encode(x.to(device), lens.to(device))
            hypotheses = search.results(search.advance(search.init(len(lens)), encoder_out, lens))
        decoded = self._tokenizer.decode([hypothesis.tokens for hypothesis in hypotheses])
        by_characters = scored_by_characters(batch.language)
        references, words = (
            [scored_units(self._tokenizer.words(text), by_characters) for text in side] for side in (texts, decoded)
        )
        num_errors = sum(edit_distance(*pair)["total"] for pair in zip(references, words, strict=True))
        return torch.tensor([num_errors, sum(map(len, references))], dtype=torch.float64)


class ValidationCallback(Callback):
    """Validate regularly and after the last update, and call `on_validation_end` with the result.

    Args:
      validator: Computes the metrics.
      options: The interval, and the warm-up of the losses.
      callbacks: Their `on_validation_end` is called with the metrics.
    """

    def __init__(self, validator: Validator, options: TrainingConfig, callbacks: CallbackList) -> None:
        self._validator = validator
        self._options = options
        self._callbacks = callbacks

    def on_update_end(self, state: TrainState, result: UpdateResult) -> None:
        """Validate if it is due."""
        if state.update % self._options.valid_interval == 0 or state.is_last_update:
            # Use the loss scales after the warm-up, so that the losses of all validations are comparable.
            self._callbacks.on_validation_end(state, self._validator(self._options.warm_updates))
