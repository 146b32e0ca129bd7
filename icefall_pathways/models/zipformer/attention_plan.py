"""What the frames of a stack see: chunks, left context, padding and the code of their distances."""

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from icefall_pathways.models.zipformer.config import UNLIMITED


@dataclass(frozen=True)
class AttentionPlan:
    """What all layers of a stack share in one run. Frames are the stack's own.

    A run is over T frames, after `left` frames that the state remembers; together they are the S = left + T sources.

    Attributes:
      blocked: Sources that a frame may not attend to (N, 1, T or 1, S), bool.
      padding: Frames that are padding (N, T, 1), bool.
      positions: `position_code` of `left` and T.
      chunk: Frames of a chunk; T where the run is one chunk.
      left: Frames that the state remembers.
    """

    blocked: Tensor
    padding: Tensor
    positions: Tensor
    chunk: int
    left: int


def plan_utterances(lens: Tensor, frames: int, factor: int, pos_dim: int, chunk: int, left: int) -> AttentionPlan:
    """The plan of a stack for whole utterances.

    Args:
      lens: Frames of each utterance (N,), at the encoder's rate.
      frames: Frames of the longest one, at the encoder's rate.
      factor: How many of them the stack takes as one.
      pos_dim: Width of the position code.
      chunk: Frames of a chunk at the encoder's rate, a multiple of `factor`; -1 is the whole utterance.
      left: Frames before its chunk that a frame sees; -1 is all of them.
    """
    times = torch.arange(0, frames, factor, device=lens.device)
    beyond = times >= lens.unsqueeze(1)
    blocked = beyond[:, None, None]
    if chunk != UNLIMITED:
        index = torch.div(times, chunk, rounding_mode="floor")
        behind = index.unsqueeze(1) - index
        hidden = behind < 0
        if left != UNLIMITED:
            hidden = hidden | (behind > max(1, left // chunk))
        blocked = blocked | hidden
    own_chunk = times.numel() if chunk == UNLIMITED else min(chunk // factor, times.numel())
    return AttentionPlan(
        blocked, beyond.unsqueeze(-1), position_code(0, times.numel(), pos_dim, lens.device), own_chunk, 0
    )


def plan_chunk(lens: Tensor, ages: Tensor, factor: int, pos_dim: int, chunk: int, left: int) -> AttentionPlan:
    """The plan of a stack for the next chunk of streams.

    Args:
      lens: Frames of each chunk (N,), at the encoder's rate.
      ages: Frames that came before it in each stream (N,).
      factor: How many of them the stack takes as one.
      pos_dim: Width of the position code.
      chunk: Frames of a chunk at the encoder's rate.
      left: Frames before a chunk that the state remembers, at the encoder's rate.
    """
    beyond = torch.arange(0, chunk, factor, device=lens.device) >= lens.unsqueeze(1)
    not_yet = torch.arange(left - 1, -1, -factor, device=lens.device) >= ages.unsqueeze(1)
    positions = position_code(left // factor, chunk // factor, pos_dim, lens.device)
    blocked = torch.cat([not_yet, beyond], dim=1)[:, None, None]
    return AttentionPlan(blocked, beyond.unsqueeze(-1), positions, chunk // factor, left // factor)


@lru_cache(maxsize=64)
def position_code(left: int, frames: int, dim: int, device: torch.device) -> Tensor:
    """The code of every distance between a frame and its sources.

    Distances are compressed by a logarithm, so that near ones are told apart best.

    Args:
      left: Frames before the first one that are sources too.
      frames: Frames.
      dim: Width, even.
      device: Where it is needed.

    Returns:
      (left + 2 * frames, dim), float32. Row r is of distance r - left - frames + 1, which is source minus frame; the
      last row, of a distance that does not occur, is there for `attention.shift`.
    """
    with torch.inference_mode(False):  # it is kept, for training too
        distance = torch.arange(1 - left - frames, frames + 1, dtype=torch.float32, device=device)
        width = math.sqrt(dim)
        compressed = width * distance.sign() * ((distance.abs() + width).log() - math.log(width))
        angle = (compressed * (2.0 * math.pi / dim)).atan()
        angles = angle.unsqueeze(1) * torch.arange(1, dim // 2 + 1, device=device)
        code = torch.stack([angles.cos(), angles.sin()], dim=-1).flatten(1)
        return F.pad(code[:, :-1], (0, 1), value=1.0)
