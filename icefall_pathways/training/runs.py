"""Complete runs: trainings and mask searches. A mask search runs one training per language."""

import os
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from icefall_pathways.data.corpus_cuts import CorpusCuts
from icefall_pathways.data.datamodule import SpeechDataModule
from icefall_pathways.data.tokenizer import Tokenizer
from icefall_pathways.experiment import checkpoints, layout
from icefall_pathways.experiment.model_files import store_model_files
from icefall_pathways.files import exclusive_lock, read_json, write_json
from icefall_pathways.languages import LanguageCode, parse_languages
from icefall_pathways.launch.jobs import run_in_parallel
from icefall_pathways.launch.ranks import Rank, launch
from icefall_pathways.models.losses import resolve_rnnt_loss
from icefall_pathways.models.transducer import Transducer
from icefall_pathways.options import quoted_command_line, to_dict
from icefall_pathways.pathways.allocation import budget_groups
from icefall_pathways.pathways.granularity import parse_granularity
from icefall_pathways.pathways.masks import PathwayMasks
from icefall_pathways.training.callbacks import Callback
from icefall_pathways.training.config import (
    ExperimentConfig,
    JointPruningConfig,
    MaskSearchConfig,
    MaskShapeConfig,
    PruningConfig,
    TrainingConfig,
)
from icefall_pathways.training.initialization import (
    InitialCheckpoint,
    WeightComparison,
    build_initial_model,
    read_initial_checkpoint,
    with_architecture,
    with_level_norm,
)
from icefall_pathways.training.optimization import with_optimizer
from icefall_pathways.training.option_checks import check_search_options, check_training_options
from icefall_pathways.training.pruning_callback import PruningPlan
from icefall_pathways.training.pruning_plan import joint_plan, search_plan, search_schedule
from icefall_pathways.training.trainer import Trainer

#: The submodules of the transducer that each --prune-scope covers.
PRUNE_SCOPES = {"encoder": ("encoder_embed", "encoder"), "encoder-predictor": ("encoder_embed", "encoder", "decoder")}


# Options of a mask search that do not change the mask of a language.
_NOT_IN_FINGERPRINT = ("num_jobs", "extend_masks")


def train(config: ExperimentConfig, callbacks: Sequence[Callback] = ()) -> None:
    """Run a training; resume from its newest checkpoint if there is one.

    Args:
      config: All options.
      callbacks: Additional callbacks of the training loop; with several ranks they must be picklable.

    Raises:
      ValueError: Options, masks, checkpoints or data are missing or incompatible; the message says what to do.
    """
    config = replace(config, training=_resolve_defaults(config.training))
    initial = read_initial_checkpoint(config.training)
    config = replace(config, data=with_level_norm(config.data, config.training.exp_dir, initial))
    config = with_optimizer(with_architecture(config, initial))
    check_training_options(config, initial)
    model, comparison = build_initial_model(config, initial)
    if config.training.masks is not None:
        frozen = _frozen_languages(config)
        masks = PathwayMasks.load(config.training.masks).restrict([*frozen, *config.data.languages])
        masks.check(model)
        if config.pruning.prune_method != "none":
            parse_granularity(masks.header.granularity).check_sparsity(config.pruning.sparsity)
        if frozen:
            _check_vocabulary(config)
        _pin_initial_masks(masks, config.training.exp_dir / _initial_masks_file(config))
    _write_run_files(config, comparison)
    launch(train_rank, config.training.world_size, config.training.master_port, config, None, initial, callbacks)


def _pin_initial_masks(masks: PathwayMasks, path: Path) -> None:
    """Write the initial masks of a training, or check that a resumed training gets the same masks."""
    if not layout.has_checkpoints(path.parent):
        masks.save(path)
    elif not path.exists() or not masks.equals(PathwayMasks.load(path)):
        raise ValueError(
            f"{path.parent} holds a training that did not start with these masks ({path.name}): use the same --masks "
            "and --languages, in the same order, or another --exp-dir (--exp-root of run.sh)"
        )


def _resolve_defaults(training: TrainingConfig) -> TrainingConfig:
    """Set --bpe-model to the SentencePiece model and --rnnt-loss to the implementation that are used."""
    return replace(training, bpe_model=training.tokenizer_path, rnnt_loss=resolve_rnnt_loss(training.rnnt_loss))


