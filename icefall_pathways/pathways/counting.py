"""Count the bits of mask codes."""

from collections.abc import Iterable

import torch
from torch import Tensor

_CHUNK = 1 << 18  # entries per step, which bounds the temporary memory
_BITS = torch.arange(256).unsqueeze(1) >> torch.arange(8) & 1  # (256, 8): the bits of each byte


def joint_counts(codes: Iterable[Tensor], num_languages: int) -> Tensor:
    """Count the entries that each pair of languages uses, in one pass over the codes.

    The counts follow from histograms of the bytes of the codes (of pairs of bytes for more than 8 languages).

    Args:
      codes: Integers of any shapes, bit i for language i.
      num_languages: The number of bits in use; the others are clear.

    Returns:
      (languages, languages), int64, symmetric; the diagonal holds the count of each language.
    """
    num_bytes = -(-num_languages // 8)
    histograms: dict[tuple[int, int], Tensor] = {}
    for code in codes:
        for chunk in code.flatten().split(_CHUNK):
            planes = [_byte(chunk, index) for index in range(num_bytes)]
            for a in range(num_bytes):
                _add(histograms, (a, a), torch.bincount(planes[a], minlength=256).diag())
                for b in range(a + 1, num_bytes):
                    pairs = planes[a].int().mul_(256).add_(planes[b])
                    _add(histograms, (a, b), torch.bincount(pairs, minlength=256 * 256).view(256, 256))
    return _bit_counts(histograms, num_bytes)[:num_languages, :num_languages]


def sharing_counts(codes: Iterable[Tensor], num_languages: int) -> Tensor:
    """Count the entries by the number of languages that use them: (languages + 1,), int64."""
    bits_set = _BITS.sum(1).to(torch.uint8)
    counts = torch.zeros(num_languages + 1, dtype=torch.int64, device="cpu")
    for code in codes:
        table = bits_set.to(code.device)
        for chunk in code.flatten().split(_CHUNK):
            users = sum(table[_byte(chunk, index).long()] for index in range(-(-num_languages // 8)))
            assert isinstance(users, Tensor)
            counts += torch.bincount(users, minlength=num_languages + 1).cpu()
    return counts


def _byte(chunk: Tensor, index: int) -> Tensor:
    return chunk if chunk.dtype == torch.uint8 else (chunk >> (8 * index) & 255).to(torch.uint8)


def _add(histograms: dict[tuple[int, int], Tensor], pair: tuple[int, int], counts: Tensor) -> None:
    histograms[pair] = histograms[pair] + counts if pair in histograms else counts


def _bit_counts(histograms: dict[tuple[int, int], Tensor], num_bytes: int) -> Tensor:
    """Return the joint counts of all pairs of bits from the joint histograms of pairs of bytes."""
    # Integers are exact in float64, which every device can multiply as matrices.
    bits = _BITS.double()
    joint = torch.zeros(8 * num_bytes, 8 * num_bytes, dtype=torch.int64, device="cpu")
    for (a, b), counts in histograms.items():
        block = (bits.T @ counts.cpu().double() @ bits).long()
        joint[8 * a : 8 * a + 8, 8 * b : 8 * b + 8] = block
        joint[8 * b : 8 * b + 8, 8 * a : 8 * a + 8] = block.T
    return joint
