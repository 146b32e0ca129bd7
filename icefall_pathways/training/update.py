"""One optimizer update: forward and backward passes, gradient synchronization, non-finite check, optimizer step."""

import signal
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn

from icefall_pathways.data.batch import Batch
from icefall_pathways.launch.ranks import Rank
from icefall_pathways.models.regularizers import Whiten, pending_whiteners, set_position
from icefall_pathways.pathways.activation import PathwayModule
from icefall_pathways.training.callbacks import CallbackList, UpdateResult
from icefall_pathways.training.config import ExperimentConfig
from icefall_pathways.training.nonfinite import NonFiniteGuard, gradient_norm, nan_if_not_finite
from icefall_pathways.training.objective import Objective
from icefall_pathways.training.train_state import TrainState, batch_seed

# Position of the schedules of the regularizers for weights that are trained already: after the end of all of them.
_TRAINED_POSITION = 100_000.0


class Update:
    """Run one optimizer update on `accum_grad` batches of each rank.

    Args:
      config: The options of the run.
      state: Changed by each update.
      rank: This process.
      callbacks: Their `on_backward_end` is called.

    Attributes:
      objective: Computes the losses.
      pathways: The model with its masks.
      ddp_model: `pathways`, wrapped in DistributedDataParallel if there are several ranks.
      guard: Decides whether to skip the optimizer step after a non-finite loss or gradient.

    Raises:
      ValueError: The options request float16 on a CPU.
    """

    def __init__(self, config: ExperimentConfig, state: TrainState, rank: Rank, callbacks: CallbackList) -> None:
        options = config.training
        self.state = state
        self.objective = Objective(options, rank.device)
        self.pathways = PathwayModule(state.model, state.masks, state.gradients.add if state.gradients else None)
        uses_all = state.model.encoder.uses_all_parameters and not config.model.language_input
        self.ddp_model = _data_parallel(self.pathways, uses_all, rank)
        self.guard = NonFiniteGuard(state.model, options.exp_dir, options.max_bad_batches, rank)
        self._config = config
        self._rank = rank
        self._callbacks = callbacks

    def __call__(self, batches: Sequence[Batch], stop_signal: int = 0) -> UpdateResult:
        """Run update `state.update`.

        Args:
          batches: The batches of this rank, all of one language and with their tokens.
          stop_signal: The signal that requested a stop of this rank; 0: no request. The results of all ranks report
            the request in the same update.

        Raises:
          BadBatchesError: Too many consecutive updates had a non-finite loss or gradient.
        """
        state, language = self.state, batches[0].language
        set_position(state.model, regularizer_position(self._config, state.batches_per_update, state.scaled_update))
        self.ddp_model.train()
        for group in state.optimizer.param_groups:
            group["lr"] = state.learning_rate
        losses, num_stopping = self._forward_backward(batches, stop_signal > 0)
        self._callbacks.on_backward_end(state)
        state.scaler.unscale_(state.optimizer)
        norm = gradient_norm(state.model)
        whiteners = pending_whiteners(state.model)
        finite, stopping, *active = sync_flags(torch.isfinite(norm), num_stopping > 0, *whiteners.values())
        update_whiteners(whiteners, active)
        stepped = self.guard.should_step(
            state.update, batches, [loss["loss"] for loss in losses], finite, state.scaler.get_scale
        )
        if stepped:
            state.optimizer.activate(state.trainable, language)
            state.optimizer.step()
        state.scaler.update()
        state.optimizer.zero_grad(set_to_none=True)
        state.average.update(state.model, state.update)
        # Detached, so that the graph of this update is freed before the next one.
        detached = [{name: loss.detach() for name, loss in by_name.items()} for by_name in losses]
        return UpdateResult(batches, detached, norm, stepped, (stop_signal or signal.SIGTERM) if stopping else 0)

    def _forward_backward(self, batches: Sequence[Batch], stop: bool) -> tuple[list[dict[str, Tensor]], Tensor]:
        """Return the losses of the batches, and the number of ranks with a stop request, 0-dim, on the device."""
        state, rank = self.state, self._rank
        counts = torch.tensor([sum(batch.total_tokens for batch in batches), stop], dtype=torch.float64)
        totals = rank.sum(counts.to(rank.device, non_blocking=True))
        # Each rank divides by the mean number of tokens per rank, so that the gradient averaged by DDP is the gradient
        # of the mean loss per token of the whole update, however the utterances are distributed over the ranks.
        tokens_per_rank = totals[0].float() / rank.world_size
        if state.gradients is not None:
            state.gradients.scale = state.scaler.scale(torch.ones((), device=rank.device))
        losses = []
        for i, batch in enumerate(batches):
            # The index counts over all ranks, so the random numbers of a batch do not depend on its rank.
            torch.manual_seed(batch_seed(self._config.training.seed, i * rank.world_size + rank.index, state.update))
            with self._grad_sync(is_last=i == len(batches) - 1):
                losses.append(self.objective(batch, self.ddp_model, state.update))
                state.scaler.scale(nan_if_not_finite(losses[-1]["loss"]) / tokens_per_rank).backward()
        return losses, totals[1]

    def _grad_sync(self, is_last: bool) -> AbstractContextManager[None]:
        """Synchronize the gradients of all ranks only in the backward pass of the last batch."""
        if is_last or not isinstance(self.ddp_model, nn.parallel.DistributedDataParallel):
            return nullcontext()
        no_sync: AbstractContextManager[None] = cast(Any, self.ddp_model).no_sync()  # not typed in torch 1.13.1
        return no_sync


def sync_flags(*flags: Tensor) -> list[bool]:
    """Fetch all per-update flags in one device-to-host copy, the only synchronization point of an update.

    The optimizer step has to wait for it: if an update is skipped, the step counts of the optimizer, which are on the
    host, must not advance, and the batches must be reported and saved before the next ones replace them. The whole
    backward pass is enqueued by then, so only the optimizer step starts late.

    Args:
      flags: 0-dim bool tensors.
    """
    values: list[bool] = torch.stack(flags).tolist()
    return values


def update_whiteners(whiteners: Iterable[Whiten], active: Iterable[bool]) -> None:
    """Update the probabilities of whiteners according to whether each changed its last gradient."""
    for whitener, was_active in zip(whiteners, active, strict=True):
        whitener.update_probability(was_active)


def regularizer_position(config: ExperimentConfig, batches_per_update: int, update: int) -> float:
    """Return the position of the schedules of the regularizers at an update, in batches of `ref_duration` seconds.

    It moves every 10 updates. Training that starts from trained weights is after the end of all schedules.
    """
    num_previous = (update - 1) // 10 * 10
    position = num_previous * config.data.max_duration * batches_per_update / config.training.ref_duration
    return position + (_TRAINED_POSITION if config.training.init_from else 0.0)


def _data_parallel(module: nn.Module, uses_all_parameters: bool, rank: Rank) -> nn.Module:
    if rank.world_size == 1:
        return module
    # Without device_ids: with them, DDP moves the lengths of a batch, which are read on the CPU, to the device.
    return nn.parallel.DistributedDataParallel(module, find_unused_parameters=not uses_all_parameters)
