"""Options of trainings and mask searches."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from icefall_pathways.data.data_config import DataConfig, default_languages
from icefall_pathways.experiment.model_files import choose_tokenizer
from icefall_pathways.languages import LanguageList, normalize_languages
from icefall_pathways.models.config import ModelConfig
from icefall_pathways.models.losses import RnntLoss
from icefall_pathways.pathways.criteria import PruneCriterion, RegrowCriterion
from icefall_pathways.pathways.granularity import parse_granularity
from icefall_pathways.pathways.masks import MasksHeader
from icefall_pathways.pathways.schedules.registry import JointMethod, SearchMethod
from icefall_pathways.ranges import Options, Port, PositiveFloat, PositiveInt, Range, Seed, Share, ShareBelowOne

OptimizerName = Literal["auto", "adamw", "scaled-adam"]


@dataclass(frozen=True)
class TrainingConfig(Options):
    """Options of training: initialization, length, loss, optimizer, checkpoints."""

    exp_dir: Path = Path("pruned_transducer_pathways/exp")
    """Experiment folder: checkpoints, logs and TensorBoard files."""

    bpe_model: Path | None = None
    """SentencePiece model. None: the model stored in --exp-dir if a training is resumed, else the one stored in
    --init-from, else data/lang_bpe_500/bpe.model."""

    init_from: Path | None = None
    """Initialize the weights from this checkpoint, or from the newest one in this experiment folder, and use its
    architecture. An icefall checkpoint, a plain state dict or a .safetensors file works too; it does not record an
    architecture, so use the model options to describe it."""

    init_key: Literal["model", "model_avg"] = "model"
    """Weights of --init-from to use: the current weights (model) or their running average (model_avg)."""

    reinit_vocab: bool = False
    """Reinitialize the layers whose size depends on the vocabulary, to start from a model with other tokens."""

    init_partial: bool = False
    """Load the tensors of --init-from that match and reinitialize the rest. If 0, any mismatch is an error."""

    init_avg: int = 0
    """With --init-from: initialize from the average that decoding uses with this --avg. 0: use the weights of
    --init-key."""

    masks: Path | None = None
    """Masks file: train the sub-network of each language. None: train the dense model."""

    freeze_languages: LanguageList = ()
    """With --masks: languages whose output must not change; the weights that they use are not trained."""

    world_size: PositiveInt = 1
    """Number of processes (GPUs)."""

    master_port: Port = 12354
    """Port for the process-group rendezvous on this machine."""

    num_epochs: int = 30
    """Number of epochs; one epoch processes as much audio as all languages have together. (Its rounds determine the
    length of a mask search.)"""

    num_updates: int = 0
    """Number of updates. 0: the updates in --num-epochs."""

    start_epoch: int = 0
    """Resume after epoch START_EPOCH - 1. 0: resume from the newest checkpoint, if there is one."""

    start_batch: int = 0
    """Resume from checkpoint-START_BATCH.pt. 0: resume from the newest checkpoint, if there is one."""

    seed: Seed = 42
    """Random seed for weights, order of batches, dropout and augmentation."""

    optimizer: OptimizerName = "auto"
    """adamw, or scaled-adam of icefall; both update only the active entries of a language. auto: the
    optimizer that models/registry.py selects for the encoder."""

    base_lr: float = 0.0
    """Base learning rate. 0: 0.045 for scaled-adam, where it is relative to the RMS of each parameter tensor; 0.0015
    for adamw."""

    lr_schedule: Literal["eden", "linear"] = "eden"
    """eden: decay by batches and epochs, as in icefall; linear: decay to zero at the last update, for short
    trainings."""

    lr_batches: PositiveFloat = 7500
    """eden: number of batches after which the learning rate decays."""

    lr_epochs: PositiveFloat = 3.5
    """eden: number of epochs after which the learning rate decays."""

    lr_warmup: int = 500
    """Updates of linear learning rate warm-up."""

    weight_decay: float = 0.01
    """adamw: weight decay of matrices and convolution kernels."""

    clip_norm: float = 5.0
    """adamw: clip the gradient of the active entries to this norm. 0: no clipping."""

    clipping_scale: float = 2.0
    """scaled-adam: clip the gradient of the active entries to this multiple of its median norm over the last 100
    updates of the sub-network. 0: no clipping."""

    rnnt_loss: RnntLoss = "auto"
    """Implementation of the pruned RNN-T loss: k2, or builtin, which needs only torch. auto: k2 if it can be
    imported."""

    prune_range: Annotated[int, Range(2)] = 5
    """Symbols per frame in the pruned RNN-T loss."""

    lm_scale: float = 0.25
    """Weight of the predictor-only scores in the simple loss."""

    am_scale: float = 0.0
    """Weight of the encoder-only scores in the simple loss."""

    simple_loss_scale: float = 0.5
    """Scale of the simple loss after warm-up."""

    ctc_loss_scale: float = 0.0
    """Scale of the auxiliary CTC loss, which helps small trainings to converge. 0: no CTC head."""

    warm_updates: int = 2000
    """Updates over which training shifts from the simple loss to the pruned loss. Use 0 with trained weights."""

    ref_duration: PositiveFloat = 600.0
    """Seconds of audio in a reference batch. The schedules of the Zipformer (dropout, layer skipping, balancers) count
    reference batches and end after 20000 of them, so lower it for a short training. With --init-from, training starts
    after their end."""

    use_fp16: bool = False
    """Mixed precision with float16 and a loss scaler (CUDA)."""

    use_bf16: bool = False
    """Mixed precision with bfloat16."""

    accum_grad: PositiveInt = 1
    """Batches per process and update, all of one language; their gradients are summed."""

    allow_new_batch_size: bool = False
    """Resume with another number of batches per update (--world-size times --accum-grad) or another --max-duration. 0:
    both must be the same; --world-size may change, because every update then has the same batches."""

    scan_batch_sizes: bool = False
    """Before training, find and print the largest --max-duration whose batches of the longest cuts fit into memory, for
    each language."""

    max_bad_batches: int = 20
    """Number of consecutive updates that may be skipped because of a non-finite loss or gradient; training stops after
    one more."""

    inf_check: bool = False
    """Stop at the first module with a non-finite output or gradient, and report its name. Slow."""

    print_diagnostics: bool = False
    """Print statistics of all outputs, gradients and parameters over a few updates, then exit."""

    valid_interval: PositiveInt = 500
    """Updates between validations."""

    valid_wer_cuts: int = 50
    """Dev cuts per language that each validation decodes by greedy search to report the word error rate. 0: none."""

    valid_max_hours: float = 5.0
    """Hours of dev audio per language of each validation, drawn once; 0: the whole dev set."""

    log_interval: PositiveInt = 50
    """Updates between records in the log and in metrics.jsonl."""

    save_every_n: PositiveInt = 1000
    """Updates between checkpoints checkpoint-UPDATE.pt. Each epoch ends with a checkpoint epoch-N.pt as well."""

    keep_last_k: PositiveInt = 10
    """Number of checkpoints checkpoint-UPDATE.pt to keep."""

    keep_last_epochs: Annotated[int, Range(2)] = 30
    """Number of checkpoints epoch-N.pt to keep. --epoch N --avg A of decoding needs those of epochs N - A to N."""

    average_period: PositiveInt = 100
    """Updates between two updates of the running average of the weights."""

    tensorboard: bool = True
    """Write TensorBoard files."""

    @property
    def tokenizer_path(self) -> Path:
        """Path of the SentencePiece model: --bpe-model, or its default."""
        init_from = None if self.reinit_vocab else self.init_from
        return choose_tokenizer(self.exp_dir, self.bpe_model, init_from)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "freeze_languages", normalize_languages(self.freeze_languages))
        if self.use_fp16 and self.use_bf16:
            raise ValueError("--use-fp16 and --use-bf16 exclude each other: choose one")
        if self.start_epoch and self.start_batch:
            raise ValueError("--start-epoch and --start-batch exclude each other: choose one")
        if self.freeze_languages and self.masks is None:
            raise ValueError("--freeze-languages needs --masks: they define which weights a language uses")
        if self.freeze_languages and self.init_from is None:
            raise ValueError("--freeze-languages needs --init-from: the model whose languages must not change")


@dataclass(frozen=True, kw_only=True)
class MaskShapeConfig(Options):
    """Shape of new masks. Masks that are read from a file keep their own shape."""

    prune_scope: Literal["encoder", "encoder-predictor"] = "encoder-predictor"
    """Submodules to prune: the encoder, or the encoder and the predictor. Masks of --masks keep their own scope."""

    granularity: str = "element"
    """Entries that are pruned together: element, block:RxC (such as block:4x4, or block:16x* for 16 whole rows), row,
    column, or N:M (such as 2:4)."""

    prune_allocation: Literal["layer-wise", "global"] = "layer-wise"
    """layer-wise: the same sparsity for every tensor; global: prune the entries with the lowest scores over all
    tensors."""

    layer_sparsity: str = ""
    """Sparsity of individual layers, as PATTERN=SPARSITY with names of modules or parameters:
    "encoder.emformer_layers.0=0.5 decoder=0". The other layers compensate: --sparsity remains the overall sparsity."""

    sparsity: ShareBelowOne = 0.7
    """Target sparsity: share of the prunable entries that are pruned, over all tensors."""

    def __post_init__(self) -> None:
        super().__post_init__()
        parse_granularity(self.granularity).check_sparsity(self.sparsity)
        self.shape(MasksHeader(("",)))

    def shape(self, header: MasksHeader) -> MasksHeader:
        """Return the header of masks of this shape.

        Raises:
          ValueError: The values are incompatible.
        """
        return replace(
            header,
            granularity=self.granularity,
            allocation=self.prune_allocation,
            layer_sparsity=self.layer_sparsity,
            target_sparsity=self.sparsity,
        )


@dataclass(frozen=True)
class JointPruningConfig(MaskShapeConfig):
    """Changes of the masks during the joint training of all languages."""

    prune_method: JointMethod = "none"
    """none: fixed masks; gradual: prune gradually; adaptive: dynamic pathways, which prune and regrow the mask of each
    language every --prune-every updates."""

    prune_for: Literal["each-language", "all-languages"] = "each-language"
    """each-language: one mask per language; all-languages: one shared mask."""

    prune_start: int = 0
    """Number of updates before the first change of the masks."""

    prune_end: int = 0
    """Update after which masks are fixed. 0: after three quarters of the updates."""

    prune_every: PositiveInt = 100
    """Updates between two changes of the masks."""

    prune_ramp: int = 0
    """adaptive: number of updates after --prune-start over which the sparsity rises to its target. 0: two thirds of the
    updates from --prune-start to --prune-end. Not used if the masks have the target sparsity already. (With gradual,
    the sparsity rises until --prune-end.)"""

    prune_by: PruneCriterion = "sensitivity"
    """Criterion that ranks the entries to keep, by the shared weights w and the gradients g of the language;
    pathways/criteria.py has the formulas, such as |w| rms(g) for sensitivity."""

    regrow: RegrowCriterion = "sensitivity"
    """adaptive: criterion that ranks the entries to regrow; see --prune-by."""

    prune_exchange: Share = 1.0
    """adaptive: share of a mask that the first change may exchange; it decays to 0 until --prune-end."""


@dataclass(frozen=True)
class ExperimentConfig:
    """All options of a training."""

    training: TrainingConfig = field(default_factory=TrainingConfig)
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    pruning: JointPruningConfig = field(default_factory=JointPruningConfig)


@dataclass(frozen=True)
class PruningConfig(MaskShapeConfig):
    """Options of a mask search."""

    prune_for: Literal["each-language", "all-languages"] = "each-language"
    """each-language: one mask per language, found on its data alone; all-languages: one mask for all of them (LAP)."""

    prune_method: SearchMethod = "imp"
    """imp: iterative magnitude pruning, in rounds of training and pruning; lth: the same with rewinding of the weights
    after each round; gradual: rounds as in imp, with a sparsity that follows a cubic curve; one-shot: a single
    round; random: random masks by --seed, without training."""

    rewind_to: Path | None = None
    """lth: checkpoint to which each round rewinds the weights, such as an early one of the dense training. None:
    --init-from."""

    prune_by: PruneCriterion = "magnitude"
    """Criterion that ranks the entries to keep; pathways/criteria.py has the formulas, such as |w| for magnitude. After
    little training, masks by sensitivity (|w| rms(g)) differ more between languages."""

    prune_rounds: int = 0
    """Number of rounds of training and pruning. 0: as many as --prune-drop needs."""

    prune_drop: Annotated[float, Range(0, 1, open_minimum=True, open_maximum=True)] = 0.2
    """Share of the remaining entries that each round prunes (20 % in the paper)."""

    updates_per_round: PositiveInt = 1000
    """Training updates before each pruning step."""

    extend_masks: Path | None = None
    """Masks file of a trained pathways model: add masks of --languages to it; the masks of its languages stay
    unchanged."""

    num_jobs: PositiveInt = 1
    """Number of languages to search in parallel, each in its own process."""


@dataclass(frozen=True)
class MaskSearchConfig:
    """All options of a mask search. Model options are only for an --init-from that does not record its architecture."""

    pruning: PruningConfig = field(default_factory=PruningConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)


TrainingOptions = TypeVar("TrainingOptions", ExperimentConfig, MaskSearchConfig)


def with_languages_of_data(config: TrainingOptions, default: TrainingOptions) -> TrainingOptions:
    """Return the defaults with the languages of the data folder, see `default_languages`."""
    return replace(default, data=replace(default.data, languages=default_languages(config.data)))
