"""The training loop: dense, LAP, LSP, mask search and pathways alike.

They differ only in the languages that are read, in the masks (none, one for all, one each) and in whether a pruning
schedule is running. Everything random is a function of the seed, the rank and the update number, so a run that goes on
from a checkpoint repeats exactly what it would have done.
"""

import logging
import signal
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import asdict
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from icefall_pathways.data.batch import Batch
from icefall_pathways.data.datamodule import SpeechDataModule
from icefall_pathways.data.loading import translate_worker_death
from icefall_pathways.data.tokenizer import Tokenizer
from icefall_pathways.experiment import checkpoints, layout
from icefall_pathways.languages import codes_of
from icefall_pathways.models.regularizers import load_regularizer_state, regularizer_state, set_position
from icefall_pathways.models.transducer import Transducer
from icefall_pathways.optim.averaging import ModelAverage
from icefall_pathways.options import to_dict
from icefall_pathways.pathways.activation import PathwayModule
from icefall_pathways.pathways.freezing import freeze_languages
from icefall_pathways.pathways.masks import PathwayMasks
from icefall_pathways.pathways.plots import mask_figures
from icefall_pathways.training.batch_sizes import describe, scan_batch_sizes
from icefall_pathways.training.config import ExperimentConfig
from icefall_pathways.training.diagnostics import Diagnostics, inf_check
from icefall_pathways.training.launch.ranks import Rank
from icefall_pathways.training.launch.signals import Stopped, StopRequest, stop_requests
from icefall_pathways.training.metrics import LossSums, MetricsLog, Speed
from icefall_pathways.training.nonfinite import BatchGuard, gradient_norm, poisoned, read_flags
from icefall_pathways.training.objective import Objective, seconds_of
from icefall_pathways.training.optimization import build_learning_rate, build_optimizer, with_optimizer
from icefall_pathways.training.pruning_callback import Pruner, PruningPlan
from icefall_pathways.training.resume_check import check_same_run
from icefall_pathways.training.validation import Validator

logger = logging.getLogger("icefall_pathways")

_DIAGNOSED_UPDATES = 8

# Where the regularizers' schedules stand for weights that are trained already: behind the end of all of them.
_TRAINED = 100_000.0


