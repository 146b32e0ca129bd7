"""Greedy search: many frames at once, since nothing changes between two tokens."""

import dataclasses

import torch
from torch import Tensor

from icefall_pathways.searches.base import TransducerHead
from icefall_pathways.searches.frame_search import BeamState, FrameSearch

_FRAMES_AT_A_TIME = 8  # of all streams together: up to here more of them cost hardly more time


class GreedySearch(FrameSearch):
    """The most probable token of each frame.

    While all streams emit blanks, their predictor outputs stay what they are. So with few streams several frames are
    joined with these at once, and those up to the first token count; the others are joined again after it.
    """

    def __init__(self, model: TransducerHead, blank_penalty: float = 0.0) -> None:
        super().__init__(model, beam_size=1, blank_penalty=blank_penalty)

    @torch.inference_mode()
    def advance(self, state: BeamState, encoder_out: Tensor, lens: Tensor) -> BeamState:
        """Read the next frames of every stream.

        Args:
          state: Of N streams; it is left as it is.
          encoder_out: (N, T, D) the next encoder outputs.
          lens: (N,) how many of them belong to each stream; frames beyond change nothing.
        """
        num_frames, everywhere = int(lens.max()), int(lens.min())
        lens = lens.to(encoder_out.device)
        frames = self.model.joiner.encoder_proj(encoder_out)
        tokens = torch.full((len(lens), num_frames), self.blank_id, device=lens.device)
        context = self._context(state)[:, 0]
        predictor_out, log_probs = state.predictor_out.clone(), state.log_probs
        window = max(1, _FRAMES_AT_A_TIME // len(lens))
        begin = 0
        while begin < num_frames:
            end = min(begin + window, num_frames)
            best, found = self._logits(frames[:, begin:end], predictor_out).log_softmax(dim=-1).max(dim=-1)
            emits = found.ne(self.blank_id)
            if end > everywhere:
                reads = torch.arange(begin, end, device=lens.device).lt(lens[:, None])
                best, emits = best * reads, emits & reads
            first = emits.any(dim=0).nonzero()[:1, 0].tolist()
            count = first[0] + 1 if first else end - begin
            log_probs = log_probs + best[:, :count].sum(dim=1, keepdim=True)
            begin += count
            if first:
                stream = emits[:, count - 1].nonzero()[:, 0]
                emitted = found[stream, count - 1]
                tokens[stream, begin - 1] = emitted
                context[stream] = torch.cat([context[stream, 1:], emitted[:, None]], dim=1)
                predictor_out[stream, 0] = self._predict(context[stream])
        state = state.prolonged(tokens[:, None], lens, self.blank_id)
        return dataclasses.replace(state, log_probs=log_probs, predictor_out=predictor_out)
