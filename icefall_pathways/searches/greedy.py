"""Greedy search over blocks of frames."""

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from icefall_pathways.data.tokenizer import Tokenizer
from icefall_pathways.searches.base import SearchOptions, TransducerHead
from icefall_pathways.searches.frame_search import BeamState, FrameSearch

_FRAMES_PER_BLOCK = 8  # over all streams; up to this number, more frames hardly take more time in the joiner


class GreedySearch(FrameSearch):
    """Greedy search: the most probable token of each frame.

    While all streams emit blanks, their predictor outputs stay the same. With few streams, the joiner therefore
    processes several frames at once with the same predictor outputs, and again those after the first emitted token.
    """

    def __init__(self, model: TransducerHead, blank_penalty: float = 0.0) -> None:
        super().__init__(model, beam_size=1, blank_penalty=blank_penalty)

    @torch.inference_mode()
    def advance(self, state: BeamState, encoder_out: Tensor, lens: Tensor) -> BeamState:
        """Process the next frames of every stream; see `Search.advance`. `state` is not modified."""
        num_frames, min_frames = int(lens.max()), int(lens.min())
        lens = lens.to(encoder_out.device)
        frames = self.model.joiner.encoder_proj(encoder_out)
        tokens = torch.full((len(lens), num_frames), self.blank_id, device=lens.device)
        token_log_probs = torch.zeros(tokens.shape, device=lens.device)
        context = self._context(state)[:, 0]
        predictor_out, log_probs = state.predictor_out.clone(), state.log_probs
        block = max(1, _FRAMES_PER_BLOCK // len(lens))
        start = 0
        while start < num_frames:
            end = min(start + block, num_frames)
            best, best_tokens = self._logits(frames[:, start:end], predictor_out).log_softmax(dim=-1).max(dim=-1)
            emits = best_tokens.ne(self.blank_id)
            if end > min_frames:
                valid = torch.arange(start, end, device=lens.device).lt(lens[:, None])
                best, emits = best * valid, emits & valid
            first = emits.any(dim=0).nonzero()[:1, 0].tolist()
            count = first[0] + 1 if first else end - start
            log_probs = log_probs + best[:, :count].sum(dim=1, keepdim=True)
            start += count
            if first:
                stream = emits[:, count - 1].nonzero()[:, 0]
                emitted = best_tokens[stream, count - 1]
                tokens[stream, start - 1] = emitted
                token_log_probs[stream, start - 1] = best[stream, count - 1]
                context[stream] = torch.cat([context[stream, 1:], emitted[:, None]], dim=1)
                predictor_out[stream, 0] = self._predict(context[stream])
        state = state.extended(tokens[:, None], token_log_probs[:, None], lens, self.blank_id)
        return dataclasses.replace(state, log_probs=log_probs, predictor_out=predictor_out)


@dataclass(frozen=True)
class GreedySearchOptions(SearchOptions):
    """Options of greedy search."""

    def build_search(self, model: TransducerHead, tokenizer: Tokenizer, language: str) -> GreedySearch:
        """Build the search; see `SearchOptions.build_search`."""
        return GreedySearch(model, self.blank_penalty)
