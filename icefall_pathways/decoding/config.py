"""Options of decoding."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from icefall_pathways.decoding.streaming.engine import Engine
from icefall_pathways.experiment import layout
from icefall_pathways.languages import LanguageList, normalize_languages
from icefall_pathways.ranges import Options, Port, PositiveFloat, PositiveInt
from icefall_pathways.searches.config import SearchConfig

NumActivePaths = Annotated[PositiveInt, tyro.conf.arg(name="num-active-paths")]
"""Type of `beam_size` in streaming scripts, where icefall calls the option --num-active-paths."""


@dataclass(frozen=True)
class ModelSelection(Options):
    """Options that select a trained model."""

    exp_dir: Path = Path("pruned_transducer_pathways/exp")
    """Experiment folder. Checkpoints and options are read from it, and results are written below it."""

    epoch: int = 0
    """Decode with epoch-<epoch>.pt; 0: see --iter."""

    iter: int = 0
    """Decode with checkpoint-<iter>.pt; takes precedence over --epoch. If both are 0, use the newest checkpoint."""

    avg: PositiveInt = 1
    """Number of checkpoints to average, up to the selected one; with --use-averaged-model 1, average the weights over
    all updates since the checkpoint that precedes them."""

    use_averaged_model: bool = True
    """Average the weights over all updates, from the running averages in the checkpoints. 0: over --avg checkpoints."""

    masks: str = ""
    """Masks file, with one pathway per language. Empty: the masks of the experiment, if it has any; none: no masks."""

    bpe_model: Path | None = None
    """SentencePiece model; None: the one in the experiment folder, or else at the path given in training."""


@dataclass(frozen=True)
class TrainedModelConfig(ModelSelection, SearchConfig):
    """Options that select a trained model and a search."""

    engine: Engine = "auto"
    """Engine that encodes streams. eager: torch; onnx: ONNX Runtime, on CPUs, in half the time or less;
    auto: onnx on CPUs, for live streams after 300 batches, since the model is exported first; eager if that fails."""

    pathway_memory: PositiveFloat = 1000.0
    """Megabytes for the masked weights of languages. If more would be needed, those of the language used least recently
    are dropped, and computed again when needed; one language is always kept."""


@dataclass(frozen=True)
class CommonConfig(TrainedModelConfig):
    """Options common to offline and streaming decoding of a corpus."""

    languages: LanguageList = ()
    """Languages to decode, for example "en fr"; empty: those of the experiment."""

    split: Literal["test", "dev"] = "test"
    """Split of the corpus to decode."""

    max_duration: PositiveFloat = 600.0
    """Seconds of audio per batch in offline decoding; in streaming decoding, --num-decode-streams limits the batch."""

    manifest_dir: Path | None = None
    """Folder of the cuts; None: the one of the experiment."""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "languages", normalize_languages(self.languages))

    @property
    def results_dir(self) -> Path:
        """Folder for the results."""
        raise NotImplementedError


@dataclass(frozen=True)
class DistributedConfig(CommonConfig):
    """Options that distribute decoding over processes."""

    world_size: PositiveInt = 1
    """Number of processes on this machine, one per GPU; under torchrun, its options apply instead. The results do not
    depend on it."""

    master_port: Port = 12355
    """Port for the process-group rendezvous on this machine."""

    part_duration: PositiveFloat = 3600.0
    """Seconds of audio in a part of a test set, the unit of work of a process. Each part is stored when it is decoded;
    after an interruption, the same command decodes the missing parts."""


@dataclass(frozen=True)
class DecodeConfig(DistributedConfig):
    """Options of offline decoding (whole utterances)."""

    nbest: int = 0
    """Write up to this many hypotheses per utterance to nbest- files, with scores and token times; 0: none."""

    max_context_seconds: PositiveFloat = 30.0
    """Encode longer utterances in blocks of this length, since the memory of a Zipformer's attention grows with the
    square of the duration. With a limited left context, the result is the same; otherwise, blocks overlap, and words at
    their borders can change."""

    @property
    def results_dir(self) -> Path:
        """Folder for the results."""
        return layout.results_dir(self.exp_dir, self.decoding_method)


@dataclass(frozen=True)
class StreamingConfig(CommonConfig):
    """Options common to the scripts that decode a corpus chunk by chunk."""

    num_decode_streams: PositiveInt = 2000
    """Number of utterances to decode in parallel."""

    beam_size: NumActivePaths = 4
    """For modified_beam_search: hypotheses kept per stream."""

    beam: PositiveFloat = 4.0
    """For fast_beam_search: prune hypotheses that score worse than the best by more than this log-probability."""

    max_contexts: PositiveInt = 4
    """For fast_beam_search: predictor contexts kept per stream."""

    max_states: PositiveInt = 32
    """For fast_beam_search: lattice states kept per stream and frame."""

    @property
    def results_dir(self) -> Path:
        """Folder for the results."""
        return layout.results_dir(self.exp_dir, self.decoding_method, streaming=True)


@dataclass(frozen=True)
class StreamingDecodeConfig(StreamingConfig, DistributedConfig):
    """Options of streaming decoding (chunk by chunk)."""
