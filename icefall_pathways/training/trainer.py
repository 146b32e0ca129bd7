"""The training loop of all experiments: dense, LAP, LSP, mask search and pathways.

They differ only in the languages of the batches, in the masks (none, one for all languages, or one per language), and
in the pruning schedule. All randomness is a function of the seed, the batch and the update, so a run that resumes from
a checkpoint computes exactly what an uninterrupted run computes.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import closing, nullcontext
from itertools import islice

from torch import Tensor

from icefall_pathways.data.batch import Batch
from icefall_pathways.data.datamodule import SpeechDataModule
from icefall_pathways.data.loading import translate_worker_death
from icefall_pathways.data.tokenizer import Tokenizer
from icefall_pathways.experiment import layout
from icefall_pathways.launch.ranks import Rank
from icefall_pathways.launch.signals import stop_requests
from icefall_pathways.models.transducer import Transducer
from icefall_pathways.pathways.activation import PathwayModule
from icefall_pathways.pathways.masks import PathwayMasks
from icefall_pathways.training.batch_sizes import format_table, scan_batch_sizes
from icefall_pathways.training.callbacks import Callback, CallbackList
from icefall_pathways.training.checkpointing import CheckpointCallback, StopCallback, describe_run
from icefall_pathways.training.config import ExperimentConfig
from icefall_pathways.training.diagnostics import Diagnostics, inf_check
from icefall_pathways.training.metrics_callback import MetricsCallback
from icefall_pathways.training.optimization import with_optimizer
from icefall_pathways.training.pruning_callback import PruningCallback, PruningPlan
from icefall_pathways.training.train_state import TrainState
from icefall_pathways.training.update import Update
from icefall_pathways.training.validation import ValidationCallback, Validator

_NUM_DIAGNOSED_UPDATES = 8


class Trainer:
    """Train one model.

    Args:
      config: The options of the run.
      model: The model on the CPU; it is moved to the device of the rank.
      data: The source of the batches.
      tokenizer: Encodes transcripts.
      rank: This process.
      masks: The sub-network of each language; None trains the dense model.
      plan: The changes of `masks` during training; None leaves them unchanged.
      callbacks: Further callbacks. They are called after those for pruning and metrics, and before those for
        validation and checkpoints.

    Attributes:
      callbacks: All callbacks in their order; the list may be changed before `run`.

    Raises:
      ValueError: The options are incompatible with each other or with the masks.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        model: Transducer,
        data: SpeechDataModule,
        tokenizer: Tokenizer,
        rank: Rank,
        masks: PathwayMasks | None = None,
        plan: PruningPlan | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        config = with_optimizer(config)
        options = config.training
        if plan is not None and masks is None:
            raise ValueError("a pruning plan needs masks: pass masks, such as PathwayMasks.dense(...)")
        if plan is not None and options.freeze_languages:
            raise ValueError("--freeze-languages needs masks that do not change: use --prune-method none")
        self.config = config
        self.data = data
        self.tokenizer = tokenizer
        self.rank = rank
        self.plan = plan
        self.state = TrainState(
            config,
            model,
            data,
            rank,
            masks,
            track_gradients=plan is not None and plan.schedule.needs_gradients,
            restart_every=plan.schedule.restarts_every if plan is not None else 0,
        )
        self.callbacks = CallbackList()
        self.update_step = Update(config, self.state, rank, self.callbacks)
        pathways, objective = self.update_step.pathways, self.update_step.objective
        self.validator = Validator(pathways, objective, data, tokenizer, rank, options)
        self.checkpoint = CheckpointCallback(options, describe_run(config, self.state, tokenizer, rank), rank)
        if plan is not None:
            self.callbacks.append(PruningCallback(plan, options.exp_dir))
        self.callbacks += [
            MetricsCallback(options, [language.code for language in data.languages], rank),
            *callbacks,
            ValidationCallback(self.validator, options, self.callbacks),
            self.checkpoint,
            StopCallback(self.checkpoint, rank),
        ]

    def run(self) -> bool:
        """Train from the newest checkpoint, if there is one, to the last update.

        Returns:
          True if the last update is complete; False with --print-diagnostics.
        """
        state, options = self.state, self.config.training
        self.checkpoint.resume(state)
        if state.update == 0 and self.plan is not None and self.plan.needs_initial_checkpoint:
            self.checkpoint.save(state, layout.batch_checkpoint(options.exp_dir, 0))
        if options.scan_batch_sizes:
            self._scan_batch_sizes()
        if options.print_diagnostics:
            self._print_diagnostics()
            return False
        _ = self.validator.loaders  # so that a missing dev set stops the training at its start and not hours later
        check = inf_check(state.model, gradients=not state.scaler.is_enabled()) if options.inf_check else nullcontext()
        with self.callbacks.training(state), translate_worker_death(), stop_requests() as stop, check:
            for batches, wait_seconds in self._batches():
                with self.update_step.guard.save_on_exception(batches):
                    self.callbacks.on_update_start(state, batches, wait_seconds)
                    result = self.update_step(batches, stop.signum)
                self.callbacks.on_update_end(state, result)
        self.rank.barrier()
        return True

    def _batches(self) -> Iterator[tuple[list[Batch], float]]:
        """Advance the state by one update at a time; yield its batches, of one language, and the seconds of waiting."""
        state, options = self.state, self.config.training
        loaded = self.data.train_batches(
            start_update=state.update,
            num_updates=state.num_updates - state.update,
            seed=options.seed,
            rank=self.rank.index,
            world_size=self.rank.world_size,
            accum_grad=options.accum_grad,
        )
        with closing(loaded):
            while state.update < state.num_updates:
                start = time.monotonic()
                batches = list(islice(loaded, options.accum_grad))
                wait_seconds = time.monotonic() - start
                state.update += 1
                yield batches, wait_seconds

    def _scan_batch_sizes(self) -> None:
        pathways = PathwayModule(self.state.model, self.state.masks).train()  # does not update gradient statistics
        objective, warm_updates = self.update_step.objective, self.config.training.warm_updates

        def loss_of(batch: Batch) -> Tensor:
            return objective(batch, pathways, warm_updates)["loss"]

        batches = scan_batch_sizes(self.state.model, loss_of, self.data, self.rank)
        if self.rank.is_main:
            print(format_table(batches))

    def _print_diagnostics(self) -> None:
        """Print the magnitudes of outputs, gradients and parameters over a few updates, which are not saved."""
        diagnostics = Diagnostics(self.state.model)
        pruning = CallbackList(callback for callback in self.callbacks if isinstance(callback, PruningCallback))
        with diagnostics.collect():
            for batches, _ in islice(self._batches(), _NUM_DIAGNOSED_UPDATES):
                pruning.on_update_end(self.state, self.update_step(batches))
        if self.rank.is_main:
            print(diagnostics.report())
