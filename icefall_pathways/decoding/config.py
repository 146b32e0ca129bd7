"""The options of decoding."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from icefall_pathways.experiment import layout
from icefall_pathways.searches.config import SearchConfig


@dataclass(frozen=True)
class TrainedModelConfig(SearchConfig):
    """Which trained model to run, and how to search."""

    exp_dir: Path = Path("pruned_transducer_pathways/exp")
    """The experiment: its checkpoints and options are read, results go below it."""

    epoch: int = 0
    """Decode with epoch-<epoch>.pt."""

    iter: int = 0
    """Decode with checkpoint-<iter>.pt; wins over --epoch. Both 0: the newest checkpoint."""

    avg: int = 1
    """Average the weights since the checkpoint this many before the chosen one."""

    use_averaged_model: bool = True
    """Average over all updates in between (from the running averages), not over the checkpoints themselves."""

    masks: str = ""
    """Masks file, a pathway for each language. Empty: the experiment's own, if it has any; none: no masks."""

    bpe_model: Path | None = None
    """The SentencePiece model; None: the one stored in the experiment folder, or at the path of its training."""


@dataclass(frozen=True)
class CommonConfig(TrainedModelConfig):
    """What both ways of decoding a corpus have."""

    languages: str = ""
    """Languages to decode, such as "en fr"; empty: those of the experiment."""

    split: Literal["test", "dev"] = "test"
    """The part of the corpus to decode."""

    max_duration: float = 600.0
    """Seconds of audio in a batch of whole utterances; streams are as many as --num-decode-streams says."""

    manifest_dir: Path | None = None
    """Folder of the cuts; None: that of the experiment."""

    @property
    def results_dir(self) -> Path:
        """Where the results go."""
        raise NotImplementedError


@dataclass(frozen=True)
class DecodeConfig(CommonConfig):
    """How to decode whole utterances."""

    beam_size: int = 4
    """Hypotheses per utterance in modified_beam_search."""

    nbest: int = 0
    """Write up to so many hypotheses per utterance, with scores and times of their tokens, to nbest- files; 0: none."""

    @property
    def num_hypotheses(self) -> int:
        """Hypotheses per utterance in modified_beam_search."""
        return self.beam_size

    @property
    def results_dir(self) -> Path:
        """Where the results go."""
        return layout.results_dir(self.exp_dir, self.decoding_method)


@dataclass(frozen=True)
class StreamingDecodeConfig(CommonConfig):
    """How to decode chunk by chunk."""

    num_decode_streams: int = 2000
    """Utterances decoded at the same time."""

    num_active_paths: int = 4
    """Hypotheses per stream in modified_beam_search."""

    beam: float = 4.0
    """For fast_beam_search: hypotheses worse than the best by more than this log-probability are dropped."""

    max_contexts: int = 4
    """For fast_beam_search: different last tokens kept per stream."""

    max_states: int = 32
    """For fast_beam_search: lattice states kept per stream and frame."""

    @property
    def num_hypotheses(self) -> int:
        """Hypotheses per stream in modified_beam_search."""
        return self.num_active_paths

    @property
    def results_dir(self) -> Path:
        """Where the results go."""
        return layout.results_dir(self.exp_dir, self.decoding_method, streaming=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_decode_streams < 1:
            raise ValueError(f"--num-decode-streams {self.num_decode_streams}: expected at least 1")