def _frozen_languages(config: ExperimentConfig) -> Sequence[LanguageCode]:
    """Return the languages of --freeze-languages; check that none of them is trained."""
    frozen = config.training.freeze_languages
    if overlap := [code for code in frozen if code in config.data.languages]:
        raise ValueError(
            f"{', '.join(overlap)} in both --languages and --freeze-languages: either train it or freeze it"
        )
    return frozen


def find_masks(config: MaskSearchConfig) -> None:
    """Find masks and write them to the experiment folder; finished languages are skipped.

    Raises:
      ValueError: Options, masks, checkpoints or data are missing or incompatible; the message says what to do.
    """
    config = replace(config, training=_resolve_defaults(config.training))
    initial = read_initial_checkpoint(config.training)
    if initial is None:
        raise ValueError("a mask search starts from a trained dense model: specify it with --init-from")
    config = replace(config, data=with_level_norm(config.data, config.training.exp_dir, initial))
    languages = config.data.languages
    groups = [languages] if config.pruning.prune_for == "all-languages" else [[code] for code in languages]
    searches = [_search_config(config, group, initial) for group in groups]
    check_search_options(config, searches[0], initial)
    model, comparison = build_initial_model(searches[0], initial)
    extended = []
    if config.pruning.extend_masks is not None:
        extended.append(_load_masks_to_extend(config, config.pruning.extend_masks, model))
        _check_vocabulary(_search_config(config, languages, initial))
    _check_rewinding(config, model)
    _dense_masks(model, languages, config.pruning)  # checks the mask options
    fingerprint = search_fingerprint(config.pruning, config.training.seed, initial)
    for search in searches:
        _check_fingerprint(search.training.exp_dir, fingerprint)
    _write_run_files(replace(config, model=searches[0].model), comparison)
    if config.training.print_diagnostics:
        _run_search(searches[0], config.pruning, initial, fingerprint)
        return
    _run_searches(searches, config.pruning, initial, fingerprint)
    results = (PathwayMasks.load(search.training.exp_dir / layout.MASKS_FILE) for search in searches)
    masks = PathwayMasks.merge(chain(extended, results))
    output = config.training.exp_dir / layout.MASKS_FILE
    masks.save(output)
    sparsity = ", ".join(f"{code} {100 * masks.sparsity(code):.1f} %" for code in masks.languages)
    print(f"Masks: {output} (sparsity: {sparsity}; entries used by any language: {100 * masks.union_density():.1f} %)")


def _write_run_files(config: ExperimentConfig | MaskSearchConfig, comparison: WeightComparison | None) -> None:
    """Write the tokenizer, the options, the command and the comparison with --init-from to the experiment folder."""
    store_model_files(config.training.exp_dir, config.training.tokenizer_path, config.data.fbank)
    options = to_dict(config) | {"command": quoted_command_line()}
    write_json(config.training.exp_dir / layout.CONFIG_FILE, options)
    if comparison is not None:
        print(f"Starting from {comparison}")
        write_json(config.training.exp_dir / layout.INIT_FROM_FILE, asdict(comparison))


def _check_rewinding(config: MaskSearchConfig, model: Transducer) -> None:
    """Check before the first round that the weights of --rewind-to fit the model."""
    rewind_to = config.pruning.rewind_to
    if rewind_to is None:
        return
    if config.pruning.prune_method != "lth":
        raise ValueError(
            f"--rewind-to is for --prune-method lth; {config.pruning.prune_method} does not rewind its weights"
        )
    initial, rewound = model.state_dict(), checkpoints.read(rewind_to)["model"]
    if {name: value.shape for name, value in initial.items()} != {name: v.shape for name, v in rewound.items()}:
        raise ValueError(
            f"--rewind-to {rewind_to} is of another model than --init-from {config.training.init_from}: use an "
            "earlier checkpoint of the same training"
        )


