"""The training loop: dense, LAP, LSP, mask search and pathways alike.

They differ only in the languages that are read, in the masks (none, one for all, one each) and in whether a pruning
schedule is running. Everything random is a function of the seed, the rank and the update number, so a run that goes on
from a checkpoint repeats exactly what it would have done.
"""

import logging
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from icefall_pathways.data.datamodule import SpeechDataModule
from icefall_pathways.data.tokenizer import Tokenizer
from icefall_pathways.languages import codes_of
from icefall_pathways.models.losses import loss_scales
from icefall_pathways.models.regularisers import load_regulariser_state, regulariser_state, set_position
from icefall_pathways.models.transducer import Transducer, TransducerLoss
from icefall_pathways.optim.averaging import ModelAverage
from icefall_pathways.options import to_dict
from icefall_pathways.pathways.activation import PathwayModule
from icefall_pathways.pathways.freezing import freeze_languages
from icefall_pathways.pathways.masks import PathwayMasks
from icefall_pathways.training import checkpoints
from icefall_pathways.training.config import ExperimentConfig
from icefall_pathways.training.distributed import Rank
from icefall_pathways.training.metrics import LossSums, MetricsLog, bar_position
from icefall_pathways.training.optimization import build_learning_rate, build_optimizer, with_optimizer
from icefall_pathways.training.pruner import Pruner, PruningPlan

logger = logging.getLogger("icefall_pathways")

Batch = dict[str, Any]

