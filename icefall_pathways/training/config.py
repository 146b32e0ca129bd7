"""The options of a training run and of a mask search."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from icefall_pathways.data.datamodule import DataConfig
from icefall_pathways.experiment.model_files import choose_tokenizer
from icefall_pathways.models.config import ModelConfig
from icefall_pathways.pathways.criteria import PruneCriterion, RegrowCriterion
from icefall_pathways.pathways.granularity import parse_granularity
from icefall_pathways.pathways.masks import MasksHeader
from icefall_pathways.pathways.schedules.registry import JointMethod, SearchMethod

OptimizerName = Literal["auto", "adamw", "scaled-adam"]

# Of the options that are counts: those that are at least 0, at least 1, at least 2.
_AT_LEAST = (
    "num_epochs num_updates init_avg max_bad_batches valid_wer_cuts start_epoch start_batch lr_warmup warm_updates",
    "world_size accum_grad save_every_n keep_last_k log_interval valid_interval average_period",
    "prune_range",
)


@dataclass(frozen=True)
class TrainingConfig:
    """How to train: length, loss, optimizer, checkpoints."""

    exp_dir: Path = Path("pruned_transducer_pathways/exp")
    """Where checkpoints, logs and TensorBoard files go."""

    bpe_model: Path | None = None
    """The SentencePiece model. None: the one stored in --exp-dir if a training is resumed, or in --init-from, or else
    data/lang_bpe_500/bpe.model."""

    init_from: Path | None = None
    """Start from the weights of this checkpoint, or of the newest one in this folder, and with its architecture. A
    checkpoint of icefall, a bare state dict or a .safetensors file serves too; it has no architecture, so that the
    options of the command line apply."""

    init_key: Literal["model", "model_avg"] = "model"
    """Which weights of --init-from: the last ones, or their average over the training."""

    reinit_vocab: bool = False
    """Begin the layers whose size is that of the vocabulary anew, for a start from a model of other tokens."""

    init_partial: bool = False
    """Take over what matches of --init-from and begin the rest anew; 0: a mismatch is an error."""

    init_avg: int = 0
    """With --init-from, start from the average that decoding takes with this --avg; 0: the weights as training left
    them."""

    masks: Path | None = None
    """Masks file: every language runs and trains through its own sub-network. None trains the dense model."""

    freeze_languages: str = ""
    """With --masks: languages whose output must not change; nothing that they compute with is trained."""

    world_size: int = 1
    """Number of processes (GPUs)."""

    master_port: int = 12354
    """Port of this machine on which the processes meet."""

    num_epochs: int = 30
    """Epochs to train; an epoch is as much audio as all languages have together. (A mask search is as long as its
    rounds.)"""

    num_updates: int = 0
    """Updates to train; 0 leaves it to --num-epochs."""

    start_epoch: int = 0
    """Resume after epoch start_epoch - 1; 0 resumes from the newest checkpoint if there is one."""

    start_batch: int = 0
    """Resume from checkpoint-<start_batch>.pt; 0 resumes from the newest checkpoint if there is one."""

    seed: int = 42
    """Seed of the weights, of the order of batches and of dropout and augmentation."""

    optimizer: OptimizerName = "auto"
    """adamw, or icefall's scaled-adam, both defined on the active entries. auto: scaled-adam with the Zipformer, adamw
    with the Emformer."""

    base_lr: float = 0.0
    """Base learning rate. 0: 0.045 with scaled-adam, where it is relative to the size of a tensor's weights; 0.0015
    with adamw."""

    lr_schedule: Literal["eden", "linear"] = "eden"
    """eden: icefall's decay by batches and epochs; linear: to zero at the last update, for short runs."""

    lr_batches: float = 7500
    """Eden: batches after which the learning rate falls."""

    lr_epochs: float = 3.5
    """Eden: epochs after which the learning rate falls."""

    lr_warmup: int = 500
    """Updates over which the learning rate rises to its full value."""

    weight_decay: float = 0.01
    """adamw: weight decay of matrices and convolution kernels."""

    clip_norm: float = 5.0
    """adamw: the gradient of the active entries is scaled down to this norm; 0 does not."""

    clipping_scale: float = 2.0
    """scaled-adam: the gradient of the active entries is scaled down to this many times its median norm, taken over the
    last 100 updates of the sub-network; 0 does not."""

    prune_range: int = 5
    """Symbols per frame in the pruned RNN-T loss."""

    lm_scale: float = 0.25
    """Share of the predictor-only scores in the simple loss."""

    am_scale: float = 0.0
    """Share of the encoder-only scores in the simple loss."""

    simple_loss_scale: float = 0.5
    """Scale of the simple loss after warm-up."""

    ctc_loss_scale: float = 0.0
    """Scale of the auxiliary CTC loss; it speeds up small runs. 0 leaves the CTC head out."""

    warm_updates: int = 2000
    """Updates over which the simple loss gives way to the pruned loss; 0 suits a start from trained weights."""

    ref_duration: float = 600.0
    """Seconds of audio in the batches that the Zipformer's schedules (dropout, skipping, balancers) count; the smaller,
    the faster they pass. They take 20000 of them; a short run wants fewer. With --init-from they are over."""

    use_fp16: bool = False
    """Mixed precision with float16 and a loss scaler (CUDA)."""

    use_bf16: bool = False
    """Mixed precision with bfloat16."""

    accum_grad: int = 1
    """Batches of each process per update, all of one language; their gradients are added up."""

    scan_batch_sizes: bool = False
    """Before training, find the largest batch of each language's longest cuts that fits into memory, and print it."""

    max_bad_batches: int = 20
    """Updates in a row that may be skipped because the loss or its gradient is not finite; one more ends the run."""

    inf_check: bool = False
    """Stop at the first module whose output or gradient is not finite, and name it; slow."""

    print_diagnostics: bool = False
    """Gather the sizes of all outputs, gradients and parameters over a few updates, print them and stop."""

    valid_interval: int = 500
    """Updates between validations."""

    valid_wer_cuts: int = 50
    """Dev cuts of each language that a validation decodes by greedy search, for the word error rate; 0 decodes none."""

    log_interval: int = 50
    """Updates between lines in the log and in metrics.jsonl."""

    save_every_n: int = 1000
    """Updates between checkpoints checkpoint-<update>.pt; the ends of epochs are saved as epoch-<N>.pt too."""

    keep_last_k: int = 10
    """Keep the newest k of checkpoint-<update>.pt."""

    average_period: int = 100
    """Updates between two updates of the running average of the weights."""

    tensorboard: bool = True
    """Write TensorBoard files."""

    @property
    def tokenizer_path(self) -> Path:
        """The SentencePiece model: --bpe-model, or the one that is used without it."""
        init_from = None if self.reinit_vocab else self.init_from
        return choose_tokenizer(self.exp_dir, self.bpe_model, init_from)

    def __post_init__(self) -> None:
        if self.use_fp16 and self.use_bf16:
            raise ValueError("--use-fp16 and --use-bf16 exclude each other: choose one")
        for name in ("base_lr", "clip_norm", "clipping_scale", "weight_decay", "ctc_loss_scale"):
            if getattr(self, name) < 0:
                raise ValueError(f"--{name.replace('_', '-')} is {getattr(self, name)}: expected 0 or more")
        if self.ref_duration <= 0:
            raise ValueError(f"--ref-duration is {self.ref_duration}: expected a positive number of seconds")
        if self.start_epoch and self.start_batch:
            raise ValueError("--start-epoch and --start-batch exclude each other: choose one")
        if self.freeze_languages and self.masks is None:
            raise ValueError("--freeze-languages needs --masks: which weights a language uses is told by its mask")
        if self.freeze_languages and self.init_from is None:
            raise ValueError("--freeze-languages needs --init-from: the model whose languages must not change")
        for least, names in enumerate(_AT_LEAST):
            for name in names.split():
                if getattr(self, name) < least:
                    raise ValueError(f"--{name.replace('_', '-')} is {getattr(self, name)}: expected at least {least}")
        for name in ("lr_batches", "lr_epochs"):
            if getattr(self, name) <= 0:
                raise ValueError(f"--{name.replace('_', '-')} is {getattr(self, name)}: expected a positive number")


