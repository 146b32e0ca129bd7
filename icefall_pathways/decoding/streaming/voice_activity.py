"""Voice activity detection: cut a stream of samples into regions of speech, without look-ahead."""

import importlib.util
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from icefall_pathways.constants import SAMPLE_RATE
from icefall_pathways.errors import first_line

VadName = Literal["silero", "none"]

_WINDOW = 512  # samples that Silero scores at once
_CONTEXT = 64  # samples before a window that it reads again
_START, _CONTINUE = 0.4, 0.2  # probabilities from which speech starts and continues
_PRE_ROLL = 0.5  # seconds before the detection that belong to a region: Silero may need 0.45 s in noise
_HANGOVER_WINDOWS = 25  # without speech after which a region ends: 0.8 s
_IDLE_WINDOWS = 4  # scored at once outside of a region
_TARGET_RMS = 0.1  # of the loudest window: at lower levels Silero detects speech late or not at all
_MAX_GAIN = 10**1.5  # 30 dB
_LEVEL_DECAY = 0.995  # per window: 1.4 dB per second
_LOG_ERRORS = 3  # severity level of ONNX Runtime


class VadError(ValueError):
    """Voice activity detection cannot run on this machine."""


#: Consecutive windows (n, 512) of one stream.
Windows = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Scores:
    """Scores of consecutive windows of one stream.

    Attributes:
      probabilities: Probability of speech in each window (n,).
      state: State of the scorer after the windows.
    """

    probabilities: npt.NDArray[np.float32]
    state: Any


@dataclass(frozen=True)
class ScoredSamples:
    """Samples of one stream, in windows with their scores.

    Attributes:
      windows: The windows (n, 512) that the samples complete.
      rest: Samples (m,) after them.
      scores: Scores of the windows.
    """

    windows: Tensor
    rest: Tensor
    scores: Scores


class SpeechScorer(Protocol):
    """A model that scores windows of many streams; it does not modify their states."""

    def new_state(self) -> Any:
        """Return the state of a new stream."""

    def score(self, windows: Sequence[Windows], states: Sequence[Any]) -> list[Scores]:
        """Score the next windows of each stream; their numbers may differ."""


@dataclass(frozen=True)
class _SileroState:
    """State of one stream: recurrent state (2, 128), samples (64,) before the next window, level of the input."""

    recurrent: npt.NDArray[np.float32]
    context: npt.NDArray[np.float32]
    level: float


class Silero:
    """Silero VAD in ONNX Runtime, in batches. The level of a stream follows its loudest window so far.

    Raises:
      VadError: The package silero-vad or onnxruntime is not installed.
    """

    def __init__(self) -> None:
        self._session = _load_session()

    def new_state(self) -> _SileroState:
        """Return the state of a new stream."""
        return _SileroState(np.zeros((2, 128), np.float32), np.zeros(_CONTEXT, np.float32), 0.0)

    def score(self, windows: Sequence[Windows], states: Sequence[_SileroState]) -> list[Scores]:
        """Score the next windows of each stream, see `SpeechScorer`; a batch has one window of each."""
        counts = np.array([len(stream) for stream in windows])
        order = np.argsort(-counts, kind="stable")  # streams without further windows leave the batch at its end
        recurrent = np.stack([states[i].recurrent for i in order], axis=1)
        context = np.stack([states[i].context for i in order])
        level = np.array([states[i].level for i in order])
        probabilities = np.zeros((len(windows), counts.max()), np.float32)
        for index in range(counts.max()):
            size = int((counts > index).sum())
            batch = np.stack([windows[i][index] for i in order[:size]])
            level[:size] = np.maximum(_LEVEL_DECAY * level[:size], np.sqrt(np.mean(np.square(batch), axis=1)))
            gain = np.clip(_TARGET_RMS / np.maximum(level[:size], 1e-9), 1.0, _MAX_GAIN).astype(np.float32)
            batch *= gain[:, None]
            inputs = {"input": np.hstack([context[:size], batch]), "state": recurrent[:, :size], "sr": _RATE}
            scores, recurrent[:, :size] = self._session.run(None, inputs)
            probabilities[:size, index], context[:size] = scores[:, 0], batch[:, -_CONTEXT:]
        rows = np.argsort(order)
        return [
            # Copies: a view would keep the states of all streams in memory.
            Scores(probabilities[row, :count], _SileroState(recurrent[:, row].copy(), context[row].copy(), level[row]))
            for row, count in zip(rows, counts, strict=True)
        ]


_RATE = np.array(SAMPLE_RATE)


@lru_cache(maxsize=1)
def _load_session() -> Any:
    """Return the ONNX session that all streams share."""
    try:
        import onnxruntime
    except ImportError as error:
        raise VadError(f"cannot import onnxruntime ({first_line(error)}): install it, or use --vad none") from error
    # Not imported: the package reads audio with torchaudio.
    spec = importlib.util.find_spec("silero_vad")
    if spec is None or not spec.submodule_search_locations:
        raise VadError("the package silero-vad is not installed: install it, or use --vad none")
    path = Path(spec.submodule_search_locations[0]) / "data" / "silero_vad.onnx"
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # more are slower: a window takes a fraction of a millisecond
    options.log_severity_level = _LOG_ERRORS
    options.enable_cpu_mem_arena = False  # it keeps the memory of the largest batch
    return onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])


