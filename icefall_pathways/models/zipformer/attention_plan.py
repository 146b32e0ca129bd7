"""Masks and positional encodings of a stack of the Zipformer: chunks, left context and padding."""

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from icefall_pathways.models.zipformer.config import UNLIMITED


@dataclass(frozen=True)
class AttentionPlan:
    """Masks and positional encoding that all layers of a stack share in one call. Frames are at the stack's rate.

    A call encodes T frames, which follow `left` frames of the state; together they are the S = left + T sources.

    Attributes:
      attn_mask: True where a frame does not attend to a source (N, 1, T or 1, S).
      padding_mask: True in padding (N, T, 1).
      positions: The `positional_encoding` of `left` and T frames.
      chunk: Frames per chunk; T if the call encodes one chunk.
      left: Frames of the state.
    """

    attn_mask: Tensor
    padding_mask: Tensor
    positions: Tensor
    chunk: int
    left: int


def plan_utterances(lens: Tensor, frames: int, factor: int, pos_dim: int, chunk: int, left: int) -> AttentionPlan:
    """Return the plan of a stack for whole utterances.

    Args:
      lens: Frames of each utterance (N,), at the encoder's rate.
      frames: Frames of the longest utterance, at the encoder's rate.
      factor: Downsampling factor of the stack.
      pos_dim: Width of the positional encoding.
      chunk: Frames per chunk at the encoder's rate, a multiple of `factor`; -1: the whole utterance.
      left: Left context: frames before its chunk that a frame attends to; -1: all of them.
    """
    times = torch.arange(0, frames, factor, device=lens.device)
    padding_mask = times >= lens.unsqueeze(1)
    attn_mask = padding_mask[:, None, None]
    if chunk != UNLIMITED:
        attn_mask = attn_mask | _out_of_context(times, times, chunk, left)
    stack_chunk = times.numel() if chunk == UNLIMITED else min(chunk // factor, times.numel())
    positions = positional_encoding(0, times.numel(), pos_dim, lens.device)
    return AttentionPlan(attn_mask, padding_mask.unsqueeze(-1), positions, stack_chunk, left=0)


def plan_chunks(
    lens: Tensor, processed_lens: Tensor, frames: int, factor: int, pos_dim: int, chunk: int, left: int
) -> AttentionPlan:
    """Return the plan of a stack for the next chunks of every stream.

    Args:
      lens: Valid frames of each stream in these chunks (N,), at the encoder's rate.
      processed_lens: Frames of each stream before them (N,), at the encoder's rate.
      frames: Frames of all chunks, at the encoder's rate; a multiple of `factor`.
      factor: Downsampling factor of the stack.
      pos_dim: Width of the positional encoding.
      chunk: Frames per chunk, at the encoder's rate.
      left: Frames of the state, at the encoder's rate; a multiple of `chunk` if there are several chunks.
    """
    times = torch.arange(0, frames, factor, device=lens.device)
    padding_mask = times >= lens.unsqueeze(1)
    before_start = torch.arange(left - 1, -1, -factor, device=lens.device) >= processed_lens.unsqueeze(1)
    attn_mask = torch.cat([before_start, padding_mask], dim=1)[:, None, None]
    if frames > chunk:
        sources = torch.arange(-left, frames, factor, device=lens.device)
        attn_mask = attn_mask | _out_of_context(times, sources, chunk, left)
    positions = positional_encoding(left // factor, frames // factor, pos_dim, lens.device)
    return AttentionPlan(attn_mask, padding_mask.unsqueeze(-1), positions, chunk // factor, left // factor)


def _out_of_context(times: Tensor, sources: Tensor, chunk: int, left: int) -> Tensor:
    """Return True where a source (S,) is neither in the chunk of a frame (T,) nor in its left context: (T, S)."""
    distance = _chunk_index(times, chunk).unsqueeze(1) - _chunk_index(sources, chunk)
    later = distance < 0
    return later if left == UNLIMITED else later | (distance > max(1, left // chunk))


def _chunk_index(times: Tensor, chunk: int) -> Tensor:
    return torch.div(times, chunk, rounding_mode="floor")


@lru_cache(maxsize=64)
def positional_encoding(left: int, frames: int, dim: int, device: torch.device) -> Tensor:
    """Return the encoding of every relative position (source minus frame).

    Distances are compressed by a logarithm, so that nearby positions have the highest resolution.

    Args:
      left: Number of sources before the first frame.
      frames: Number of frames.
      dim: Width, even.
      device: Device of the result.

    Returns:
      (left + 2 * frames, dim), float32. Row r encodes the relative position r - left - frames + 1. The last row, for a
      position that does not occur, is needed by `attention.relative_shift`.
    """
    with torch.inference_mode(False):  # training uses the cached result too
        distance = torch.arange(1 - left - frames, frames + 1, dtype=torch.float32, device=device)
        width = math.sqrt(dim)
        compressed = width * distance.sign() * ((distance.abs() + width).log() - math.log(width))
        angle = (compressed * (2.0 * math.pi / dim)).atan()
        angles = angle.unsqueeze(1) * torch.arange(1, dim // 2 + 1, device=device)
        encoding = torch.stack([angles.cos(), angles.sin()], dim=-1).flatten(1)
        return F.pad(encoding[:, :-1], (0, 1), value=1.0)
