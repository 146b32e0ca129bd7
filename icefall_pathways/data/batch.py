"""The mini-batch that the data module yields and the training, validation, and decoding code reads."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from lhotse.cut import Cut
from torch import Tensor, nn

from icefall_pathways.constants import FRAME_SHIFT, LOG_EPS, SAMPLE_RATE
from icefall_pathways.data.tokenizer import Tokenizer

_SMALL_TENSORS = ("num_frames", "tokens", "num_tokens")


@dataclass(frozen=True, eq=False)
class Batch:
    """A monolingual mini-batch, complete when it leaves the loader worker.

    Dimensions:
      N: Utterances, from the longest to the shortest.
      T: Feature frames of the longest utterance.
      F: Mel bins.
      U: Tokens of the longest transcript; 0 if the data module has no tokenizer.

    Attributes:
      inputs: Log-mel features (N, T, F), float32, padded with `constants.LOG_EPS`.
      num_frames: Feature frames of each utterance (N,), int32.
      tokens: Token ids (N, U), int64, padded with 0.
      num_tokens: Tokens of each utterance (N,), int64.
      language: ISO 639-1 code of the language of all utterances.
      cuts: The N cuts, each with one supervision.
    """

    inputs: Tensor
    num_frames: Tensor
    tokens: Tensor
    num_tokens: Tensor
    language: str
    cuts: list[Cut]

    @classmethod
    def from_lhotse(cls, batch: dict[str, Any], language: str, tokenizer: Tokenizer | None) -> Batch:
        """Convert a batch of Lhotse's K2SpeechRecognitionDataset and tokenize its transcripts."""
        supervisions = batch["supervisions"]
        texts = supervisions["text"]
        encoded = tokenizer.encode(texts) if tokenizer is not None else [[] for _ in texts]
        tokens = [torch.tensor(ids, dtype=torch.int64) for ids in encoded]
        return cls(
            inputs=batch["inputs"],
            num_frames=supervisions["num_frames"],
            tokens=nn.utils.rnn.pad_sequence(tokens, batch_first=True),
            num_tokens=torch.tensor([len(ids) for ids in encoded]),
            language=language,
            cuts=supervisions["cut"],
        )

    def __len__(self) -> int:
        """Return N."""
        return len(self.inputs)

    @property
    def texts(self) -> list[str]:
        """Transcript of each utterance."""
        return [cut.supervisions[0].text for cut in self.cuts]

    @property
    def cut_ids(self) -> list[str]:
        """Id of each cut."""
        return [cut.id for cut in self.cuts]

    @property
    def total_tokens(self) -> int:
        """Number of tokens, padding excluded."""
        return int(self.num_tokens.sum())

    @property
    def seconds(self) -> float:
        """Duration of the audio in seconds, padding excluded."""
        return FRAME_SHIFT / SAMPLE_RATE * float(self.num_frames.sum())

    @property
    def utterances(self) -> list[Tensor]:
        """Features (T, F) of each utterance, without padding."""
        return [x[:length] for x, length in zip(self.inputs, self.num_frames.tolist(), strict=True)]

    def with_utterances(self, utterances: list[Tensor]) -> Batch:
        """Return the batch with other features (T, F) of each utterance."""
        return replace(
            self,
            inputs=nn.utils.rnn.pad_sequence(utterances, batch_first=True, padding_value=LOG_EPS),
            num_frames=torch.tensor([len(x) for x in utterances], dtype=torch.int32),
        )

    def extend(self, num_frames: int) -> Batch:
        """Return the batch with `num_frames` more frames of silence at the end of every utterance."""
        return self.with_utterances(
            [nn.functional.pad(x, (0, 0, 0, num_frames), value=LOG_EPS) for x in self.utterances]
        )

    def join_pairs(self, max_frames: int) -> Batch:
        """Return the batch with consecutive utterances joined in pairs, unless they have more than `max_frames`."""
        tokens = [ids[:length] for ids, length in zip(self.tokens, self.num_tokens.tolist(), strict=True)]
        utterances = list(zip(self.utterances, tokens, self.cuts, strict=True))
        joined: list[tuple[Tensor, Tensor, Cut]] = []
        for i in range(0, len(utterances), 2):
            pair = utterances[i : i + 2]
            if len(pair) == 2 and sum(len(x) for x, _, _ in pair) <= max_frames:
                features, ids, (first, second) = zip(*pair, strict=True)
                cut = first.append(second, preserve_id="left").merge_supervisions()
                pair = [(torch.cat(features), torch.cat(ids), cut)]
            joined += pair
        joined.sort(key=lambda utterance: -len(utterance[0]))
        features, ids, cuts = zip(*joined, strict=True)
        return replace(
            self,
            tokens=nn.utils.rnn.pad_sequence(list(ids), batch_first=True),
            num_tokens=torch.tensor([len(x) for x in ids]),
            cuts=list(cuts),
        ).with_utterances(list(features))

    def to(self, device: torch.device) -> Batch:
        """Return the batch with `inputs` and `tokens` on `device`; the lengths stay on the CPU, where they are read."""
        return replace(
            self,
            inputs=self.inputs.to(device, non_blocking=True),
            tokens=self.tokens.to(device, non_blocking=True),
        )

    def pin_memory(self) -> Batch:
        """Return the batch with `inputs` in pinned memory; torch's DataLoader calls this if a GPU is present."""
        return replace(self, inputs=self.inputs.pin_memory())

    # A worker process transfers each tensor as a separate shared-memory file, which for a small tensor takes as long as
    # the transfer of all features; NumPy arrays travel with the pickle.
    def __getstate__(self) -> dict[str, Any]:
        return {name: value.numpy() if name in _SMALL_TENSORS else value for name, value in self.__dict__.items()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        tensors = {name: torch.from_numpy(state[name]) for name in _SMALL_TENSORS}
        self.__dict__.update(state | tensors)
