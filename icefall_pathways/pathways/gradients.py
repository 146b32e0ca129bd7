"""Running second moment of each language's gradient, for every entry including pruned ones."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


class LanguageGradients:
    """Running mean, per language, of the squared gradient of the loss with respect to `mask * weight`.

    `activate` computes this product in any case, so its gradient is available for every entry at no extra cost, while
    the gradient of the stored weight is zero outside the mask. Only batches of a language update its mean. With several
    ranks, each rank holds the contribution of its own batches.

    Memory: four bytes per prunable entry and language.

    Args:
      decay: The mean covers about 1 / (1 - decay) batches of the language.
      all_reduce_sum: Replaces a tensor by its sum over all ranks in place, and returns it.

    Attributes:
      scale: The factor of the loss scaler, by which gradients are divided: 0-dim, on the gradients' device.
    """

    def __init__(self, decay: float = 0.95, all_reduce_sum: Callable[[Tensor], Tensor] = lambda tensor: tensor) -> None:
        self.scale: Tensor | float = 1.0
        self._decay = decay
        self._all_reduce_sum = all_reduce_sum
        self._squares: dict[str, dict[str, Tensor]] = {}

    @torch.no_grad()
    def add(self, language: str, name: str, gradient: Tensor) -> None:
        """Add the gradient of parameter `name` for one batch; overflowed values count as zero."""
        square = torch.nan_to_num_((gradient.float() / self.scale).square_(), nan=0.0, posinf=0.0)
        squares = self._squares.setdefault(language, {})
        if name not in squares:
            squares[name] = torch.zeros_like(square)
        squares[name].lerp_(square, 1 - self._decay)

    def mean_square(self, languages: Sequence[str]) -> dict[str, Tensor]:
        """Return the mean over several languages, up to a common factor; empty before their first batch.

        All ranks must call this together; the result is the same on all.
        """
        by_language = [self._squares[language] for language in languages if language in self._squares]
        names = sorted(by_language[0]) if by_language else []
        return {
            name: self._all_reduce_sum(torch.stack([squares[name] for squares in by_language]).sum(dim=0))
            for name in names
        }

    @torch.no_grad()
    def reduce(self, is_main: bool) -> None:
        """Sum the contributions of all ranks on the main rank, and reset the other ranks to zero.

        All ranks must call this together. Up to rounding, later results do not change.
        """
        for _, squares in sorted(self._squares.items()):
            for _, square in sorted(squares.items()):
                self._all_reduce_sum(square)
                if not is_main:
                    square.zero_()

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """Return the means by language and parameter name."""
        return self._squares

    def load_state_dict(self, state: dict[str, dict[str, Tensor]], device: torch.device, is_main: bool) -> None:
        """Load the means of a checkpoint on the main rank; the other ranks start from zero."""
        self._squares = {
            language: {
                name: square.to(device, copy=True) if is_main else torch.zeros_like(square, device=device)
                for name, square in squares.items()
            }
            for language, squares in state.items()
        }
