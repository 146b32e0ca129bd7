"""What a training starts from: the weights of --init-from, and the architecture that goes with them."""

from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from icefall_pathways.data.tokenizer import Tokenizer
from icefall_pathways.experiment import checkpoints
from icefall_pathways.experiment.icefall_checkpoints import is_foreign, read_weights
from icefall_pathways.models.config import ModelConfig
from icefall_pathways.models.transducer import VOCABULARY_LAYERS, Transducer, build_model
from icefall_pathways.options import from_dict
from icefall_pathways.training.config import ExperimentConfig, TrainingConfig

_MAX_ROWS = 30  # of a table in a message


@dataclass(frozen=True)
class Comparison:
    """How weights fit a model: every tensor of either is in exactly one of the lists.

    Attributes:
      source: The file of the weights.
      matched: Names of the tensors that both have in one shape; they are taken over.
      renewed: Those of vocabulary-sized layers that begin anew because this was asked for.
      differing: Names whose shapes differ, with the shape of the weights and that of the model.
      missing: Names that only the model has.
      extra: Names that only the weights have.
    """

    source: str
    matched: list[str]
    renewed: list[str]
    differing: dict[str, tuple[list[int], list[int]]]
    missing: list[str]
    extra: list[str]

    @property
    def fits(self) -> bool:
        """Whether nothing is left over on either side."""
        return not (self.differing or self.missing or self.extra)

    def __str__(self) -> str:
        told = [f"{self.source}: {len(self.matched)} tensors match"]
        if self.renewed:
            told[0] += f", {len(self.renewed)} of vocabulary-sized layers begin anew"
        rows = [(name, _shape(theirs), _shape(ours)) for name, (theirs, ours) in self.differing.items()]
        rows += [(name, "missing", "there") for name in self.missing]
        rows += [(name, "there", "missing") for name in self.extra]
        if rows:
            told[0] += (
                f", {len(self.differing)} differ in shape, {len(self.missing)} are missing, {len(self.extra)} extra"
            )
            width = max(len(name) for name, _, _ in rows[:_MAX_ROWS])
            told += [
                f"  {name:{width}}  {a:>14}  {b:>14}" for name, a, b in [("tensor", "file", "model"), *rows[:_MAX_ROWS]]
            ]
        if len(rows) > _MAX_ROWS:
            told.append(f"  ... and {len(rows) - _MAX_ROWS} more")
        return "\n".join(told)


def compare(source: str, weights: dict[str, Tensor], model: Transducer, reinit_vocab: bool = False) -> Comparison:
    """How weights fit a model; with `reinit_vocab`, its vocabulary-sized layers need nothing of them."""
    ours, matched, renewed, differing = model.state_dict(), [], [], {}
    for name, value in ours.items():
        if reinit_vocab and _is_vocabulary_sized(name):
            renewed.append(name)
        elif name in weights and weights[name].shape == value.shape:
            matched.append(name)
        elif name in weights:
            differing[name] = (list(weights[name].shape), list(value.shape))
    extra = [name for name in weights if name not in ours and not (reinit_vocab and _is_vocabulary_sized(name))]
    missing = [name for name in ours if name not in weights and name not in renewed]
    return Comparison(source, matched, renewed, differing, missing, extra)


def with_architecture(config: ExperimentConfig) -> ExperimentConfig:
    """The options with those of the architecture from the checkpoint of --init-from, so that nobody types them twice.

    Weights from elsewhere say nothing of their architecture: the options of the command line stay.

    Raises:
      ValueError: --init-from cannot be read, or its architecture is another one than options name.
    """
    init_from = config.training.init_from
    if init_from is None or is_foreign(init_from):
        if config.model.ctc_head and not config.training.ctc_loss_scale:
            raise ValueError("--ctc-head has no effect without --ctc-loss-scale, which makes the head: leave it out")
        return replace(config, model=replace(config.model, ctc_head=config.training.ctc_loss_scale > 0))
    _, checkpoint = checkpoints.find(init_from)
    model = from_dict(ModelConfig, checkpoint["config"]["model"])
    _refuse_other_architecture(config, model)
    return replace(config, model=model)


