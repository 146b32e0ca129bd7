"""Initial weights and architecture of a training: --init-from."""

from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from icefall_pathways.data.datamodule import DataConfig
from icefall_pathways.data.features import FbankConfig
from icefall_pathways.data.level import LevelNorm
from icefall_pathways.data.tokenizer import Tokenizer
from icefall_pathways.experiment import checkpoints, icefall_checkpoints, layout
from icefall_pathways.experiment.model_files import check_features, stored_level_norm
from icefall_pathways.models.config import ModelConfig
from icefall_pathways.models.language_input import language_of_vector, languages_of_vectors
from icefall_pathways.models.transducer import VOCABULARY_LAYERS, Transducer, build_model
from icefall_pathways.options import from_dict
from icefall_pathways.training.config import ExperimentConfig, TrainingConfig

_MAX_ROWS = 30  # maximum rows of the table in a message


class InitialCheckpoint:
    """The checkpoint of --init-from, read once per process.

    The weights stay in memory, because a mask search starts from them for every language. They are not pickled: a
    spawned process reads them again from `path`, which does not need shared memory.

    Args:
      init_from: A checkpoint, or an experiment folder: its newest checkpoint.
      key: The weights to use: "model" or "model_avg".
      avg: Use the average that decoding computes with this --avg instead.

    Attributes:
      path: The file of the checkpoint.
      config: The options of the training that wrote it; None if it is a checkpoint of another project.
      tokens: Hash of its SentencePiece model; None if unknown.

    Raises:
      ValueError: The checkpoint is missing or damaged, was trained on other features, or does not have the requested
        weights.
    """

    def __init__(self, init_from: Path, key: Literal["model", "model_avg"] = "model", avg: int | None = None) -> None:
        self._key = key
        self._avg = avg
        self._weights: dict[str, Tensor] | None = None
        self.path = init_from
        self.config: dict[str, Any] | None = None
        self.tokens: str | None = None
        if not icefall_checkpoints.is_foreign(init_from):
            self.path, checkpoint = checkpoints.find(init_from)
            self.config, self.tokens = checkpoint["config"], checkpoint.get("tokens")
            check_features(self.path.parent, FbankConfig(level_norm=self.level_norm))
            self._weights = self._select(checkpoint)
        elif avg is not None:
            raise ValueError(f"--init-avg {avg}: {init_from} has no running average; choose weights with --init-key")

    @property
    def level_norm(self) -> LevelNorm:
        """Level normalization of the features that the model was trained on."""
        data = {} if self.config is None else self.config["data"]
        level_norm: LevelNorm = "running-max" if data.get("level_norm") == "running-max" else "none"
        return level_norm

    @property
    def weights(self) -> dict[str, Tensor]:
        """The weights by parameter name, on the CPU; do not modify them."""
        if self._weights is None:
            if self.config is None:
                key = None if self._key == "model" else self._key
                self._weights = icefall_checkpoints.read_weights(self.path, key)
            else:
                self._weights = self._select(checkpoints.read(self.path))
        return self._weights

    @cached_property
    def file_hash(self) -> str:
        """Hash of the file, see `checkpoints.file_hash`."""
        return checkpoints.file_hash(self.path)

    def _select(self, checkpoint: checkpoints.Checkpoint) -> dict[str, Tensor]:
        if self._avg is not None:
            return checkpoints.running_average(self.path, checkpoint, self._avg, "--init-avg")
        weights: dict[str, Tensor] = checkpoint[self._key]
        return weights

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_weights": None}


def read_initial_checkpoint(options: TrainingConfig) -> InitialCheckpoint | None:
    """Read the checkpoint of --init-from; return None without --init-from.

    Raises:
      ValueError: It is missing or damaged, or does not have the requested weights.
    """
    if options.init_from is None:
        return None
    return InitialCheckpoint(options.init_from, options.init_key, options.init_avg or None)


def with_level_norm(data: DataConfig, exp_dir: Path, initial: InitialCheckpoint | None) -> DataConfig:
    """Resolve --level-norm auto: as in the training that `exp_dir` holds or in --init-from; new models are normalized.

    Raises:
      ValueError: The feature options in `exp_dir` are damaged.
    """
    if data.level_norm != "auto":
        return data
    if layout.has_checkpoints(exp_dir):
        return replace(data, level_norm=stored_level_norm(exp_dir))
    return replace(data, level_norm="running-max" if initial is None else initial.level_norm)


@dataclass(frozen=True)
class WeightComparison:
    """Comparison of weights with the parameters of a model; every tensor is in exactly one of the lists.

    Attributes:
      source: The file of the weights.
      matched: Tensors with the same name and shape; they are loaded.
      reinitialized: Parameters of vocabulary-sized layers that are reinitialized on request.
      mismatched: Tensors whose shapes differ: shape in the file, shape in the model.
      missing: Parameters that the file does not have.
      added: Vectors of languages that the file does not have; they have initial values.
      extra: Tensors that the model does not have.
    """

    source: str
    matched: list[str]
    reinitialized: list[str]
    mismatched: dict[str, tuple[list[int], list[int]]]
    missing: list[str]
    extra: list[str]
    added: list[str] = field(default_factory=list)

    @property
    def fits(self) -> bool:
        """True if no tensor is mismatched, missing or extra."""
        return not (self.mismatched or self.missing or self.extra)

    def __str__(self) -> str:
        summary = f"{self.source}: {len(self.matched)} tensors match"
        if self.reinitialized:
            summary += f", {len(self.reinitialized)} of vocabulary-sized layers are reinitialized"
        if self.added:
            summary += f", vectors of {', '.join(languages_of_vectors(self.added))} are added"
        rows = [(name, _format_shape(in_file), _format_shape(own)) for name, (in_file, own) in self.mismatched.items()]
        rows += [(name, "missing", "present") for name in self.missing]
        rows += [(name, "present", "missing") for name in self.extra]
        if not rows:
            return summary
        summary += f", {len(self.mismatched)} differ in shape, {len(self.missing)} are missing, {len(self.extra)} extra"
        table = [("tensor", "file", "model"), *rows[:_MAX_ROWS]]
        width = max(len(name) for name, _, _ in table)
        lines = [summary, *(f"  {name:{width}}  {a:>14}  {b:>14}" for name, a, b in table)]
        if len(rows) > _MAX_ROWS:
            lines.append(f"  ... and {len(rows) - _MAX_ROWS} more")
        return "\n".join(lines)


