"""Whole runs: one training, and the search for masks, which is one training per language."""

import os
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from icefall_pathways.data.datamodule import SpeechDataModule
from icefall_pathways.data.tokenizer import Tokenizer
from icefall_pathways.experiment import checkpoints, layout
from icefall_pathways.experiment.model_files import store_model_files
from icefall_pathways.files import read_json, write_json
from icefall_pathways.languages import LanguageCode, codes_of
from icefall_pathways.models.transducer import Transducer
from icefall_pathways.options import to_dict
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
    Comparison,
    as_plain_data,
    source_file,
    starting_model,
    with_architecture,
)
from icefall_pathways.training.launch.jobs import run_in_parallel
from icefall_pathways.training.launch.ranks import Rank, launch
from icefall_pathways.training.optimization import with_optimizer
from icefall_pathways.training.option_checks import check_search_options, check_training_options
from icefall_pathways.training.pruning_plan import joint_plan, search_plan, search_schedule
from icefall_pathways.training.trainer import Trainer

#: The transducer's submodules that each --prune-scope covers.
PRUNE_SCOPES = {"encoder": ("encoder_embed", "encoder"), "encoder-predictor": ("encoder_embed", "encoder", "decoder")}


# Options of a mask search that change nothing in what it finds for a language.
_FREE_IN_A_SEARCH = ("num_jobs", "extend_masks")


def train(config: ExperimentConfig, callbacks: Sequence[Callback] = ()) -> None:
    """Train as `config` says, from the newest checkpoint if there is one.

    Args:
      config: All options.
      callbacks: Further callbacks of the training loop; with several ranks it must be possible to pickle them.

    Raises:
      ValueError: Options, masks, checkpoints or data that do not fit together; the message says what to do.
    """
    config = with_optimizer(with_architecture(replace(config, training=_with_tokenizer(config.training))))
    check_training_options(config)
    languages = codes_of(config.data.languages)
    model, comparison = starting_model(config)
    if config.training.masks is not None:
        masks = PathwayMasks.load(config.training.masks).restrict(_frozen(config.training, languages) + languages)
        masks.check(model)
        if config.pruning.prune_method != "none":
            parse_granularity(masks.header.granularity).check_sparsity(config.pruning.sparsity)
        if config.training.freeze_languages:
            _check_vocabulary(config)
        _keep_masks(masks, config.training.exp_dir / _masks_to_begin_with(config))
    _write_start(config, comparison)
    launch(train_rank, config.training.world_size, config.training.master_port, config, None, callbacks)


def _keep_masks(masks: PathwayMasks, path: Path) -> None:
    """Write the masks that a training begins with; one that goes on must have been given the same."""
    if not layout.has_checkpoints(path.parent):
        masks.save(path)
    elif not path.exists() or not masks.equals(PathwayMasks.load(path)):
        raise ValueError(
            f"{path.parent} holds a training that did not begin with these masks ({path.name}): use the same --masks "
            "and --languages, in the same order, or another --exp-dir"
        )


def _with_tokenizer(training: TrainingConfig) -> TrainingConfig:
    """Set --bpe-model to the SentencePiece model that is used."""
    return replace(training, bpe_model=training.tokenizer_path)


def _frozen(training: TrainingConfig, languages: list[LanguageCode]) -> list[LanguageCode]:
    """The languages to freeze while `languages` are trained."""
    frozen = codes_of(training.freeze_languages) if training.freeze_languages else []
    if both := [code for code in frozen if code in languages]:
        raise ValueError(f"{', '.join(both)} in both --languages and --freeze-languages: either train it or freeze it")
    return frozen


