"""Checkpoint policy of a training run: when to write checkpoints, which to keep, and which to resume from."""

import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from icefall_pathways.data.tokenizer import Tokenizer
from icefall_pathways.experiment import checkpoints, layout
from icefall_pathways.launch.ranks import Rank
from icefall_pathways.launch.signals import Stopped
from icefall_pathways.options import to_dict
from icefall_pathways.training.callbacks import Callback, UpdateResult, ValidationMetrics
from icefall_pathways.training.config import ExperimentConfig, TrainingConfig
from icefall_pathways.training.resume_check import batch_size, check_resumable
from icefall_pathways.training.train_state import TrainState

logger = logging.getLogger("icefall_pathways")


def describe_run(config: ExperimentConfig, state: TrainState, tokenizer: Tokenizer, rank: Rank) -> dict[str, Any]:
    """Return the properties of a run that its checkpoints store, and that `check_resumable` compares.

    Args:
      config: The options of the run.
      state: Provides the header of the masks and the updates per epoch.
      tokenizer: Provides the vocabulary size.
      rank: Provides the number of ranks.
    """
    options = config.training
    return {
        "masks_header": {} if state.masks is None else asdict(state.masks.header),
        "world_size": rank.world_size,
        "accum_grad": options.accum_grad,
        "updates_per_epoch": state.updates_per_epoch,
        "vocab_size": tokenizer.vocab_size,
        "tokens": checkpoints.file_hash(options.tokenizer_path),
        "config": to_dict(config),
    }


class CheckpointCallback(Callback):
    """Write checkpoints regularly, at the ends of epochs, and at the lowest validation loss.

    Args:
      options: The folder, the intervals, and the number of checkpoints to keep.
      description: See `describe_run`.
      rank: This process.
    """

    def __init__(self, options: TrainingConfig, description: Mapping[str, Any], rank: Rank) -> None:
        self._options = options
        self._description = dict(description)
        self._rank = rank
        self._saved_update = -1

    def resume(self, state: TrainState) -> None:
        """Restore the checkpoint given by the options, or the newest one; if there is none, leave `state` unchanged.

        Raises:
          CheckpointError: The checkpoint is unreadable, belongs to another run, or differs between the ranks.
        """
        checkpoint = self._find()
        if checkpoint is not None:
            self._check(state, checkpoint)
            state.load_state_dict(checkpoint)
            self._adapt_batch_size(state, checkpoint)
            logger.info("resuming after update %d", state.update)
        updates = self._rank.gather(state.update)
        if len(set(updates)) > 1:
            raise checkpoints.CheckpointError(
                f"the ranks resume from different updates ({', '.join(map(str, updates))}): --exp-dir must be one "
                "folder, the same on all machines"
            )

    def save(self, state: TrainState, path: Path) -> None:
        """Write a checkpoint. All ranks must call this together."""
        checkpoint = state.state_dict()
        if self._rank.is_main:
            checkpoints.save(checkpoint | self._description, path)

    def save_update(self, state: TrainState) -> Path:
        """Write the checkpoint of the current update, unless it has been written, and return its path."""
        path = layout.batch_checkpoint(self._options.exp_dir, state.update)
        if self._saved_update != state.update:
            self.save(state, path)
            self._saved_update = state.update
        return path

    def on_update_end(self, state: TrainState, result: UpdateResult) -> None:
        """Write the checkpoints that are due."""
        if state.update % self._options.save_every_n == 0 or state.is_last_update:
            self._remove_old(self.save_update(state), self._options.keep_last_k)
        if state.is_end_of_epoch:
            path = layout.epoch_checkpoint(self._options.exp_dir, state.epoch)
            self.save(state, path)
            self._remove_old(path, self._options.keep_last_epochs)

    def on_validation_end(self, state: TrainState, metrics: ValidationMetrics) -> None:
        """Write a checkpoint if the mean loss of the languages is the lowest so far."""
        mean = sum(values["loss"] for values in metrics.values()) / len(metrics)
        if mean < state.best_valid_loss:
            state.best_valid_loss = mean
            self.save(state, self._options.exp_dir / layout.BEST_CHECKPOINT_FILE)

    def _find(self) -> checkpoints.Checkpoint | None:
        options = self._options
        if self._rank.is_main:
            checkpoints.remove_temporary_files(options.exp_dir)
        if options.start_batch:
            return checkpoints.read(layout.batch_checkpoint(options.exp_dir, options.start_batch))
        if options.start_epoch > 1:
            return checkpoints.read(layout.epoch_checkpoint(options.exp_dir, options.start_epoch - 1))
        newest = checkpoints.newest(options.exp_dir)
        return None if newest is None else newest[1]

    def _check(self, state: TrainState, checkpoint: checkpoints.Checkpoint) -> None:
        weights = state.model.state_dict()
        changed = check_resumable(
            self._description,
            checkpoint,
            weights,
            checkpoint["model"],
            self._options.exp_dir,
            self._options.allow_new_batch_size,
        )
        if changed and self._rank.is_main:
            print(f"warning: resuming with different options or data: {', '.join(changed)}")

    def _adapt_batch_size(self, state: TrainState, checkpoint: checkpoints.Checkpoint) -> None:
        """Continue at the same position in the data if the batch size has changed."""
        batches, max_duration = batch_size(checkpoint)
        new_batches, new_max_duration = batch_size(self._description)
        if (batches, max_duration) == (new_batches, new_max_duration):
            return
        state.change_batch_size(batches, max_duration, checkpoint.get("progress"))
        if self._rank.is_main:
            print(
                f"updates have {new_batches * new_max_duration:g} s of audio from update {state.update + 1} on (were "
                f"{batches * max_duration:g} s): epoch {state.epoch} continues, {state.num_updates - state.update} "
                "updates remain"
            )

    def _remove_old(self, newest: Path, keep: int) -> None:
        """Remove all but the last `keep` checkpoints of the kind of `newest`, up to it."""
        if self._rank.is_main:
            initial = layout.batch_checkpoint(self._options.exp_dir, 0)  # rewinding needs it
            for path in layout.checkpoints_up_to(newest)[:-keep]:
                if path != initial:
                    path.unlink()


class StopCallback(Callback):
    """Save a checkpoint and stop if any rank has received a stop request.

    Args:
      checkpoint: Writes the checkpoint.
      rank: This process.
    """

    def __init__(self, checkpoint: CheckpointCallback, rank: Rank) -> None:
        self._checkpoint = checkpoint
        self._rank = rank

    def on_update_end(self, state: TrainState, result: UpdateResult) -> None:
        """Save a checkpoint and stop if any rank has received a stop request.

        Raises:
          Stopped: The checkpoint has been saved.
        """
        if not result.stop_signal:
            return
        path = self._checkpoint.save_update(state)
        self._rank.barrier()
        if self._rank.is_main:
            tqdm.write(f"stop requested: saved {path}")
        raise Stopped(result.stop_signal)
