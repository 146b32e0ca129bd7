"""The training objective: a weighted sum of the transducer losses."""

from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from icefall_pathways.data.batch import Batch
from icefall_pathways.models.losses import loss_scales
from icefall_pathways.models.transducer import TransducerLoss
from icefall_pathways.training.config import TrainingConfig


class Objective:
    """Compute the losses of batches.

    Args:
      options: Scales, warm-up and precision.
      device: The device of the model.

    Raises:
      ValueError: The options request float16 on a CPU.
    """

    def __init__(self, options: TrainingConfig, device: torch.device) -> None:
        if options.use_fp16 and device.type == "cpu":
            raise ValueError("--use-fp16 needs CUDA, and there is no CUDA device: use --use-bf16 1, or full precision")
        self._options = options
        self._device = device

    def __call__(self, batch: Batch, module: nn.Module, update: int) -> dict[str, Tensor]:
        """Return the losses of a batch by name, summed over its tokens, 0-dim; `loss` is their weighted sum.

        Args:
          batch: With its tokens.
          module: The model, or a DDP module around it; its forward takes the language first.
          update: The update, from 1, which determines the loss scales during the warm-up.
        """
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
                rnnt_loss=options.rnnt_loss,
            )
        simple_scale, pruned_scale = loss_scales(update, options.warm_updates, options.simple_loss_scale)
        total = simple_scale * losses.simple + pruned_scale * losses.pruned
        named = {"simple_loss": losses.simple, "pruned_loss": losses.pruned}
        if losses.ctc is not None:
            total = total + options.ctc_loss_scale * losses.ctc
            named["ctc_loss"] = losses.ctc
        return {"loss": total} | named

    def autocast(self) -> AbstractContextManager[None]:
        """Return the context for the precision of the forward pass."""
        options = self._options
        dtype = torch.float16 if options.use_fp16 else torch.bfloat16
        context: AbstractContextManager[None] = torch.autocast(
            self._device.type, dtype=dtype, enabled=options.use_fp16 or options.use_bf16
        )
        return context
