"""Layer normalisation that runs under autocast on every device."""

from torch import Tensor, nn


class LayerNorm(nn.LayerNorm):
    """`torch.nn.LayerNorm`, computed in its weights' type.

    Autocast does so on CUDA; on the CPU older versions of torch refuse an input of another type instead.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (..., D)."""
        return super().forward(x.to(self.weight.dtype))
