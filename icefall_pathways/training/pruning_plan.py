"""Build pruning schedules and plans from options."""

from collections.abc import Sequence

from icefall_pathways.languages import LanguageCode
from icefall_pathways.pathways.masks import PathwayMasks
from icefall_pathways.pathways.schedules import (
    JOINT_METHODS,
    SEARCH_METHODS,
    JointSettings,
    PruningSchedule,
    SearchSettings,
)
from icefall_pathways.training.config import JointPruningConfig, PruningConfig
from icefall_pathways.training.pruning_callback import PruningPlan

# Without --prune-end, masks are fixed for the last quarter of a training, as in RigL (Evci et al. 2020).
_DEFAULT_END = 0.75

# A mask of a small tensor misses the target sparsity by rounding; a smaller difference does not need a ramp.
_ROUNDING = 0.005


def search_schedule(config: PruningConfig, seed: int) -> PruningSchedule:
    """Return the schedule of a mask search; `seed` is that of random masks.

    Raises:
      ValueError: An option is out of range.
    """
    settings = SearchSettings(
        config.sparsity, config.updates_per_round, config.prune_rounds or None, config.prune_drop, config.prune_by, seed
    )
    return SEARCH_METHODS[config.prune_method](settings)


def search_plan(config: PruningConfig, languages: Sequence[LanguageCode], seed: int) -> PruningPlan:
    """Return the plan of a mask search, in which `languages` share one mask; `seed` is that of random masks."""
    return PruningPlan(search_schedule(config, seed), [languages], config.rewind_to)


def joint_plan(config: JointPruningConfig, masks: PathwayMasks, num_updates: int) -> PruningPlan | None:
    """Return the plan for the masks of a joint training, or None if the masks are fixed.

    Args:
      config: The pruning options.
      masks: The initial masks.
      num_updates: Number of updates of the training.

    Raises:
      ValueError: An option is out of range, or the languages should share a mask but have different ones.
    """
    if config.prune_method == "none":
        return None
    end = config.prune_end or int(_DEFAULT_END * num_updates)
    if end > num_updates:
        raise ValueError(f"--prune-end {end} comes after the last of {num_updates} updates: lower it, or train longer")
    initial = min(masks.sparsity(language) for language in masks.languages)
    if abs(initial - config.sparsity) < _ROUNDING:
        initial = config.sparsity
    shared = config.prune_for == "all-languages"
    if shared and not masks.share_mask(masks.languages):
        raise ValueError(
            "--prune-for all-languages, but --masks has a different mask for each language: use each-language"
        )
    groups = [masks.languages] if shared else [[language] for language in masks.languages]
    settings = JointSettings(
        config.sparsity,
        config.prune_every,
        end,
        config.prune_start,
        initial,
        config.prune_ramp or None,
        config.prune_by,
        config.regrow,
        config.prune_exchange,
    )
    return PruningPlan(JOINT_METHODS[config.prune_method](settings), groups)