def _load_masks_to_extend(config: MaskSearchConfig, path: Path, model: Transducer) -> PathwayMasks:
    """Load the masks to extend, and check them before a search that takes hours."""
    masks = PathwayMasks.load(path)
    languages = config.data.languages
    if existing := [code for code in languages if code in masks.languages]:
        raise ValueError(f"{path} has masks of {', '.join(existing)} already: list only new languages with --languages")
    roots = PRUNE_SCOPES[config.pruning.prune_scope]
    if masks.header.roots != roots:
        raise ValueError(
            f"{path} covers {', '.join(masks.header.roots)}, --prune-scope {config.pruning.prune_scope} covers "
            f"{', '.join(roots)}: use the scope that the masks were found with"
        )
    if masks.header.granularity != config.pruning.granularity:
        raise ValueError(
            f"{path} has granularity {masks.header.granularity}, the search {config.pruning.granularity}: use "
            f"--granularity {masks.header.granularity}"
        )
    masks.check(model)
    return masks


def _check_vocabulary(config: ExperimentConfig) -> None:
    """Check that the tokenizer, which was trained on other languages, covers the languages of `config`."""
    tokenizer = Tokenizer(config.training.tokenizer_path)
    CorpusCuts(config.data, tokenizer).check_vocabulary(parse_languages(config.data.languages))


def _search_config(
    config: MaskSearchConfig, languages: Sequence[LanguageCode], initial: InitialCheckpoint
) -> ExperimentConfig:
    """Return the options of the training that finds one mask for `languages`."""
    training = replace(
        config.training,
        exp_dir=config.training.exp_dir / "-".join(languages),
        num_updates=search_schedule(config.pruning, config.training.seed).num_updates,
    )
    data = replace(config.data, languages=tuple(languages))
    return with_optimizer(with_architecture(ExperimentConfig(training, data, config.model), initial))


def search_fingerprint(pruning: PruningConfig, seed: int, initial: InitialCheckpoint) -> dict[str, Any]:
    """Return, as plain data, what determines the masks of a search except its data and training options."""
    options = {name: value for name, value in to_dict(pruning).items() if name not in _NOT_IN_FINGERPRINT}
    if pruning.prune_method == "random":
        options["seed"] = seed
    return options | {"hash of --init-from": initial.file_hash}


def _check_fingerprint(exp_dir: Path, fingerprint: dict[str, Any]) -> None:
    """Check that the masks or checkpoints in a folder come from a search with the same fingerprint."""
    path = exp_dir / layout.CONFIG_FILE
    if not path.exists() or not (layout.has_checkpoints(exp_dir) or (exp_dir / layout.MASKS_FILE).exists()):
        return
    stored = read_json(path).get("search", {})
    for name, value in fingerprint.items():
        if stored.get(name, value) != value:
            raise ValueError(
                f"{exp_dir} holds a search with {name}={stored[name]}, this one has {name}={value}: use the same "
                "options, or another --exp-dir (--exp-root of run.sh)"
            )


def _run_searches(
    searches: list[ExperimentConfig], pruning: PruningConfig, initial: InitialCheckpoint, fingerprint: dict[str, Any]
) -> None:
    if pruning.num_jobs > 1 and "RANK" in os.environ:
        raise ValueError("--num-jobs is for one machine: with torchrun all processes search one language at a time")
    waiting = [search for search in searches if not (search.training.exp_dir / layout.MASKS_FILE).exists()]
    jobs = [partial(_run_search, search, pruning, initial, fingerprint, i) for i, search in enumerate(waiting)]
    if pruning.num_jobs > 1 and len(jobs) > 1:
        run_in_parallel(jobs, pruning.num_jobs)
    else:
        for search in waiting:
            _run_search(search, pruning, initial, fingerprint)


def _run_search(
    config: ExperimentConfig,
    pruning: PruningConfig,
    initial: InitialCheckpoint,
    fingerprint: dict[str, Any],
    index: int | None = None,
) -> None:
    """Run the search of one language; `index` counts the parallel searches, each in a process of its own."""
    if index is not None:
        os.environ["TQDM_POSITION"] = str(index)  # a separate line of the terminal for each parallel search
    training = config.training
    store_model_files(training.exp_dir, training.tokenizer_path, config.data.fbank)
    write_json(training.exp_dir / layout.CONFIG_FILE, to_dict(config) | {"search": fingerprint})
    plan = search_plan(pruning, config.data.languages, training.seed)
    if not plan.schedule.needs_training:
        _find_masks_without_training(config, pruning, plan, initial)
        return
    launch(train_rank, training.world_size, training.master_port + (index or 0), config, pruning, initial)


