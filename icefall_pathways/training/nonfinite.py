"""Bad batches: a loss or gradient that is not finite skips the update on all ranks, and the batch is kept for study."""

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from icefall_pathways.data.batch import Batch
from icefall_pathways.data.loading import is_worker_death
from icefall_pathways.experiment import layout
from icefall_pathways.files import atomic_write
from icefall_pathways.models.regularizers import pending_whiteners
from icefall_pathways.training.launch.ranks import Rank

logger = logging.getLogger("icefall_pathways")

_MOST_SAVED = 20  # batches that one process saves: a run that goes wrong must not fill the disk


class BadBatchesError(ValueError):
    """More updates in a row had to be skipped than --max-bad-batches allows."""


class BatchGuard:
    """Decides which updates are skipped, tells why, and keeps what it takes to look into it.

    A loss that is not finite is given gradients that are not finite (`poisoned`). What DDP does with gradients brings
    them to all ranks, so that every rank comes to the same decision from its own norm: no further communication.

    Args:
      model: Saved as bad-model-<rank>.pt when training stops.
      exp_dir: Where that and batch-<uuid>.pt go.
      most_in_a_row: Skipped updates in a row that are put up with.
      rank: Which process this is.
    """

    def __init__(self, model: nn.Module, exp_dir: Path, most_in_a_row: int, rank: Rank) -> None:
        self._model = model
        self._exp_dir = exp_dir
        self._most_in_a_row = most_in_a_row
        self._rank = rank
        self._in_a_row = 0
        self._saved = 0
        self.skipped = 0

    def passes(
        self, update: int, batches: Sequence[Batch], losses: Sequence[Tensor], finite: bool, scale: Callable[[], float]
    ) -> bool:
        """Whether the update can be done.

        Args:
          update: Its number.
          batches: This rank's batches.
          losses: The loss of each.
          finite: Whether the norm of the gradient is, which is the same on all ranks.
          scale: Tells what the loss scaler multiplied losses by; while that is above 1, a gradient that overflows is
            the scaler's to deal with.

        Raises:
          BadBatchesError: One too many in a row.
        """
        if finite:
            self._in_a_row = 0
            return True
        self.skipped += 1
        suspects = [batch for batch, loss in zip(batches, losses, strict=True) if not bool(torch.isfinite(loss))]
        all_found = self._rank.gather([_describe(batch) for batch in suspects])
        if not any(all_found):
            if scale() > 1:
                logger.info("update %d skipped: the loss scaler's %g is too large", update, scale())
                return False
            suspects = list(batches)
            all_found = self._rank.gather([_describe(batch) for batch in suspects])
        self._in_a_row += 1
        self._tell(update, suspects, all_found)
        if self._in_a_row > self._most_in_a_row:
            self._stop(update)
        return False

    @contextmanager
    def keeps_evidence(self, batches: Sequence[Batch]) -> Iterator[None]:
        """After an exception inside, save the batches and the model before it goes on."""
        try:
            yield
        except BadBatchesError:
            raise
        except Exception as error:
            if not is_worker_death(error):  # which may come at any time and is no fault of the batch
                self._keep(batches)
            raise

    def _keep(self, batches: Sequence[Batch]) -> None:
        try:
            for batch in batches:
                path = self._save(batch)
                logger.error("stopped in a batch of %s%s", _describe(batch), f", saved as {path}" if path else "")
            self._save_model()
        except Exception as error:  # such as a full disk, or a GPU that has failed: the first error is the one to tell
            logger.error("cannot save the batch and the model: %s", error)

    def _tell(self, update: int, suspects: Sequence[Batch], all_found: list[list[str]]) -> None:
        names = "; ".join(
            f"rank {rank}: {described}" if self._rank.world_size > 1 else described
            for rank, found in enumerate(all_found)
            for described in found
        )
        message = f"update {update} skipped: the loss or its gradient is not finite. {names}"
        for batch in suspects:
            if path := self._save(batch):
                logger.warning("update %d: batch saved as %s", update, path)
        logger.warning(message)
        if self._rank.is_main:
            tqdm.write(f"warning: {message}")

    def _save(self, batch: Batch) -> Path | None:
        if self._saved == _MOST_SAVED:
            return None
        self._saved += 1
        path = layout.new_bad_batch_file(self._exp_dir)
        save_batch(batch, path)
        return path

    def _save_model(self) -> None:
        with atomic_write(layout.bad_model_file(self._exp_dir, self._rank.index)) as temporary:
            torch.save({"model": self._model.state_dict()}, temporary)

    def _stop(self, update: int) -> None:
        self._save_model()
        raise BadBatchesError(
            f"{self._in_a_row} updates in a row, up to update {update}, had a loss or gradient that is not finite: the "
            f"batches and the model are in {self._exp_dir} (batch-*.pt, bad-model-*.pt). Lower --base-lr, use "
            "--use-fp16 0, or look for bad cuts among those named in the log; --max-bad-batches sets how many are "
            "put up with"
        )


def poisoned(loss: Tensor) -> Tensor:
    """`loss` with its gradients if it is finite, else with gradients that are not finite either."""
    return loss * (loss.detach() * 0 + 1)


@torch.no_grad()
def gradient_norm(model: nn.Module) -> Tensor:
    """The norm of all gradients of `model`, 0-dim; not finite if any of them is not."""
    norms = [torch.linalg.vector_norm(p.grad.float()) for p in model.parameters() if p.grad is not None]
    if not norms:
        raise ValueError("no parameter has a gradient: the loss does not depend on any that can be trained")
    return torch.linalg.vector_norm(torch.stack(norms))


def read_flags(model: nn.Module, *flags: Tensor) -> list[bool]:
    """What the host must know of an update, read at once: the one time in an update that waits for the device.

    Once is needed. A skipped update leaves no trace, so the optimizer's counts, which the host keeps, must not go on
    before it is known, nor must the next batch take the place of one that has to be named and saved. By then all of
    the backward pass is on its way to the device: nothing but the optimizer's step begins late.

    Args:
      model: Its whiteners learn what they have found, which is read with the flags.
      flags: 0-dim bool tensors.

    Returns:
      The flags.
    """
    found = pending_whiteners(model)
    values: list[bool] = torch.stack([*flags, *found.values()]).tolist()
    for whitener, acted in zip(found, values[len(flags) :], strict=True):
        whitener.update_probability(acted)
    return values[: len(flags)]


def save_batch(batch: Batch, path: Path) -> None:
    """Write a batch as tensors and one JSON string, which torch.load reads with weights_only=True."""
    plain = {"language": batch.language, "cuts": batch.cut_ids, "text": batch.texts}
    with atomic_write(path) as temporary:
        torch.save({"inputs": batch.inputs, "num_frames": batch.num_frames, "plain": json.dumps(plain)}, temporary)


def read_batch(path: Path) -> dict[str, Any]:
    """What `save_batch` wrote: inputs (N, T, 80), num_frames (N,), language, and the cuts and texts as lists of N."""
    stored = torch.load(path, map_location="cpu", weights_only=True)
    plain = json.loads(stored.pop("plain"))
    return {**stored, **plain}


def _describe(batch: Batch) -> str:
    """The language and the cuts of a batch, and among them those whose features are to blame."""
    ids = batch.cut_ids
    finite = torch.isfinite(batch.inputs).flatten(1).all(dim=1).tolist()
    bad = [cut_id for cut_id, is_finite in zip(ids, finite, strict=True) if not is_finite]
    told = f"{batch.language} cuts {', '.join(ids)}"
    return f"{told} (features not finite: {', '.join(bad)})" if bad else told