@dataclass(frozen=True, kw_only=True)
class MaskShapeConfig:
    """What new masks look like. Masks that are read from a file keep their own shape."""

    prune_scope: Literal["encoder", "encoder-predictor"] = "encoder-predictor"
    """Which parts are pruned, if no --masks say it."""

    granularity: str = "element"
    """What is pruned as one: element, block:RxC (block:4x4; block:16x* for whole rows), row, column, or N:M (2:4)."""

    prune_allocation: Literal["layer-wise", "global"] = "layer-wise"
    """layer-wise: every tensor to the same sparsity; global: the smallest magnitudes of all tensors together go."""

    layer_sparsity: str = ""
    """Sparsities of single layers, as PATTERN=SPARSITY with the names of modules or parameters, such as
    "encoder.emformer_layers.0=0.5 decoder=0". The others make up for them: --sparsity is that of all together."""

    sparsity: float = 0.7
    """Share of the prunable entries that is pruned in the end, of all tensors together."""

    def __post_init__(self) -> None:
        parse_granularity(self.granularity).check_sparsity(self.sparsity)
        self.shape(MasksHeader(("",)))

    def shape(self, header: MasksHeader) -> MasksHeader:
        """The header of masks of this shape.

        Raises:
          ValueError: Values that do not go together.
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
    """How masks change while all languages are trained together."""

    prune_method: JointMethod = "none"
    """none: masks stay as they are; gradual: they shrink little by little; adaptive: dynamic pathways, every language's
    mask is taken anew every --prune-every updates, and entries may come back."""

    prune_for: Literal["each-language", "all-languages"] = "each-language"
    """each-language: every language has a mask of its own; all-languages: they share one."""

    prune_start: int = 0
    """Updates before which masks stay as they are."""

    prune_end: int = 0
    """No mask changes after this update; 0: after three quarters of the updates."""

    prune_every: int = 100
    """Updates between two changes of the masks."""

    prune_ramp: int = 0
    """adaptive: updates after --prune-start in which sparsity rises to its target; 0: two thirds of those up to
    --prune-end. Masks that have the target sparsity need no ramp. (gradual rises until --prune-end.)"""

    prune_by: PruneCriterion = "sensitivity"
    """What decides which entries of a language's mask stay: the shared weights' magnitudes (|w|), or these times the
    size of the language's own gradients (|w| rms(g))."""

    regrow: RegrowCriterion = "sensitivity"
    """adaptive: what decides which entries come (back): |w|, rms(g) or |w| rms(g)."""

    prune_exchange: float = 1.0
    """adaptive: share of a mask that may be exchanged at the first change; it falls to 0 until --prune-end."""


