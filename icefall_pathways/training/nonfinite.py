"""Non-finite losses and gradients: skip the update on all ranks, and save the batch for inspection."""

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from icefall_pathways import torch_compat
from icefall_pathways.data.batch import Batch
from icefall_pathways.data.loading import is_worker_death
from icefall_pathways.experiment import layout
from icefall_pathways.files import atomic_write
from icefall_pathways.launch.ranks import Rank

logger = logging.getLogger("icefall_pathways")

_MAX_SAVED_BATCHES = 20  # per process, so that a diverging run does not fill the disk


class BadBatchesError(ValueError):
    """More consecutive updates were skipped than --max-bad-batches allows."""


class NonFiniteGuard:
    """Decide which updates to skip, report the reason, and save what is needed to inspect it.

    A non-finite loss is replaced by NaN (`nan_if_not_finite`). The all-reduce of the gradients distributes it to all
    ranks, so every rank makes the same decision from its own gradient norm, without further communication.

    Args:
      model: Saved as bad-model-<rank>.pt when training stops.
      exp_dir: Folder of that file and of batch-<uuid>.pt.
      max_consecutive: Number of consecutive skipped updates that is tolerated.
      rank: This process.
    """

    def __init__(self, model: nn.Module, exp_dir: Path, max_consecutive: int, rank: Rank) -> None:
        self._model = model
        self._exp_dir = exp_dir
        self._max_consecutive = max_consecutive
        self._rank = rank
        self._num_consecutive = 0
        self._num_saved = 0

    def should_step(
        self,
        update: int,
        batches: Sequence[Batch],
        losses: Sequence[Tensor],
        finite: bool,
        loss_scale: Callable[[], float],
    ) -> bool:
        """Return whether the optimizer may step; report and save the batches otherwise.

        Args:
          update: The update, from 1.
          batches: The batches of this rank.
          losses: The loss of each batch, 0-dim.
          finite: Whether the gradient norm is finite, the same on all ranks.
          loss_scale: Returns the factor of the loss scaler. While it is above 1, the scaler handles an overflow of the
            gradient by lowering it.

        Raises:
          BadBatchesError: Too many consecutive updates were skipped.
        """
        if finite:
            self._num_consecutive = 0
            return True
        suspects = [batch for batch, loss in zip(batches, losses, strict=True) if not bool(torch.isfinite(loss))]
        descriptions = self._rank.gather([_describe(batch) for batch in suspects])
        if not any(descriptions):
            if loss_scale() > 1:
                logger.info("update %d skipped: the loss scale %g is too large", update, loss_scale())
                return False
            suspects = list(batches)
            descriptions = self._rank.gather([_describe(batch) for batch in suspects])
        self._num_consecutive += 1
        self._report(update, suspects, descriptions)
        if self._num_consecutive > self._max_consecutive:
            self._stop(update)
        return False

    @contextmanager
    def save_on_exception(self, batches: Sequence[Batch]) -> Iterator[None]:
        """Save the batches and the model if an exception is raised inside, and re-raise it."""
        try:
            yield
        except BadBatchesError:
            raise
        except Exception as error:
            if not is_worker_death(error):  # a worker can die during any update: the batch is not the cause
                self._dump(batches)
            raise

    def _dump(self, batches: Sequence[Batch]) -> None:
        try:
            for batch in batches:
                path = self._save(batch)
                logger.error("stopped in a batch of %s%s", _describe(batch), f", saved as {path}" if path else "")
            self._save_model()
        except Exception as error:  # such as a full disk or a failed GPU: the first error is the one to report
            logger.error("cannot save the batch and the model: %s", error)

    def _report(self, update: int, suspects: Sequence[Batch], descriptions: list[list[str]]) -> None:
        names = "; ".join(
            f"rank {rank}: {description}" if self._rank.world_size > 1 else description
            for rank, rank_descriptions in enumerate(descriptions)
            for description in rank_descriptions
        )
        message = f"update {update} skipped: the loss or its gradient is not finite. {names}"
        for batch in suspects:
            if path := self._save(batch):
                logger.warning("update %d: batch saved as %s", update, path)
        logger.warning(message)
        if self._rank.is_main:
            tqdm.write(f"warning: {message}")

    def _save(self, batch: Batch) -> Path | None:
        if self._num_saved == _MAX_SAVED_BATCHES:
            return None
        self._num_saved += 1
        path = layout.new_bad_batch_file(self._exp_dir)
        save_batch(batch, path)
        return path

    def _save_model(self) -> None:
        with atomic_write(layout.bad_model_file(self._exp_dir, self._rank.index)) as temporary:
            torch_compat.save({"model": self._model.state_dict()}, temporary)

    def _stop(self, update: int) -> None:
        self._save_model()
        raise BadBatchesError(
            f"{self._num_consecutive} consecutive updates, up to update {update}, had a loss or gradient that is not "
            f"finite: the batches and the model are in {self._exp_dir} (batch-*.pt, bad-model-*.pt). Lower --base-lr, "
            "use --use-fp16 0, or check the cuts named in the log; --max-bad-batches sets how many are tolerated"
        )


def nan_if_not_finite(loss: Tensor) -> Tensor:
    """Return `loss`, or NaN if it is not finite.

    The gradients of NaN are non-finite on every rank after the all-reduce. The value is read on the device only: the
    host does not wait for it.
    """
    return loss * (loss.detach() * 0 + 1)


@torch.no_grad()
def gradient_norm(model: nn.Module) -> Tensor:
    """Return the norm of all gradients of `model`, 0-dim; it is non-finite if any gradient is.

    Raises:
      ValueError: No parameter has a gradient.
    """
    norms = [torch.linalg.vector_norm(p.grad.float()) for p in model.parameters() if p.grad is not None]
    if not norms:
        raise ValueError("no parameter has a gradient: the loss does not depend on any trainable parameter")
    return torch.linalg.vector_norm(torch.stack(norms))


def save_batch(batch: Batch, path: Path) -> None:
    """Write a batch as tensors and one JSON string, so that torch.load can read it with weights_only=True."""
    plain = {"language": batch.language, "cuts": batch.cut_ids, "text": batch.texts}
    with atomic_write(path) as temporary:
        torch_compat.save(
            {"inputs": batch.inputs, "num_frames": batch.num_frames, "plain": json.dumps(plain)}, temporary
        )


def read_batch(path: Path) -> dict[str, Any]:
    """Read a file written by `save_batch`.

    Returns:
      `inputs` (N, T, F), `num_frames` (N,), `language`, and lists of N `cuts` (ids) and `text`.
    """
    stored = torch.load(path, map_location="cpu", weights_only=True)
    plain = json.loads(stored.pop("plain"))
    return {**stored, **plain}


def _describe(batch: Batch) -> str:
    """Return the language and the cut ids of a batch, and the ids of cuts with non-finite features."""
    ids = batch.cut_ids
    finite = torch.isfinite(batch.inputs).flatten(1).all(dim=1).tolist()
    bad = [cut_id for cut_id, is_finite in zip(ids, finite, strict=True) if not is_finite]
    description = f"{batch.language} cuts {', '.join(ids)}"
    return f"{description} (features not finite: {', '.join(bad)})" if bad else description
