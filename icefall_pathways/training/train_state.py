"""The state of a training run: everything that a checkpoint restores."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from icefall_pathways.data.datamodule import SpeechDataModule
from icefall_pathways.launch.ranks import Rank
from icefall_pathways.models.regularizers import load_regularizer_state, regularizer_state
from icefall_pathways.models.transducer import Transducer
from icefall_pathways.optim.averaging import ModelAverage
from icefall_pathways.pathways.gradients import LanguageGradients
from icefall_pathways.pathways.masks import PathwayMasks
from icefall_pathways.torch_compat import cuda_grad_scaler
from icefall_pathways.training.config import ExperimentConfig
from icefall_pathways.training.optimization import build_learning_rate, build_optimizer, trainable_masks


class TrainState:
    """Model, masks, optimizer, loss scaler, running average, sampler position, counters, and learning rate schedule.

    The random state is a function of the seed, the batch, and the update (`batch_seed`), so checkpoints do not store
    it: a resumed run computes exactly what an uninterrupted run computes.

    Args:
      config: The options of the run; the optimizer and the base learning rate must be resolved.
      model: Moved to the device of the rank.
      data: The source of the batches; its batch offsets belong to the state.
      rank: This process.
      masks: The sub-network of each language; moved to the device of the rank. None trains the dense model.
      track_gradients: Collect the gradient statistics of each language, as some pruning criteria need them.
      restart_every: Updates after which the learning rate schedule restarts; 0 never restarts it.

    Attributes:
      trainable: The masks of the entries that may change: `masks` without the entries of frozen languages, and with
        the parameters that only one language uses.
      gradients: The gradient statistics of each language, or None.
      optimizer: A torch optimizer that updates the entries of the active sub-network.
      scaler: The loss scaler; it is disabled unless the run uses float16 on CUDA.
      average: The running average of the weights.
      batches_per_update: Batches over all ranks that make one update.
      updates_per_epoch: Updates that take as much audio as all languages have together.
      update: The current update, from 1; 0 before the first.
      update_offset: Updates of the current batch size that the training has progressed further than `update`, because
        earlier updates had other batch sizes; usually 0.
      best_valid_loss: The lowest mean validation loss so far.
      mask_changes: Number of times that this process has changed the masks.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        model: Transducer,
        data: SpeechDataModule,
        rank: Rank,
        masks: PathwayMasks | None = None,
        track_gradients: bool = False,
        restart_every: int = 0,
    ) -> None:
        options = config.training
        self.model = model.to(rank.device)
        self.masks = masks.to(rank.device) if masks is not None else None
        self.trainable = trainable_masks(
            self.model, self.masks, options, [language.code for language in data.languages]
        )
        self.gradients = LanguageGradients(all_reduce_sum=rank.sum) if track_gradients else None
        self.optimizer = build_optimizer(self.model.named_parameters(), options)
        self.scaler = cuda_grad_scaler(enabled=options.use_fp16 and rank.device.type == "cuda")
        self.average = ModelAverage(self.model, options.average_period)
        self.batches_per_update = rank.world_size * options.accum_grad
        self.updates_per_epoch = data.updates_per_epoch(self.batches_per_update)
        self.update = 0
        self.update_offset = 0
        self.best_valid_loss = float("inf")
        self.mask_changes = 0
        self._data = data
        self._rank = rank
        self._options = options
        self._restart_every = restart_every

    @property
    def num_updates(self) -> int:
        """Updates of the whole run."""
        return self._options.num_updates or self._options.num_epochs * self.updates_per_epoch - self.update_offset

    @property
    def scaled_update(self) -> int:
        """The current update, if all updates had had the current batch size."""
        return self.update + self.update_offset

    @property
    def epoch(self) -> int:
        """The epoch of the current update, from 1."""
        return (max(self.scaled_update, 1) - 1) // self.updates_per_epoch + 1

    @property
    def is_end_of_epoch(self) -> bool:
        """True for the last update of an epoch."""
        return self.scaled_update % self.updates_per_epoch == 0

    @property
    def is_last_update(self) -> bool:
        """True for the last update of the run."""
        return self.update == self.num_updates

    @property
    def learning_rate(self) -> float:
        """The learning rate of the current update."""
        schedule = build_learning_rate(self._options, self._restart_every or self.num_updates)
        if self._restart_every:
            update = (self.update - 1) % self._restart_every + 1
            return schedule(update, (update - 1) // self.updates_per_epoch)
        return schedule(self.update, self.epoch - 1)

    def state_dict(self) -> dict[str, Any]:
        """Return the content of a checkpoint, complete on rank 0. All ranks must call this together."""
        if self.gradients is not None:
            self.gradients.reduce(is_main=self._rank.is_main)
        return {
            "model": self.model.state_dict(),
            "model_avg": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict()["state"],
            "scaler": self.scaler.state_dict(),
            "regularizers": self._rank.gather(regularizer_state(self.model)),
            "masks": self._mask_codes(),
            "gradients": {} if self.gradients is None else self.gradients.state_dict(),
            "update": self.update,
            "epoch": self.epoch,
            "best_valid_loss": self.best_valid_loss,
            "update_offset": self.update_offset,
            "batch_offsets": self._data.batch_offsets,
            "progress": self._data.progress(self.update, self.batches_per_update, self._options.seed),
        }

    def load_state_dict(self, checkpoint: dict[str, Any]) -> None:
        """Restore the content of a checkpoint, or the result of `state_dict`. All ranks must call this."""
        self.model.load_state_dict(checkpoint["model"])
        self.average.load_state_dict(checkpoint["model_avg"])
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": checkpoint["optimizer"], "param_groups": groups})
        self.scaler.load_state_dict(checkpoint["scaler"])
        # Old checkpoints spell the key in British English.
        regularizers = checkpoint.get("regularizers") or checkpoint["regularizers".replace("z", "s")]
        load_regularizer_state(self.model, regularizers[self._rank.index % len(regularizers)])
        for name, code in self._mask_codes().items():
            code.copy_(checkpoint["masks"][name])
        if self.gradients is not None:
            self.gradients.load_state_dict(checkpoint["gradients"], self._rank.device, is_main=self._rank.is_main)
        self.update = checkpoint["update"]
        self.best_valid_loss = checkpoint["best_valid_loss"]
        self.update_offset = checkpoint.get("update_offset", 0)
        self._data.batch_offsets = checkpoint.get("batch_offsets", {})

    def change_batch_size(self, batches: int, max_duration: float, progress: Mapping[str, float] | None) -> None:
        """Keep the position in the epoch and in the data after a change of the batch size.

        Args:
          batches: Previous number of batches per update.
          max_duration: Previous maximum seconds of a batch.
          progress: Completed passes over each language, with fractions. None: a checkpoint that does not store them.
        """
        data, seed = self._data, self._options.seed
        ratio = batches * max_duration / (self.batches_per_update * data.config.max_duration)
        self.update_offset = round(self.scaled_update * ratio) - self.update
        progress = progress or data.progress(self.update, batches, seed)
        data.set_progress(progress, self.update, self.batches_per_update, seed)

    def _mask_codes(self) -> dict[str, Tensor]:
        return {} if self.masks is None else self.masks.codes


def batch_seed(seed: int, batch: int, update: int) -> int:
    """Return the seed of torch's generator for one batch of an update.

    Seeds differ between all batches and updates of a run, and fit into the 64 bits that torch accepts.

    Args:
      seed: The seed of the run.
      batch: Index of the batch in the update, counted over all ranks.
      update: The update, from 1.
    """
    return ((seed * 1_000_003 + batch) * 10_000_019 + update) % 2**64