def _refuse_other_architecture(config: ExperimentConfig, model: ModelConfig) -> None:
    """Options of the architecture that were given, and are not those of the model of --init-from, would be ignored."""
    source = f"the model of --init-from {config.training.init_from}"
    for field in fields(ModelConfig):
        given, own = getattr(config.model, field.name), getattr(model, field.name)
        if given not in (field.default, own):
            raise ValueError(
                f"--{field.name.replace('_', '-')} is {given}, and {source} has {'its default' if own == '' else own}: "
                "its architecture is the one that is trained, so leave the option out"
            )
    if config.training.ctc_loss_scale > 0 and not model.ctc_head:
        raise ValueError(f"--ctc-loss-scale needs a CTC head, and {source} has none: leave the option out")


def source_file(init_from: Path) -> Path:
    """The file that --init-from stands for."""
    return init_from if is_foreign(init_from) else checkpoints.find(init_from)[0]


def starting_model(config: ExperimentConfig) -> tuple[Transducer, Comparison | None]:
    """The model that a training starts with, and how the weights of --init-from fit it.

    Raises:
      ValueError: They do not, and --init-partial does not allow it; the message has a table.
    """
    options = config.training
    model = build_model(config.model, Tokenizer(options.tokenizer_path).vocab_size)
    if options.init_from is None:
        return model, None
    path, weights = _weights(options)
    comparison = compare(str(path), weights, model, options.reinit_vocab)
    if not comparison.matched or not (comparison.fits or options.init_partial):
        raise ValueError(f"{comparison}\n{_advice(comparison)}")
    model.load_state_dict({**model.state_dict(), **{name: weights[name] for name in comparison.matched}})
    return model, comparison


def as_plain_data(comparison: Comparison) -> dict[str, Any]:
    """The comparison, for JSON."""
    return asdict(comparison)


def _weights(options: TrainingConfig) -> tuple[Path, dict[str, Tensor]]:
    """The file that --init-from stands for, and the weights in it that are asked for."""
    init_from, key, avg = options.init_from, options.init_key, options.init_avg
    assert init_from is not None
    if is_foreign(init_from):
        if avg:
            raise ValueError(f"--init-avg {avg}: {init_from} has no running average; choose weights with --init-key")
        return init_from, read_weights(init_from, None if key == "model" else key)
    path, checkpoint = checkpoints.find(init_from)
    bpe_model = options.tokenizer_path
    if not options.reinit_vocab and checkpoint.get("tokens") not in (None, checkpoints.file_hash(bpe_model)):
        raise ValueError(
            f"{path} was trained with other tokens than those of --bpe-model {bpe_model}: use the file that "
            f"{checkpoint['config']['training']['bpe_model']} was then, or begin the vocabulary-sized layers anew: "
            "--reinit-vocab 1"
        )
    return path, checkpoints.running_average(path, checkpoint, avg) if avg else checkpoint[key]


def _advice(comparison: Comparison) -> str:
    unfit = [*comparison.differing, *comparison.missing, *comparison.extra]
    if unfit and all(_is_vocabulary_sized(name) for name in unfit):
        return (
            "use the --bpe-model that it was trained with, or begin the vocabulary-sized layers anew: --reinit-vocab 1"
        )
    return (
        "give the options of the architecture that it has (--encoder-type, --zipformer, --causal, ...; other tokens: "
        "--reinit-vocab 1), or take over what matches and begin the rest anew: --init-partial 1"
    )


def _is_vocabulary_sized(name: str) -> bool:
    return name.rpartition(".")[0] in VOCABULARY_LAYERS


def _shape(sizes: list[int]) -> str:
    return "x".join(map(str, sizes)) or "scalar"
