"""What is minimised: the transducer's losses of a batch."""

from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from icefall_pathways.data.batch import Batch
from icefall_pathways.models.losses import loss_scales
from icefall_pathways.models.transducer import TransducerLoss
from icefall_pathways.training.config import TrainingConfig


class Objective:
    """Computes the losses of batches.

    Args:
      options: Scales, warm-up and precision.
      device: Where the model is.

    Raises:
      ValueError: float16 is asked for on a CPU.
    """

    def __init__(self, options: TrainingConfig, device: torch.device) -> None:
        if options.use_fp16 and device.type == "cpu":
            raise ValueError("--use-fp16 needs CUDA, and no device was found: use --use-bf16 1, or neither, on a CPU")
        self._options = options
        self._device = device

    def __call__(self, batch: Batch, module: nn.Module, update: int) -> dict[str, Tensor]:
        """Sums over a batch: the losses, and as `loss` their weighted sum."""
        options, batch = self._options, batch.to(self._device)
        with self.autocast():
            losses: TransducerLoss = module(
                batch.language,
                batch.inputs,
                batch.num_frames,
                batch.tokens,
                batch.num_tokens,
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

    def autocast(self) -> AbstractContextManager[None]:
        """The precision that the model computes in."""
        options = self._options
        dtype = torch.float16 if options.use_fp16 else torch.bfloat16
        context: AbstractContextManager[None] = torch.autocast(
            self._device.type, dtype=dtype, enabled=options.use_fp16 or options.use_bf16
        )
        return context


def seconds_of(batch: Batch) -> float:
    """Seconds of audio in a batch."""
    return 0.01 * float(batch.num_frames.sum())