# Where the regularisers' schedules stand for weights that are trained already: behind the end of all of them.
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
        self.updates_per_epoch = data.updates_per_epoch(rank.world_size)
        self.num_updates = self.options.num_updates or self.options.num_epochs * self.updates_per_epoch
        self.learning_rate = build_learning_rate(self.options, self.restarts_every or self.num_updates)
        autocast_type = torch.float16 if self.options.use_fp16 else torch.bfloat16
        self.autocast = torch.autocast(
            rank.device.type, dtype=autocast_type, enabled=self.options.use_fp16 or self.options.use_bf16
        )
        self.scaler = torch.cuda.amp.GradScaler(enabled=self.options.use_fp16 and rank.device.type == "cuda")
        self.sums = LossSums([language.code for language in data.languages], rank.device)
        self.best_valid_loss = float("inf")

    def run(self) -> None:
        """Train from the newest checkpoint, if there is one, to the last update."""
        start = self._resume()
        if start == 0 and self.plan is not None and self.plan.needs_start:
            self._save(checkpoints.batch_path(self.options.exp_dir, 0), 0)
        options = self.options
        with MetricsLog(options.exp_dir, self.rank, start, self.num_updates, options.tensorboard) as log:
            for update, batch in self._batches(start):
                self._train_update(update, batch)
                log.advance(batch["language"])
                self._between_updates(update, log)
        self.rank.barrier()

    def _batches(self, start: int) -> Iterator[tuple[int, Batch]]:
        batches = self.data.train_batches(
            start_update=start,
            num_updates=self.num_updates - start,
            seed=self.options.seed,
            rank=self.rank.index,
            world_size=self.rank.world_size,
        )
        with closing(batches):
            yield from enumerate(batches, start + 1)

    def _train_update(self, update: int, batch: Batch) -> None:
        """One step of the optimizer on one monolingual batch; `update` counts from 1."""
        torch.manual_seed(_seed(self.options.seed, self.rank.index, update))
        language = batch["language"]
        set_position(self.model, self._position(update) + (_TRAINED if self.options.init_from else 0.0))
        self.parallel.train()
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate_at(update)
        loss = self._forward_backward(batch, update)
        self.scaler.unscale_(self.optimizer)
        self.optimizer.activate(self.trainable, language)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self._record(batch, loss)
        self.average.update(self.model, update)
        if self.pruner is not None:
            self.pruner.after_update(update)

    def _position(self, update: int) -> float:
        """Where the schedules of the regularisers stand, in batches of `ref_duration`; it moves every 10 updates."""
        updates_before = (update - 1) // 10 * 10
        return updates_before * self.config.data.max_duration * self.rank.world_size / self.options.ref_duration

    def _forward_backward(self, batch: Batch, update: int) -> dict[str, Tensor]:
        loss = self._losses(batch, self.parallel, update)
        # Every rank divides by the mean number of tokens of a rank, so that the averaged gradient is that of the mean
        # loss per token of the whole step, however the utterances fell to the ranks.
        tokens = self.rank.sum(torch.tensor(float(batch["num_tokens"]), device=self.rank.device)) / self.rank.world_size
        if self.gradients is not None:
            self.gradients.scale = self.scaler.get_scale()
        self.scaler.scale(loss["loss"] / tokens).backward()
        return loss

    def _losses(self, batch: Batch, module: nn.Module, update: int) -> dict[str, Tensor]:
        """Sums over the batch: the losses and their weighted sum."""
        options = self.options
        supervisions = batch["supervisions"]
        y, y_lens = self._targets(batch)
        with self.autocast:
            losses: TransducerLoss = module(
                batch["language"],
                batch["inputs"].to(self.rank.device),
                supervisions["num_frames"].to(self.rank.device),
                y.to(self.rank.device),
                y_lens.to(self.rank.device),
                prune_range=options.prune_range,
                am_scale=options.am_scale,
                lm_scale=options.lm_scale,
            )
        simple_scale, pruned_scale = loss_scales(update, options.warm_updates, options.simple_loss_scale)
        total = simple_scale * losses.simple + pruned_scale * losses.pruned
        named = {"simple_loss": losses.simple, "pruned_loss": losses.pruned}
        if losses.ctc is not None:
            total = total + options.ctc_loss_scale * losses.ctc
            named["ctc_loss"] = losses.ctc
        return {"loss": total} | named

    def _targets(self, batch: Batch) -> tuple[Tensor, Tensor]:
        tokens = self.tokenizer.encode(batch["supervisions"]["text"])
        y = nn.utils.rnn.pad_sequence([torch.tensor(t, dtype=torch.int64) for t in tokens], batch_first=True)
        y_lens = torch.tensor([len(t) for t in tokens])
        batch["num_tokens"] = int(y_lens.sum())
        return y, y_lens

    def _record(self, batch: Batch, losses: dict[str, Tensor]) -> None:
        seconds = 0.01 * float(batch["supervisions"]["num_frames"].sum())
        self.sums.add(batch["language"], losses, batch["num_tokens"], seconds)

    def _between_updates(self, update: int, log: MetricsLog) -> None:
        options, last = self.options, update == self.num_updates
        if update % options.log_interval == 0 or last:
            self._log_training(update, log)
        if update % options.valid_interval == 0 or last:
            self._validate(update, log)
        if update % options.save_every_n == 0 or last:
            self._save(checkpoints.batch_path(options.exp_dir, update), update)
            self._drop_old_checkpoints()
        if update % self.updates_per_epoch == 0:
            self._save(checkpoints.epoch_path(options.exp_dir, update // self.updates_per_epoch), update)

    def _log_training(self, update: int, log: MetricsLog) -> None:
        lr = self._learning_rate_at(update)
        for language, values in self.sums.flush(self.rank).items():
            if values["loss"] != values["loss"] or values["loss"] == float("inf"):
                raise ValueError(
                    f"the loss of {language} is {values['loss']} by update {update}: lower --base-lr, or look for a "
                    f"bad cut; the newest checkpoint in {self.options.exp_dir} is from before"
                )
            sparsity = {} if self.masks is None else {"sparsity": self.masks.sparsity(language)}
            log.write("train", update, language, values | {"lr": lr, "epoch": self.epoch_of(update)} | sparsity)

    @torch.no_grad()
    def _validate(self, update: int, log: MetricsLog) -> None:
        """Losses on the dev set of each language, through its sub-network."""
        self.parallel.eval()
        sums = LossSums([language.code for language in self.data.languages], self.rank.device)
        for language in self.data.languages:
            loader = self.data.loader(language.code, "dev")
            hidden = not self.rank.is_main or bar_position() is not None
            bar = tqdm(loader, desc=f"validating {language.code}", leave=False, disable=hidden)
            for i, batch in enumerate(bar):
                if i % self.rank.world_size != self.rank.index:
                    continue
                losses = self._losses(batch, self.pathways, self.options.warm_updates)
                sums.add(
                    language.code, losses, batch["num_tokens"], 0.01 * float(batch["supervisions"]["num_frames"].sum())
                )
        figures = sums.flush(self.rank)
        for code, values in figures.items():
            log.write("valid", update, code, values)
        mean = sum(values["loss"] for values in figures.values()) / len(figures)
        if mean < self.best_valid_loss:
            self.best_valid_loss = mean
            self._save(self.options.exp_dir / "best-valid-loss.pt", update)

    def epoch_of(self, update: int) -> int:
        """The epoch, from 1, that an update belongs to."""
        return (max(update, 1) - 1) // self.updates_per_epoch + 1

    def _save(self, path: Any, update: int) -> None:
        if self.gradients is not None:
            self.gradients.gather(keep=self.rank.is_main)
        if not self.rank.is_main:
            return
        checkpoint = {
            "model": self.model.state_dict(),
            "model_avg": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict()["state"],
            "scaler": self.scaler.state_dict(),
            "regularisers": regulariser_state(self.model),
            "masks": {} if self.masks is None else self.masks.codes,
            "masks_header": {} if self.masks is None else asdict(self.masks.header),
            "gradients": {} if self.gradients is None else self.gradients.state_dict(),
            "update": update,
            "epoch": self.epoch_of(update),
            "best_valid_loss": self.best_valid_loss,
            "world_size": self.rank.world_size,
            "vocab_size": self.tokenizer.vocab_size,
            "config": to_dict(self.config),
        }
        checkpoints.save(checkpoint, path)

    def _drop_old_checkpoints(self) -> None:
        if self.rank.is_main:
            for path in checkpoints.batch_checkpoints(self.options.exp_dir)[: -self.options.keep_last_k]:
                if path != checkpoints.batch_path(self.options.exp_dir, 0):  # what rewinding goes back to
                    path.unlink()

    def _resume(self) -> int:
        """Take over the newest checkpoint, or the one that the options name; returns its update number."""
        options = self.options
        if options.start_batch:
            checkpoint = checkpoints.read(checkpoints.batch_path(options.exp_dir, options.start_batch))
        elif options.start_epoch > 1:
            checkpoint = checkpoints.read(checkpoints.epoch_path(options.exp_dir, options.start_epoch - 1))
        else:
            found = checkpoints.newest(options.exp_dir)
            if found is None:
                return 0
            checkpoint = found[1]
        self._check_same_run(checkpoint)
        self.model.load_state_dict(checkpoint["model"])
        self.average.load_state_dict(checkpoint["model_avg"])
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": checkpoint["optimizer"], "param_groups": groups})
        self.scaler.load_state_dict(checkpoint["scaler"])
        load_regulariser_state(self.model, checkpoint.get("regularisers", {}))
        if self.masks is not None:
            for name, code in checkpoint["masks"].items():
                self.masks.codes[name].copy_(code)
        if self.gradients is not None:
            self.gradients.load_state_dict(checkpoint["gradients"], self.rank.device, keep=self.rank.is_main)
        self.best_valid_loss = checkpoint["best_valid_loss"]
        logger.info("going on after update %d", checkpoint["update"])
        return checkpoint["update"]

    def _check_same_run(self, checkpoint: checkpoints.Checkpoint) -> None:
        """What decides the course of a run must not change when it is resumed."""
        here = {
            "world_size": self.rank.world_size,
            "vocab_size": self.tokenizer.vocab_size,
            "masked": self.masks is not None,
            "optimizer": self.options.optimizer,
            "freeze_languages": self.options.freeze_languages,
        }
        there = {
            "world_size": checkpoint["world_size"],
            "vocab_size": checkpoint["vocab_size"],
            "masked": bool(checkpoint["masks"]),
            "optimizer": checkpoint["config"]["training"].get("optimizer", "adamw"),
            "freeze_languages": checkpoint["config"]["training"].get("freeze_languages", ""),
        }
        for key, value in here.items():
            if there[key] != value:
                raise checkpoints.CheckpointError(
                    f"{self.options.exp_dir} holds a run with {key}={there[key]}, this one has {key}={value}: "
                    "use the same options, or another --exp-dir"
                )

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
        devices = [self.rank.device] if self.rank.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(
            module, device_ids=devices, find_unused_parameters=not self.model.encoder.always_uses_all
        )


def _seed(seed: int, rank: int, update: int) -> int:
    """Seeds that differ for all ranks and updates of a run."""
    return (seed * 1_000_003 + rank) * 10_000_019 + update