@dataclass(frozen=True)
class SpeechBlock:
    """Consecutive samples of a region of speech.

    Attributes:
      samples: The samples (n,).
      start: Position of the first sample in the stream.
      is_first: The block starts a region.
      speech_end: Position of the end of the speech, if the block ends its region; None otherwise.
    """

    samples: Tensor
    start: int
    is_first: bool = False
    speech_end: int | None = None

    @property
    def is_last(self) -> bool:
        """The block ends its region."""
        return self.speech_end is not None


class SpeechGate:
    """Pass on the samples of regions of speech, with some audio before and after them, and drop the others.

    Args:
      scorer: Scores windows.

    Attributes:
      num_samples: Number of samples of regions so far.
    """

    def __init__(self, scorer: SpeechScorer) -> None:
        self.scorer = scorer
        self._scorer_state = scorer.new_state()
        self._rest = torch.zeros(0)
        self._position = 0  # of the next window
        self._recent: deque[Tensor] = deque(maxlen=round(_PRE_ROLL * SAMPLE_RATE / _WINDOW))
        self._silent_windows: int | None = None  # in a region: windows since speech
        self.num_samples = 0

    @property
    def is_open(self) -> bool:
        """The last window belongs to a region of speech."""
        return self._silent_windows is not None

    def missing_samples(self, num_samples: int) -> int:
        """Return the number of samples to collect for `accept` until it passes on `num_samples`, or ends a region.

        Outside of a region, it is small, so that the start of speech is detected soon.
        """
        num_windows = _IDLE_WINDOWS
        if self._silent_windows is not None:
            num_windows = min(-(-num_samples // _WINDOW), _HANGOVER_WINDOWS - self._silent_windows)
        return num_windows * _WINDOW - self._rest.numel()

    def accept(self, samples: Tensor) -> list[SpeechBlock]:
        """Append samples (n,), and return the blocks of speech that they complete."""
        (scored,) = score_samples([self], [samples])
        return self.accept_scored(scored)

    def accept_scored(self, scored: ScoredSamples) -> list[SpeechBlock]:
        """Append samples that `score_samples` returned, and return the blocks of speech that they complete."""
        self._rest, self._scorer_state = scored.rest.clone(), scored.scores.state  # a view would keep all samples
        pairs = zip(scored.windows, scored.scores.probabilities.tolist(), strict=True)
        blocks = _join_blocks([block for window, score in pairs for block in self._accept_window(window, score)])
        self.num_samples += sum(block.samples.numel() for block in blocks)
        return blocks

    def _split(self, samples: Tensor) -> tuple[Tensor, Tensor]:
        """Return the windows (n, 512) that samples complete, and the remaining samples."""
        samples = torch.cat([self._rest, samples.detach().float().cpu().flatten()])
        num_whole = samples.numel() // _WINDOW * _WINDOW
        return samples[:num_whole].view(-1, _WINDOW), samples[num_whole:]

    def flush(self) -> list[SpeechBlock]:
        """Finish the stream: end the current region, and return its last block."""
        if self._silent_windows is None:
            return []
        # The rest is too short for a score: it is speech if it follows speech.
        end = self._position + (self._rest.numel() if self._silent_windows == 0 else -self._silent_windows * _WINDOW)
        self._silent_windows = None
        self.num_samples += self._rest.numel()
        return [SpeechBlock(self._rest, self._position, speech_end=end)]

    def _accept_window(self, window: Tensor, probability: float) -> Iterator[SpeechBlock]:
        start = self._position
        self._position += _WINDOW
        if self._silent_windows is None:
            if probability < _START:
                self._recent.append(window)
                return
            self._silent_windows = 0
            samples = torch.cat([*self._recent, window])
            self._recent.clear()
            yield SpeechBlock(samples, self._position - samples.numel(), is_first=True)
            return
        self._silent_windows = 0 if probability >= _CONTINUE else self._silent_windows + 1
        end = None
        if self._silent_windows >= _HANGOVER_WINDOWS:
            end, self._silent_windows = self._position - self._silent_windows * _WINDOW, None
        yield SpeechBlock(window, start, speech_end=end)


def score_samples(gates: Sequence[SpeechGate], samples: Sequence[Tensor]) -> list[ScoredSamples]:
    """Score the next samples (n,) of each gate in batches, for `SpeechGate.accept_scored`; the gates are unchanged.

    All gates must have the same kind of scorer.
    """
    if not gates:
        return []
    parts = [gate._split(block) for gate, block in zip(gates, samples, strict=True)]
    scores = gates[0].scorer.score([windows.numpy() for windows, _ in parts], [gate._scorer_state for gate in gates])
    return [ScoredSamples(*part, score) for part, score in zip(parts, scores, strict=True)]


def _join_blocks(blocks: list[SpeechBlock]) -> list[SpeechBlock]:
    """Join the blocks of each region: features are computed faster for long blocks."""
    starts = [index for index, block in enumerate(blocks) if index == 0 or block.is_first]
    regions = [blocks[start:end] for start, end in pairwise([*starts, len(blocks)])]
    return [
        SpeechBlock(
            torch.cat([block.samples for block in region]), region[0].start, region[0].is_first, region[-1].speech_end
        )
        for region in regions
    ]


def make_gate(name: VadName) -> SpeechGate | None:
    """Return a new gate for one stream; None for "none".

    Raises:
      VadError: Voice activity detection cannot run on this machine.
    """
    return None if name == "none" else SpeechGate(Silero())