def compare_weights(
    source: str, weights: dict[str, Tensor], model: Transducer, reinit_vocab: bool = False
) -> WeightComparison:
    """Compare weights with the parameters of a model.

    Args:
      source: The file of the weights.
      weights: By parameter name.
      model: The model to load them into.
      reinit_vocab: Reinitialize the vocabulary-sized layers instead of loading them.
    """
    parameters, matched, reinitialized, mismatched = model.state_dict(), [], [], {}
    for name, value in parameters.items():
        if reinit_vocab and _is_vocabulary_sized(name):
            reinitialized.append(name)
        elif name in weights and weights[name].shape == value.shape:
            matched.append(name)
        elif name in weights:
            mismatched[name] = (list(weights[name].shape), list(value.shape))
    extra = [name for name in weights if name not in parameters and not (reinit_vocab and _is_vocabulary_sized(name))]
    absent = [name for name in parameters if name not in weights and name not in reinitialized]
    added = [name for name in absent if language_of_vector(name)]
    missing = [name for name in absent if name not in added]
    return WeightComparison(source, matched, reinitialized, mismatched, missing, extra, added)


def with_architecture(config: ExperimentConfig, initial: InitialCheckpoint | None) -> ExperimentConfig:
    """Replace the model options with those stored in --init-from, so that users need not repeat them.

    Only --language-input can be added to them. A checkpoint of another project does not record its architecture: the
    options of the command line stay.

    Raises:
      ValueError: A model option was given and differs from the checkpoint.
    """
    if initial is None or initial.config is None:
        if config.model.ctc_head and not config.training.ctc_loss_scale:
            raise ValueError("--ctc-head has no effect without --ctc-loss-scale, which adds the head: leave it out")
        return replace(config, model=replace(config.model, ctc_head=config.training.ctc_loss_scale > 0))
    model = from_dict(ModelConfig, initial.config["model"])
    model = replace(model, language_input=model.language_input or config.model.language_input)
    _check_architecture_options(config, model)
    return replace(config, model=model)


def _check_architecture_options(config: ExperimentConfig, model: ModelConfig) -> None:
    """Check that no model option contradicts the model of --init-from; the option would be ignored."""
    source = f"the model of --init-from {config.training.init_from}"
    for option in fields(ModelConfig):
        given, own = getattr(config.model, option.name), getattr(model, option.name)
        if given not in (option.default, own):
            raise ValueError(
                f"--{option.name.replace('_', '-')} is {given}, and {source} has "
                f"{'its default' if own == '' else own}: its architecture is used, so leave the option out"
            )
    if config.training.ctc_loss_scale > 0 and not model.ctc_head:
        raise ValueError(f"--ctc-loss-scale needs a CTC head, and {source} has none: leave the option out")


def build_initial_model(
    config: ExperimentConfig, initial: InitialCheckpoint | None
) -> tuple[Transducer, WeightComparison | None]:
    """Build the model of a training and load the weights of --init-from into it.

    Returns:
      The model, and the comparison of the weights with its parameters (None without --init-from).

    Raises:
      ValueError: The weights do not fit, and --init-partial does not allow it; the message has a table.
    """
    options, bpe_model = config.training, config.training.tokenizer_path
    stored = languages_of_vectors([] if initial is None else initial.weights)
    languages = dict.fromkeys((*stored, *options.freeze_languages, *config.data.languages))
    model = build_model(config.model, Tokenizer(bpe_model).vocab_size, list(languages))
    if initial is None:
        return model, None
    if not options.reinit_vocab and initial.tokens not in (None, checkpoints.file_hash(bpe_model)):
        assert initial.config is not None
        raise ValueError(
            f"{initial.path} was trained with tokens other than those of --bpe-model {bpe_model}: use the file that "
            f"was at {initial.config['training']['bpe_model']}, or reinitialize the vocabulary-sized layers: "
            "--reinit-vocab 1"
        )
    comparison = compare_weights(str(initial.path), initial.weights, model, options.reinit_vocab)
    if not comparison.matched or not (comparison.fits or options.init_partial):
        raise ValueError(f"{comparison}\n{_advice(comparison)}")
    model.load_state_dict({**model.state_dict(), **{name: initial.weights[name] for name in comparison.matched}})
    return model, comparison


def _advice(comparison: WeightComparison) -> str:
    unfit = [*comparison.mismatched, *comparison.missing, *comparison.extra]
    if unfit and all(_is_vocabulary_sized(name) for name in unfit):
        return (
            "use the --bpe-model that it was trained with, or reinitialize the vocabulary-sized layers: "
            "--reinit-vocab 1"
        )
    return (
        "use the architecture options that match it (--encoder-type, --zipformer, --causal, ...; for other tokens: "
        "--reinit-vocab 1), or load the tensors that match and reinitialize the rest: --init-partial 1"
    )


def _is_vocabulary_sized(name: str) -> bool:
    return name.rpartition(".")[0] in VOCABULARY_LAYERS


def _format_shape(sizes: list[int]) -> str:
    return "x".join(map(str, sizes)) or "scalar"