def _find_masks_without_training(
    config: ExperimentConfig, pruning: PruningConfig, plan: PruningPlan, initial: InitialCheckpoint
) -> None:
    model, _ = build_initial_model(config, initial)
    masks = _dense_masks(model, config.data.languages, pruning)
    for languages in plan.groups:
        plan.schedule.prune_after(plan.schedule.num_updates, model, masks, languages)
    _save_masks(masks, plan, config, pruning, initial)


def train_rank(
    rank: Rank,
    config: ExperimentConfig,
    pruning: PruningConfig | None = None,
    initial: InitialCheckpoint | None = None,
    callbacks: Sequence[Callback] = (),
) -> None:
    """Run one rank of a training, or of a mask search if `pruning` is given.

    Args:
      rank: This rank.
      config: All options, with the resolved architecture, optimizer and tokenizer.
      pruning: The options of the mask search.
      initial: The checkpoint of --init-from; None reads it if `config` has one.
      callbacks: Additional callbacks of the training loop.

    Raises:
      ValueError: Another process trains in the same folder, or options or data are incompatible.
    """
    with exclusive_lock(config.training.exp_dir / layout.LOCK_FILE) if rank.is_main else nullcontext():
        _train_rank(rank, config, pruning, initial, callbacks)


def _train_rank(
    rank: Rank,
    config: ExperimentConfig,
    pruning: PruningConfig | None,
    initial: InitialCheckpoint | None,
    callbacks: Sequence[Callback],
) -> None:
    torch.manual_seed(config.training.seed)
    tokenizer = Tokenizer(config.training.tokenizer_path)
    data = SpeechDataModule(config.data, tokenizer)
    initial = initial or read_initial_checkpoint(config.training)
    model, _ = build_initial_model(config, initial)
    languages = [language.code for language in data.languages]
    if pruning is not None:
        masks = _dense_masks(model, languages, pruning)
        search = search_plan(pruning, languages, config.training.seed)
        trainer = Trainer(config, model, data, tokenizer, rank, masks, search, callbacks)
    elif config.training.masks is not None or config.pruning.prune_method != "none":
        masks = _initial_masks(config, model, languages)
        num_updates = config.training.num_updates or config.training.num_epochs * data.updates_per_epoch(
            rank.world_size * config.training.accum_grad
        )
        plan = joint_plan(config.pruning, masks, num_updates)
        trainer = Trainer(config, model, data, tokenizer, rank, masks, plan, callbacks)
    else:
        trainer = Trainer(config, model, data, tokenizer, rank, callbacks=callbacks)
    if trainer.run() and trainer.plan is not None and rank.is_main:
        assert trainer.state.masks is not None
        _save_masks(trainer.state.masks.to("cpu"), trainer.plan, config, pruning or config.pruning, initial)


def _dense_masks(model: Transducer, languages: Sequence[LanguageCode], shape: MaskShapeConfig) -> PathwayMasks:
    """Return masks that keep all entries, with the given shape options; check that these options fit the model."""
    masks = PathwayMasks.dense(model, languages, PRUNE_SCOPES[shape.prune_scope])
    masks.header = shape.shape(masks.header)
    budget_groups(masks.header, {name: code.numel() for name, code in masks.codes.items()}, shape.sparsity)
    return masks


def _initial_masks_file(config: ExperimentConfig) -> str:
    return layout.MASKS_FILE if config.pruning.prune_method == "none" else layout.INITIAL_MASKS_FILE


def _initial_masks(config: ExperimentConfig, model: Transducer, languages: Sequence[LanguageCode]) -> PathwayMasks:
    """Return the masks of --masks, or masks that keep all entries."""
    if config.training.masks is None:
        return _dense_masks(model, languages, config.pruning)
    return PathwayMasks.load(config.training.exp_dir / _initial_masks_file(config))


def _save_masks(
    masks: PathwayMasks,
    plan: PruningPlan,
    config: ExperimentConfig,
    pruning: PruningConfig | JointPruningConfig,
    initial: InitialCheckpoint | None,
) -> None:
    masks.header = replace(
        masks.header,
        method=plan.schedule.method,
        target_sparsity=pruning.sparsity,
        source=initial.file_hash if initial is not None else "",
    )
    masks.save(config.training.exp_dir / layout.MASKS_FILE)