def find_masks(config: MaskSearchConfig) -> None:
    """Find masks as `config` says and write them to the experiment's folder; finished languages are skipped.

    Raises:
      ValueError: Options, checkpoints or data that do not fit together; the message says what to do.
    """
    if config.training.init_from is None:
        raise ValueError("a mask search starts from a trained dense model: name it with --init-from")
    config = replace(config, training=_with_tokenizer(config.training))
    languages = codes_of(config.data.languages)
    extended = [] if config.pruning.extend_masks is None else [_masks_to_extend(config, config.pruning.extend_masks)]
    shared = config.pruning.prune_for == "all-languages"
    searches = [_search_config(config, group) for group in ([languages] if shared else [[code] for code in languages])]
    check_search_options(config, searches[0])
    model, comparison = starting_model(searches[0])
    _check_rewinding(config, model)
    _dense_masks(model, languages, config.pruning)  # finds out what is wrong with the options before hours
    wanted = _what_is_sought(config)
    for search in searches:
        _check_same_search(search.training.exp_dir, wanted)
    output = config.training.exp_dir / layout.MASKS_FILE
    _write_start(replace(config, model=searches[0].model), comparison)
    if config.training.print_diagnostics:
        _search(searches[0], config.pruning, wanted)
        return
    _run_searches(searches, config.pruning, wanted)
    found = (PathwayMasks.load(search.training.exp_dir / layout.MASKS_FILE) for search in searches)
    masks = PathwayMasks.merge(chain(extended, found))
    masks.save(output)
    told = ", ".join(f"{code} {100 * masks.sparsity(code):.1f} %" for code in masks.languages)
    print(f"Masks: {output} (sparsity: {told}; entries used by any language: {100 * masks.union_density():.1f} %)")


def _write_start(config: ExperimentConfig | MaskSearchConfig, comparison: Comparison | None) -> None:
    """Keep the options, and say how the weights of --init-from fit the model."""
    store_model_files(config.training.exp_dir, config.training.tokenizer_path)
    write_json(config.training.exp_dir / layout.CONFIG_FILE, to_dict(config))
    if comparison is not None:
        print(f"Starting from {comparison}")
        write_json(config.training.exp_dir / layout.INIT_FROM_FILE, as_plain_data(comparison))


def _check_rewinding(config: MaskSearchConfig, model: Transducer) -> None:
    """Find out before the first round whether its weights can go back to those of --rewind-to."""
    rewind_to = config.pruning.rewind_to
    if rewind_to is None:
        return
    if config.pruning.prune_method != "lth":
        raise ValueError(
            f"--rewind-to is for --prune-method lth; {config.pruning.prune_method} goes on from its weights"
        )
    start, goal = model.state_dict(), checkpoints.read(rewind_to)["model"]
    if {name: value.shape for name, value in start.items()} != {name: value.shape for name, value in goal.items()}:
        raise ValueError(
            f"--rewind-to {rewind_to} is of another model than --init-from {config.training.init_from}: name an "
            "earlier checkpoint of the same training"
        )


def _masks_to_extend(config: MaskSearchConfig, path: Path) -> PathwayMasks:
    """The masks to add languages to, checked before hours are spent on a search."""
    masks = PathwayMasks.load(path)
    languages = codes_of(config.data.languages)
    if known := [code for code in languages if code in masks.languages]:
        raise ValueError(f"{path} has masks of {', '.join(known)} already: name new languages with --languages")
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
    search = _search_config(config, languages)
    masks.check(starting_model(search)[0])
    _check_vocabulary(search)
    return masks


def _check_vocabulary(config: ExperimentConfig) -> None:
    """Check that the tokens, which were made for other languages, can write those of `config`."""
    tokenizer = Tokenizer(config.training.tokenizer_path)
    SpeechDataModule(config.data, tokenizer).check_vocabulary()


def _search_config(config: MaskSearchConfig, languages: list[LanguageCode]) -> ExperimentConfig:
    """The training that finds the mask which `languages` share."""
    training = replace(
        config.training,
        exp_dir=config.training.exp_dir / "-".join(languages),
        num_updates=search_schedule(config.pruning).num_updates,
    )
    data = replace(config.data, languages=" ".join(languages))
    return with_optimizer(with_architecture(ExperimentConfig(training, data, config.model)))


def _what_is_sought(config: MaskSearchConfig) -> dict[str, Any]:
    """What decides, beside the data and the training, which masks a search finds: plain data."""
    assert config.training.init_from is not None
    options = {name: value for name, value in to_dict(config.pruning).items() if name not in _FREE_IN_A_SEARCH}
    return options | {"hash of --init-from": checkpoints.file_hash(source_file(config.training.init_from))}


def _check_same_search(exp_dir: Path, wanted: dict[str, Any]) -> None:
    """Masks that a search with other options has found, or begun to find, are no substitute."""
    path = exp_dir / layout.CONFIG_FILE
    if not path.exists() or not (layout.has_checkpoints(exp_dir) or (exp_dir / layout.MASKS_FILE).exists()):
        return
    found = read_json(path).get("search", {})
    for name, value in wanted.items():
        if found.get(name, value) != value:
            raise ValueError(
                f"{exp_dir} holds a search with {name}={found[name]}, this one has {name}={value}: use the same "
                "options, or another --exp-dir"
            )


