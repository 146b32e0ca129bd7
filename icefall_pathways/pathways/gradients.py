"""What each language's loss says about every entry, those outside its mask included."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


class LanguageGradients:
    """The running mean, per language, of the squared gradient of its loss at the weights it runs through.

    The gradient is that of the product `mask * weight`, which `activate` makes anyway: it is there for every entry, at
    no cost, while the gradient of the stored weight is zero outside the mask. A language's mean moves with its own
    batches only. With several ranks, each holds the share of its own batches.

    It takes four bytes per prunable entry and language.

    Args:
      decay: The mean is over about 1 / (1 - decay) batches of the language.
      all_reduce_sum: Replaces a tensor by its sum over the ranks, and returns it.

    Attributes:
      scale: The gradients are so many times too large: the loss scaler's factor, 0-dim, where the gradients are.
    """

    def __init__(self, decay: float = 0.95, all_reduce_sum: Callable[[Tensor], Tensor] = lambda tensor: tensor) -> None:
        self.scale: Tensor | float = 1.0
        self._decay = decay
        self._all_reduce_sum = all_reduce_sum
        self._squares: dict[str, dict[str, Tensor]] = {}

    @torch.no_grad()
    def add(self, language: str, name: str, gradient: Tensor) -> None:
        """Take in the gradient of parameter `name` on one batch; what has overflowed counts as zero."""
        square = torch.nan_to_num_((gradient.float() / self.scale).square_(), nan=0.0, posinf=0.0)
        squares = self._squares.setdefault(language, {})
        if name not in squares:
            squares[name] = torch.zeros_like(square)
        squares[name].lerp_(square, 1 - self._decay)

    def mean_square(self, languages: Sequence[str]) -> dict[str, Tensor]:
        """The means of several languages together, up to a common factor; empty if none has had a batch yet.

        All ranks must call this together, and get the same.
        """
        found = [self._squares[language] for language in languages if language in self._squares]
        names = sorted(found[0]) if found else []
        return {
            name: self._all_reduce_sum(torch.stack([squares[name] for squares in found]).sum(dim=0)) for name in names
        }

    @torch.no_grad()
    def reduce(self, keep: bool) -> None:
        """Bring the shares of all ranks together on the one that is told to `keep` them; the others start anew.

        All ranks must call this together. What follows is the same, up to rounding, as without it.
        """
        for _, squares in sorted(self._squares.items()):
            for _, square in sorted(squares.items()):
                self._all_reduce_sum(square)
                if not keep:
                    square.zero_()

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """The means by language and name."""
        return self._squares

    def load_state_dict(self, state: dict[str, dict[str, Tensor]], device: torch.device, keep: bool) -> None:
        """Go on from the means in a checkpoint, on the rank that keeps them."""
        self._squares = {
            language: {
                name: square.to(device, copy=True) if keep else torch.zeros_like(square, device=device)
                for name, square in squares.items()
            }
            for language, squares in state.items()
        }
