"""Whole runs: one training, and the search for masks, which is one training per language."""

import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context

import torch

from icefall_pathways.data.datamodule import SpeechDataModule
from icefall_pathways.data.tokenizer import Tokenizer
from icefall_pathways.files import write_json
from icefall_pathways.languages import parse_languages
from icefall_pathways.models.transducer import Transducer
from icefall_pathways.options import to_dict
from icefall_pathways.pathways.masks import PathwayMasks
from icefall_pathways.training import checkpoints
from icefall_pathways.training.config import ExperimentConfig, JointPruningConfig, MaskSearchConfig, PruningConfig
from icefall_pathways.training.distributed import Rank, launch
from icefall_pathways.training.initialisation import (
    Comparison,
    as_plain_data,
    source_file,
    starting_model,
    with_architecture,
)
from icefall_pathways.training.optimization import with_optimizer
from icefall_pathways.training.plans import joint_plan, search_plan, search_schedule
from icefall_pathways.training.trainer import Trainer

MASKS_FILE = "masks.safetensors"
START_MASKS_FILE = "masks-start.safetensors"  # those that a training which changes its masks begins with

#: The transducer's submodules that each --prune-scope covers.
PRUNING_ROOTS = {"encoder": ("encoder_embed", "encoder"), "encoder-predictor": ("encoder_embed", "encoder", "decoder")}


def train(config: ExperimentConfig) -> None:
    """Train as `config` says, from the newest checkpoint if there is one.

    Raises:
      ValueError: Options, masks, checkpoints or data that do not fit together; the message says what to do.
    """
    config = with_optimizer(with_architecture(config))
    languages = [language.code for language in parse_languages(config.data.languages)]
    model, comparison = starting_model(config)
    if config.training.masks is not None:
        masks = PathwayMasks.load(config.training.masks).restrict(languages)
        masks.check(model)
        masks.save(config.training.exp_dir / _masks_to_begin_with(config))
    _write_start(config, comparison)
    launch(_train_rank, config.training.world_size, config.training.master_port, config, None)


def find_masks(config: MaskSearchConfig) -> None:
    """Find masks as `config` says and write them to the experiment's folder; finished languages are skipped.

    Raises:
      ValueError: Options, checkpoints or data that do not fit together; the message says what to do.
    """
    if config.training.init_from is None:
        raise ValueError("a mask search starts from a trained dense model: name it with --init-from")
    languages = [language.code for language in parse_languages(config.data.languages)]
    shared = config.pruning.prune_for == "all-languages"
    searches = [_search_config(config, group) for group in ([languages] if shared else [[code] for code in languages])]
    model, comparison = starting_model(searches[0])
    _check_rewinding(config, model)
    output = config.training.exp_dir / MASKS_FILE
    _write_start(config, comparison)
    _run_searches(searches, config.pruning)
    masks = PathwayMasks.merge([PathwayMasks.load(search.training.exp_dir / MASKS_FILE) for search in searches])
    masks.save(output)
    told = ", ".join(f"{code} {100 * masks.sparsity(code):.1f} %" for code in masks.languages)
    print(f"Masks: {output} (sparsity: {told}; entries used by any language: {100 * masks.union_density():.1f} %)")


def _write_start(config: ExperimentConfig | MaskSearchConfig, comparison: Comparison | None) -> None:
    """Keep the options, and say how the weights of --init-from fit the model."""
    write_json(config.training.exp_dir / "config.json", to_dict(config))
    if comparison is not None:
        print(f"Starting from {comparison}")
        write_json(config.training.exp_dir / "init-from.json", as_plain_data(comparison))


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


def _search_config(config: MaskSearchConfig, languages: list[str]) -> ExperimentConfig:
    """The training that finds the mask which `languages` share."""
    training = replace(
        config.training,
        exp_dir=config.training.exp_dir / "-".join(languages),
        num_updates=search_schedule(config.pruning).num_updates,
    )
    data = replace(config.data, languages=" ".join(languages))
    return with_optimizer(with_architecture(ExperimentConfig(training, data, config.model)))


def _run_searches(searches: list[ExperimentConfig], pruning: PruningConfig) -> None:
    waiting = [search for search in searches if not (search.training.exp_dir / MASKS_FILE).exists()]
    if pruning.num_jobs == 1 or len(waiting) < 2:
        for search in waiting:
            _search(search, pruning)
        return
    # Processes that share the cores slow each other down when each uses all of them.
    threads = max(1, torch.get_num_threads() // pruning.num_jobs)
    with ProcessPoolExecutor(pruning.num_jobs, get_context("spawn"), _limit_threads, (threads,)) as pool:
        for job in [pool.submit(_search, search, pruning, i) for i, search in enumerate(waiting)]:
            job.result()


def _limit_threads(threads: int) -> None:
    torch.set_num_threads(threads)


def _search(config: ExperimentConfig, pruning: PruningConfig, place: int = 0) -> None:
    os.environ["TQDM_POSITION"] = str(place)  # a line of its own for each search that runs at the same time
    training = config.training
    write_json(training.exp_dir / "config.json", to_dict(config))
    launch(_train_rank, training.world_size, training.master_port + place, config, pruning)


def _train_rank(rank: Rank, config: ExperimentConfig, pruning: PruningConfig | None) -> None:
    """One rank of a training, or of a mask search if `pruning` is given."""
    torch.manual_seed(config.training.seed)
    tokenizer = Tokenizer(config.training.bpe_model)
    data = SpeechDataModule(config.data, tokenizer)
    model, _ = starting_model(config)
    languages = [language.code for language in data.languages]
    if pruning is not None:
        masks = PathwayMasks.dense(model, languages, PRUNING_ROOTS[pruning.prune_scope])
        trainer = Trainer(config, model, data, tokenizer, rank, masks, search_plan(pruning, languages))
    elif config.training.masks is not None or config.pruning.prune_method != "none":
        masks = _starting_masks(config, model, languages)
        num_updates = config.training.num_updates or config.training.num_epochs * data.updates_per_epoch(
            rank.world_size
        )
        trainer = Trainer(config, model, data, tokenizer, rank, masks, joint_plan(config.pruning, masks, num_updates))
    else:
        trainer = Trainer(config, model, data, tokenizer, rank)
    trainer.run()
    if trainer.plan is not None and rank.is_main:
        _save_found(trainer, config, pruning or config.pruning)


def _masks_to_begin_with(config: ExperimentConfig) -> str:
    return MASKS_FILE if config.pruning.prune_method == "none" else START_MASKS_FILE


def _starting_masks(config: ExperimentConfig, model: Transducer, languages: list[str]) -> PathwayMasks:
    """Those of --masks; without, every language begins with all entries."""
    if config.training.masks is None:
        return PathwayMasks.dense(model, languages, PRUNING_ROOTS[config.pruning.prune_scope])
    return PathwayMasks.load(config.training.exp_dir / _masks_to_begin_with(config))


def _save_found(trainer: Trainer, config: ExperimentConfig, pruning: PruningConfig | JointPruningConfig) -> None:
    assert trainer.masks is not None and trainer.plan is not None
    found = trainer.masks.to("cpu")
    init_from = config.training.init_from
    found.header = replace(
        found.header,
        method=trainer.plan.schedule.method,
        target_sparsity=pruning.sparsity,
        source=checkpoints.file_hash(source_file(init_from)) if init_from is not None else "",
    )
    found.save(config.training.exp_dir / MASKS_FILE)