class Trainer:
    """Trains one model.

    Args:
      config: The run's options.
      model: The model, on the CPU; it is moved to the rank's device.
      data: Where batches come from.
      tokenizer: Makes tokens of transcripts.
      rank: Which process this is.
      masks: Each language's sub-network; None runs the dense model.
      plan: How `masks` change while training goes on; None leaves them as they are.
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
    ) -> None:
        self.config = with_optimizer(config)
        self.options = self.config.training
        self.rank = rank
        self.data = data
        self.tokenizer = tokenizer
        self.tokens = checkpoints.file_hash(self.options.tokenizer_path)
        self.plan = plan
        self.restarts_every = plan.schedule.restarts_every if plan is not None else 0
        self.model = model.to(rank.device)
        self.masks = masks.to(rank.device) if masks is not None else None
        self.trainable = self._freeze()
        self.optimizer = build_optimizer(self.model.named_parameters(), self.options)
        self.pruner = self._pruner()
        self.gradients = self.pruner.gradients if self.pruner is not None else None
        self.pathways = PathwayModule(self.model, self.masks, self.gradients.add if self.gradients else None)
        self.parallel = self._parallelise(self.pathways)
        self.average = ModelAverage(self.model, self.options.average_period)
        self.batches_per_update = rank.world_size * self.options.accum_grad
        self.updates_per_epoch = data.updates_per_epoch(self.batches_per_update)
        self.num_updates = self.options.num_updates or self.options.num_epochs * self.updates_per_epoch
        self.learning_rate = build_learning_rate(self.options, self.restarts_every or self.num_updates)
        self.objective = Objective(self.options, rank.device)
        self.scaler = torch.cuda.amp.GradScaler(enabled=self.options.use_fp16 and rank.device.type == "cuda")
        self.sums = LossSums([language.code for language in data.languages], rank.device)
        self.validator = Validator(self.pathways, self.objective, data, tokenizer, rank, self.options.valid_wer_cuts)
        self.guard = BatchGuard(self.model, self.options.exp_dir, self.options.max_bad_batches, rank)
        self.stop = StopRequest()
        self.speed = Speed()
        self.best_valid_loss = float("inf")
        self._drawn_changes = -1

    def run(self) -> bool:
        """Train from the newest checkpoint, if there is one, to the last update.

        Returns:
          Whether the last update has been done; with --print-diagnostics it has not.
        """
        start = self._resume()
        if len(set(starts := self.rank.gather(start))) > 1:
            raise checkpoints.CheckpointError(
                f"the ranks go on from different updates ({', '.join(map(str, starts))}): --exp-dir must be one "
                "folder, the same on all machines"
            )
        if start == 0 and self.plan is not None and self.plan.needs_start:
            self._save(layout.batch_checkpoint(self.options.exp_dir, 0), 0)
        options = self.options
        if options.scan_batch_sizes:
            self._scan_batch_sizes()
        if options.print_diagnostics:
            self._print_diagnostics(start)
            return False
        self.validator.check()
        log = MetricsLog(options.exp_dir, self.rank, start, self.num_updates, options.tensorboard)
        check = inf_check(self.model, gradients=not self.scaler.is_enabled()) if options.inf_check else nullcontext()
        with log, translate_worker_death(), stop_requests() as self.stop, check:
            self._draw_masks(start, log)
            for update, batches in self._batches(start):
                with self.guard.keeps_evidence(batches):
                    stopping = self._train_update(update, batches)
                log.advance(batches[0].language, sum(seconds_of(batch) for batch in batches))
                self._between_updates(update, log)
                if stopping:
                    self._leave(update)
        self.rank.barrier()
        return True

    def _scan_batch_sizes(self) -> None:
        pathways = PathwayModule(self.model, self.masks).train()  # leaves the gatherers of gradients alone

        def loss_of(batch: Batch) -> Tensor:
            return self.objective(batch, pathways, self.options.warm_updates)["loss"]

        fits = scan_batch_sizes(self.model, loss_of, self.data, self.rank)
        if self.rank.is_main:
            print(describe(fits))

    def _print_diagnostics(self, start: int) -> None:
        diagnostics = Diagnostics(self.model)
        with diagnostics.gathers():
            for update, batches in islice(self._batches(start), _DIAGNOSED_UPDATES):
                self._train_update(update, batches)
        if self.rank.is_main:
            print(diagnostics.report())

    def _batches(self, start: int) -> Iterator[tuple[int, list[Batch]]]:
        """The batches of each update: `accum_grad` of them, all of one language."""
        loaded = self.data.train_batches(
            start_update=start,
            num_updates=self.num_updates - start,
            seed=self.options.seed,
            rank=self.rank.index,
            world_size=self.rank.world_size,
            accum_grad=self.options.accum_grad,
        )
        with closing(loaded):
            for update in range(start + 1, self.num_updates + 1):
                with self.speed.waiting():
                    batches = list(islice(loaded, self.options.accum_grad))
                yield update, batches

    def _train_update(self, update: int, batches: list[Batch]) -> bool:
        """One step of the optimizer on batches of one language; `update` counts from 1.

        Returns:
          Whether a rank has been asked to stop; all ranks come to know it in the same update.
        """
        language = batches[0].language
        set_position(self.model, self._position(update) + (_TRAINED if self.options.init_from else 0.0))
        self.parallel.train()
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate_at(update)
        losses, asked = self._forward_backward(batches, update)
        self.scaler.unscale_(self.optimizer)
        norm = gradient_norm(self.model)
        finite, stopping = read_flags(self.model, torch.isfinite(norm), asked > 0)
        if self.guard.passes(update, batches, [loss["loss"] for loss in losses], finite, self.scaler.get_scale):
            self.optimizer.activate(self.trainable, language)
            self.optimizer.step()
            self.sums.add_update(language, norm)
            for batch, loss in zip(batches, losses, strict=True):
                self.sums.add(language, loss, batch.total_tokens, seconds_of(batch))
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.average.update(self.model, update)
        if self.pruner is not None:
            self.pruner.after_update(update)
        return stopping

    def _position(self, update: int) -> float:
        """Where the schedules of the regularizers stand, in batches of `ref_duration`; it moves every 10 updates."""
        updates_before = (update - 1) // 10 * 10
        return updates_before * self.config.data.max_duration * self.batches_per_update / self.options.ref_duration

    def _forward_backward(self, batches: list[Batch], update: int) -> tuple[list[dict[str, Tensor]], Tensor]:
        """The losses of the batches, and how many ranks have been asked to stop, on the device."""
        told = torch.tensor([sum(batch.total_tokens for batch in batches), self.stop.signum > 0], dtype=torch.float64)
        total = self.rank.sum(told.to(self.rank.device, non_blocking=True))
        # Every rank divides by the mean number of tokens of a rank, so that the averaged gradient is that of the mean
        # loss per token of the whole update, however the utterances fell to the ranks.
        tokens = total[0].float() / self.rank.world_size
        if self.gradients is not None:
            self.gradients.scale = self.scaler.scale(torch.ones((), device=self.rank.device))
        losses = []
        for i, batch in enumerate(batches):
            # Numbered through the ranks, as the batches are: what is random in a batch does not depend on who has it.
            torch.manual_seed(_seed(self.options.seed, i * self.rank.world_size + self.rank.index, update))
            with self._communicates(i == len(batches) - 1):
                losses.append(self.objective(batch, self.parallel, update))
                self.scaler.scale(poisoned(losses[-1]["loss"]) / tokens).backward()
        return losses, total[1]

    def _communicates(self, last: bool) -> AbstractContextManager[None]:
        """Ranks add up their gradients in the backward pass of an update's last batch only."""
        if last or not isinstance(self.parallel, nn.parallel.DistributedDataParallel):
            return nullcontext()
        no_sync: AbstractContextManager[None] = self.parallel.no_sync()  # type: ignore[operator]
        return no_sync

    def _between_updates(self, update: int, log: MetricsLog) -> None:
        options, last = self.options, update == self.num_updates
        if update % options.log_interval == 0 or last:
            self._log_training(update, log)
        if update % options.valid_interval == 0 or last:
            self._validate(update, log)
        if update % options.save_every_n == 0 or last:
            self._save(layout.batch_checkpoint(options.exp_dir, update), update)
            self._drop_old_checkpoints()
        if update % self.updates_per_epoch == 0:
            self._save(layout.epoch_checkpoint(options.exp_dir, update // self.updates_per_epoch), update)

    def _log_training(self, update: int, log: MetricsLog) -> None:
        lr = self._learning_rate_at(update)
        seconds = 0.0
        for language, values in self.sums.flush(self.rank).items():
            seconds += values["audio_seconds"]
            sparsity = {} if self.masks is None else {"sparsity": self.masks.sparsity(language)}
            log.write("train", update, language, values | {"lr": lr, "epoch": self.epoch_of(update)} | sparsity)
        log.write("speed", update, "all", self.speed.flush(update, seconds))

    def _draw_masks(self, update: int, log: MetricsLog) -> None:
        """Once at the start of a run, and then whenever there has been a change."""
        masks, changes = self.masks, self.pruner.changes if self.pruner is not None else 0
        if masks is not None and changes != self._drawn_changes:
            log.draw(update, partial(mask_figures, self.model, masks))
            self._drawn_changes = changes

    def _validate(self, update: int, log: MetricsLog) -> None:
        self._draw_masks(update, log)
        figures = self.validator(self.options.warm_updates)
        for code, values in figures.items():
            log.write("valid", update, code, values)
        mean = sum(values["loss"] for values in figures.values()) / len(figures)
        if mean < self.best_valid_loss:
            self.best_valid_loss = mean
            self._save(self.options.exp_dir / layout.BEST_CHECKPOINT_FILE, update)

    def epoch_of(self, update: int) -> int:
        """The epoch, from 1, that an update belongs to."""
        return (max(update, 1) - 1) // self.updates_per_epoch + 1

    def _save(self, path: Any, update: int) -> None:
        if self.gradients is not None:
            self.gradients.reduce(keep=self.rank.is_main)
        regularizers = self.rank.gather(regularizer_state(self.model))
        if not self.rank.is_main:
            return
        checkpoint = {
            "model": self.model.state_dict(),
            "model_avg": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict()["state"],
            "scaler": self.scaler.state_dict(),
            "regularizers": regularizers,
            "masks": {} if self.masks is None else self.masks.codes,
            "gradients": {} if self.gradients is None else self.gradients.state_dict(),
            "update": update,
            "epoch": self.epoch_of(update),
            "best_valid_loss": self.best_valid_loss,
            "pass_lengths": self.data.pass_lengths,
        }
        checkpoints.save(checkpoint | self._description(), path)

    def _leave(self, update: int) -> None:
        """Save, and end the run as a signal has asked this or another rank to.

        Raises:
          Stopped: Always.
        """
        path = layout.batch_checkpoint(self.options.exp_dir, update)
        if update % self.options.save_every_n and update != self.num_updates:
            self._save(path, update)
        self.rank.barrier()
        if self.rank.is_main:
            tqdm.write(f"asked to stop: saved {path}")
        raise Stopped(self.stop.signum or signal.SIGTERM)

    def _drop_old_checkpoints(self) -> None:
        if self.rank.is_main:
            for path in layout.batch_checkpoints(self.options.exp_dir)[: -self.options.keep_last_k]:
                if path != layout.batch_checkpoint(self.options.exp_dir, 0):  # what rewinding goes back to
                    path.unlink()

    def _resume(self) -> int:
        """Take over the newest checkpoint, or the one that the options name; returns its update number."""
        options = self.options
        if self.rank.is_main:
            checkpoints.remove_temporary_files(options.exp_dir)
        if options.start_batch:
            checkpoint = checkpoints.read(layout.batch_checkpoint(options.exp_dir, options.start_batch))
        elif options.start_epoch > 1:
            checkpoint = checkpoints.read(layout.epoch_checkpoint(options.exp_dir, options.start_epoch - 1))
        else:
            found = checkpoints.newest(options.exp_dir)
            if found is None:
                return 0
            checkpoint = found[1]
        weights = self.model.state_dict()
        changed = check_same_run(self._description(), checkpoint, weights, checkpoint["model"], options.exp_dir)
        if changed and self.rank.is_main:
            print(f"warning: going on with other options, or other data, than before: {', '.join(changed)}")
        self.model.load_state_dict(checkpoint["model"])
        self.average.load_state_dict(checkpoint["model_avg"])
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": checkpoint["optimizer"], "param_groups": groups})
        self.scaler.load_state_dict(checkpoint["scaler"])
        load_regularizer_state(self.model, checkpoint["regularizers"][self.rank.index])
        if self.masks is not None:
            for name, code in checkpoint["masks"].items():
                self.masks.codes[name].copy_(code)
        if self.gradients is not None:
            self.gradients.load_state_dict(checkpoint["gradients"], self.rank.device, keep=self.rank.is_main)
        self.best_valid_loss = checkpoint["best_valid_loss"]
        self.data.pass_lengths = checkpoint.get("pass_lengths", {})
        logger.info("going on after update %d", checkpoint["update"])
        return checkpoint["update"]

    def _description(self) -> dict[str, Any]:
        """What a checkpoint says of its run."""
        return {
            "masks_header": {} if self.masks is None else asdict(self.masks.header),
            "world_size": self.rank.world_size,
            "accum_grad": self.options.accum_grad,
            "updates_per_epoch": self.updates_per_epoch,
            "vocab_size": self.tokenizer.vocab_size,
            "tokens": self.tokens,
            "config": to_dict(self.config),
        }

    def _pruner(self) -> Pruner | None:
        if self.plan is None:
            return None
        if self.masks is None:
            raise ValueError("pruning needs masks to change: give the trainer those of a dense model")
        return Pruner(self.plan, self.model, self.masks, self.optimizer, self.rank, self.options.exp_dir)

    def _learning_rate_at(self, update: int) -> float:
        # Where the weights go back, the learning rate does too.
        if self.restarts_every:
            update = (update - 1) % self.restarts_every + 1
        return self.learning_rate(update, self.epoch_of(update) - 1)

    def _freeze(self) -> PathwayMasks | None:
        """The masks of what may be trained: those of the model, without what frozen languages use."""
        if self.masks is None or not self.options.freeze_languages:
            return self.masks
        if self.plan is not None:
            raise ValueError("--freeze-languages needs masks that stay as they are: use --prune-method none")
        return freeze_languages(self.model, self.masks, codes_of(self.options.freeze_languages))

    def _parallelise(self, module: nn.Module) -> nn.Module:
        if self.rank.world_size == 1:
            return module
        # Without device_ids: with them, what is meant to stay on the CPU would be moved to the device.
        return nn.parallel.DistributedDataParallel(
            module, find_unused_parameters=not self.model.encoder.uses_all_parameters
        )


def _seed(seed: int, rank: int, update: int) -> int:
    """Seeds that differ for all ranks and updates of a run, within the 64 bits that torch takes."""
    return ((seed * 1_000_003 + rank) * 10_000_019 + update) % 2**64