def _run_searches(searches: list[ExperimentConfig], pruning: PruningConfig, wanted: dict[str, Any]) -> None:
    if pruning.num_jobs > 1 and "RANK" in os.environ:
        raise ValueError("--num-jobs is for one machine: with torchrun all processes search one language at a time")
    waiting = [search for search in searches if not (search.training.exp_dir / layout.MASKS_FILE).exists()]
    if pruning.num_jobs == 1 or len(waiting) < 2:
        for search in waiting:
            _search(search, pruning, wanted)
        return
    jobs = [partial(_search, search, pruning, wanted, i) for i, search in enumerate(waiting)]
    run_in_parallel(jobs, pruning.num_jobs)


def _search(config: ExperimentConfig, pruning: PruningConfig, wanted: dict[str, Any], place: int = 0) -> None:
    os.environ["TQDM_POSITION"] = str(place)  # a line of its own for each search that runs at the same time
    training = config.training
    store_model_files(training.exp_dir, training.tokenizer_path)
    write_json(training.exp_dir / layout.CONFIG_FILE, to_dict(config) | {"search": wanted})
    launch(train_rank, training.world_size, training.master_port + place, config, pruning)


def train_rank(
    rank: Rank, config: ExperimentConfig, pruning: PruningConfig | None = None, callbacks: Sequence[Callback] = ()
) -> None:
    """Run one rank of a training, or of a mask search if `pruning` is given."""
    torch.manual_seed(config.training.seed)
    tokenizer = Tokenizer(config.training.tokenizer_path)
    data = SpeechDataModule(config.data, tokenizer)
    model, _ = starting_model(config)
    languages = [language.code for language in data.languages]
    if pruning is not None:
        masks = _dense_masks(model, languages, pruning)
        trainer = Trainer(config, model, data, tokenizer, rank, masks, search_plan(pruning, languages), callbacks)
    elif config.training.masks is not None or config.pruning.prune_method != "none":
        masks = _starting_masks(config, model, languages)
        num_updates = config.training.num_updates or config.training.num_epochs * data.updates_per_epoch(
            rank.world_size * config.training.accum_grad
        )
        plan = joint_plan(config.pruning, masks, num_updates)
        trainer = Trainer(config, model, data, tokenizer, rank, masks, plan, callbacks)
    else:
        trainer = Trainer(config, model, data, tokenizer, rank, callbacks=callbacks)
    if trainer.run() and trainer.plan is not None and rank.is_main:
        _save_found(trainer, config, pruning or config.pruning)


def _dense_masks(model: Transducer, languages: list[LanguageCode], shape: MaskShapeConfig) -> PathwayMasks:
    """Masks of all entries, which pruning will give the shape that the options ask for."""
    masks = PathwayMasks.dense(model, languages, PRUNE_SCOPES[shape.prune_scope])
    masks.header = shape.shape(masks.header)
    budget_groups(masks.header, {name: code.numel() for name, code in masks.codes.items()}, shape.sparsity)
    return masks


def _masks_to_begin_with(config: ExperimentConfig) -> str:
    return layout.MASKS_FILE if config.pruning.prune_method == "none" else layout.INITIAL_MASKS_FILE


def _starting_masks(config: ExperimentConfig, model: Transducer, languages: list[LanguageCode]) -> PathwayMasks:
    """Those of --masks; without, every language begins with all entries."""
    if config.training.masks is None:
        return _dense_masks(model, languages, config.pruning)
    return PathwayMasks.load(config.training.exp_dir / _masks_to_begin_with(config))


def _save_found(trainer: Trainer, config: ExperimentConfig, pruning: PruningConfig | JointPruningConfig) -> None:
    assert trainer.state.masks is not None and trainer.plan is not None
    found = trainer.state.masks.to("cpu")
    init_from = config.training.init_from
    found.header = replace(
        found.header,
        method=trainer.plan.schedule.method,
        target_sparsity=pruning.sparsity,
        source=checkpoints.file_hash(source_file(init_from)) if init_from is not None else "",
    )
    found.save(config.training.exp_dir / layout.MASKS_FILE)
