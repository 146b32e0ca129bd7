"""Training metrics: collect them during training and write them to the log."""

from collections.abc import Sequence
from functools import partial

from icefall_pathways.data.batch import Batch
from icefall_pathways.launch.ranks import Rank
from icefall_pathways.pathways.plots import mask_figures
from icefall_pathways.training.callbacks import Callback, UpdateResult, ValidationMetrics
from icefall_pathways.training.config import TrainingConfig
from icefall_pathways.training.metrics import LossSums, MetricsLog, Speed
from icefall_pathways.training.train_state import TrainState


class MetricsCallback(Callback):
    """Log the metrics of training and validation, and draw the masks when they change.

    Args:
      options: The folder, the intervals, and whether TensorBoard files are written.
      languages: The languages of the training.
      rank: This process.
    """

    def __init__(self, options: TrainingConfig, languages: Sequence[str], rank: Rank) -> None:
        self._options = options
        self._rank = rank
        self._sums = LossSums(languages, rank.device)
        self._speed = Speed()
        self._log: MetricsLog | None = None
        self._drawn_changes = -1

    def on_train_start(self, state: TrainState) -> None:
        """Open the log and draw the initial masks."""
        options = self._options
        self._log = MetricsLog(options.exp_dir, self._rank, state.update, state.num_updates, options.tensorboard)
        self._draw_masks(state, self._log)

    def on_update_start(self, state: TrainState, batches: Sequence[Batch], wait_seconds: float) -> None:
        """Count the time spent waiting for data."""
        self._speed.add_wait(wait_seconds)

    def on_update_end(self, state: TrainState, result: UpdateResult) -> None:
        """Add the losses, and write their means if they are due."""
        assert self._log is not None
        language = result.language
        if result.stepped:
            self._sums.add_update(language, result.grad_norm)
            for batch, losses in zip(result.batches, result.losses, strict=True):
                self._sums.add(language, losses, batch.total_tokens, batch.seconds)
        self._log.advance(language, sum(batch.seconds for batch in result.batches))
        if self._is_due(state, result):
            self._write_training(state, self._log)

    def on_validation_end(self, state: TrainState, metrics: ValidationMetrics) -> None:
        """Write the metrics of each language."""
        assert self._log is not None
        self._draw_masks(state, self._log)
        for language, values in metrics.items():
            self._log.write("valid", state.update, language, values)

    def on_train_end(self, state: TrainState, error: BaseException | None) -> None:
        """Close the log."""
        if self._log is not None:
            self._log.close(error)

    def _is_due(self, state: TrainState, result: UpdateResult) -> bool:
        """Return whether to write the sums: at intervals, and with every checkpoint from which a run resumes.

        The sums are not part of the checkpoint, and the audio of all records has to be that of the whole training.
        """
        options = self._options
        checkpointed = state.update % options.save_every_n == 0 or state.is_end_of_epoch or result.stop_signal
        return state.update % options.log_interval == 0 or state.is_last_update or bool(checkpointed)

    def _write_training(self, state: TrainState, log: MetricsLog) -> None:
        seconds = 0.0
        for language, values in self._sums.flush(self._rank).items():
            seconds += values["audio_seconds"]
            sparsity = {} if state.masks is None else {"sparsity": state.masks.sparsity(language)}
            progress = {"lr": state.learning_rate, "epoch": state.epoch}
            log.write("train", state.update, language, values | progress | sparsity)
        log.write("speed", state.update, "all", self._speed.flush(state.update, seconds))

    def _draw_masks(self, state: TrainState, log: MetricsLog) -> None:
        if state.masks is not None and state.mask_changes != self._drawn_changes:
            log.draw(state.update, partial(mask_figures, state.model, state.masks))
            self._drawn_changes = state.mask_changes