@dataclass(frozen=True)
class ExperimentConfig:
    """Everything that defines a training run."""

    training: TrainingConfig = field(default_factory=TrainingConfig)
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    pruning: JointPruningConfig = field(default_factory=JointPruningConfig)


@dataclass(frozen=True)
class PruningConfig(MaskShapeConfig):
    """How to look for masks."""

    prune_for: Literal["each-language", "all-languages"] = "each-language"
    """each-language: one mask per language, found on its data alone. all-languages: one mask for all of them (LAP)."""

    prune_method: SearchMethod = "imp"
    """imp: train and prune in rounds; lth: the same, every round from the first weights; gradual: rounds as in imp, but
    sparsity rises along a cubic curve; one-shot: a single round."""

    rewind_to: Path | None = None
    """lth: the checkpoint that every round goes back to, such as an early one of the dense run; None: --init-from."""

    prune_by: PruneCriterion = "magnitude"
    """What decides which entries stay: magnitudes (|w|, as the names of the methods say), or these times the size of
    the gradients (|w| rms(g)): after little training the masks of languages differ more."""

    prune_rounds: int = 0
    """Rounds of training and pruning; 0: as many as --prune-drop needs."""

    prune_drop: float = 0.2
    """Share of the remaining entries that a round removes (the paper's 20 %)."""

    updates_per_round: int = 1000
    """Updates of training before every pruning."""

    extend_masks: Path | None = None
    """Masks file of a trained pathways model: --languages are added to it, and the languages in it keep their masks."""

    num_jobs: int = 1
    """Languages searched at the same time, each in a process of its own."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_jobs < 1:
            raise ValueError(f"--num-jobs is {self.num_jobs}: expected at least 1")


@dataclass(frozen=True)
class MaskSearchConfig:
    """Everything that defines a mask search. The model's options are for an --init-from that has no architecture."""

    pruning: PruningConfig = field(default_factory=PruningConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
