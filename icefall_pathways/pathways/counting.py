"""Counting the bits of codes."""

from collections.abc import Iterable

import torch
from torch import Tensor

_CHUNK = 1 << 18  # entries at a time: what is made of them stays small


def joint_counts(codes: Iterable[Tensor], num_languages: int) -> Tensor:
    """How many entries each two languages both use, in one pass over the codes.

    Histograms of the bytes of codes (of each two bytes, beyond 8 languages) hold all that is to be known.

    Args:
      codes: Integers of any shapes, bit i for language i.
      num_languages: How many bits to look at; the others are clear.

    Returns:
      (languages, languages), int64, symmetric; the diagonal tells how many entries each language uses.
    """
    places = range(-(-num_languages // 8))
    histograms: dict[tuple[int, int], Tensor] = {}
    for code in codes:
        for chunk in code.flatten().split(_CHUNK):
            planes = [_byte(chunk, place) for place in places]
            for a in places:
                _add(histograms, (a, a), torch.bincount(planes[a], minlength=256).diag())
                for b in places[a + 1 :]:
                    pairs = planes[a].int().mul_(256).add_(planes[b])
                    _add(histograms, (a, b), torch.bincount(pairs, minlength=256 * 256).view(256, 256))
    return _bits_of_bytes(histograms, len(places))[:num_languages, :num_languages]


def sharing_counts(codes: Iterable[Tensor], num_languages: int) -> Tensor:
    """How many entries are used by none, by one, by two, ... of the languages: (languages + 1,), int64."""
    bits_set = (torch.arange(256).unsqueeze(1) >> torch.arange(8) & 1).sum(1).to(torch.uint8)
    counts = torch.zeros(num_languages + 1, dtype=torch.int64)
    for code in codes:
        table = bits_set.to(code.device)
        for chunk in code.flatten().split(_CHUNK):
            users = sum(table[_byte(chunk, place).long()] for place in range(-(-num_languages // 8)))
            assert isinstance(users, Tensor)
            counts += torch.bincount(users, minlength=num_languages + 1).cpu()
    return counts


def _byte(chunk: Tensor, place: int) -> Tensor:
    return chunk if chunk.dtype == torch.uint8 else (chunk >> (8 * place) & 255).to(torch.uint8)


def _add(histograms: dict[tuple[int, int], Tensor], pair: tuple[int, int], counts: Tensor) -> None:
    histograms[pair] = histograms[pair] + counts if pair in histograms else counts


def _bits_of_bytes(histograms: dict[tuple[int, int], Tensor], num_bytes: int) -> Tensor:
    """From how often two bytes have which values to how often each two of their bits are both set."""
    # Whole numbers are exact in float64, and unlike integers it can be multiplied as matrices on every device.
    bits = (torch.arange(256).unsqueeze(1) >> torch.arange(8) & 1).double()
    joint = torch.zeros(8 * num_bytes, 8 * num_bytes, dtype=torch.int64)
    for (a, b), counts in histograms.items():
        block = (bits.T @ counts.cpu().double() @ bits).long()
        joint[8 * a : 8 * a + 8, 8 * b : 8 * b + 8] = block
        joint[8 * b : 8 * b + 8, 8 * a : 8 * a + 8] = block.T
    return joint
