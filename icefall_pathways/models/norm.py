"""Layer normalization that runs under autocast on every device."""

from torch import Tensor, nn


class LayerNorm(nn.LayerNorm):
    """`torch.nn.LayerNorm`, computed in the dtype of its weights.

    Autocast does this on CUDA; on the CPU, older versions of torch reject an input of another dtype.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalize (..., D)."""
        return super().forward(x.to(self.weight.dtype))
