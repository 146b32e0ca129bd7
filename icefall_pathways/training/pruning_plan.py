"""From options to a plan of pruning."""

from collections.abc import Sequence

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

# Without --prune-end, the last part of a training is for the weights alone, as in RigL (Evci et al. 2020).
_CHANGING = 0.75


def search_schedule(config: PruningConfig) -> PruningSchedule:
    """The schedule of a mask search.

    Raises:
      ValueError: A value out of its range.
    """
    settings = SearchSettings(
        config.sparsity, config.updates_per_round, config.prune_rounds, config.prune_drop, config.prune_by
    )
    return SEARCH_METHODS[config.prune_method](settings)


def search_plan(config: PruningConfig, languages: Sequence[str]) -> PruningPlan:
    """The plan of a mask search: the languages of a search share a mask."""
    return PruningPlan(search_schedule(config), [languages], config.rewind_to)


def joint_plan(config: JointPruningConfig, masks: PathwayMasks, num_updates: int) -> PruningPlan | None:
    """How the masks of a joint training of `num_updates` updates change; None if they do not.

    Args:
      config: See there.
      masks: The masks at the start of the training.
      num_updates: Updates of the whole training.

    Raises:
      ValueError: A value out of its range, or languages that shall share a mask and do not.
    """
    if config.prune_method == "none":
        return None
    end = config.prune_end or int(_CHANGING * num_updates)
    if end > num_updates:
        raise ValueError(f"--prune-end {end} comes after the last of {num_updates} updates: lower it, or train longer")
    # Where tensors are small, what is asked for cannot be met exactly: a rounding is no ramp.
    initial = min(masks.sparsity(language) for language in masks.languages)
    initial = config.sparsity if abs(initial - config.sparsity) < 0.005 else initial
    shared = config.prune_for == "all-languages"
    if shared and not masks.share_mask(masks.languages):
        raise ValueError("--prune-for all-languages, and --masks gives each language its own: use each-language")
    groups = [masks.languages] if shared else [[language] for language in masks.languages]
    settings = JointSettings(
        config.sparsity,
        config.prune_every,
        end,
        config.prune_start,
        initial,
        config.prune_ramp,
        config.prune_by,
        config.regrow,
        config.prune_exchange,
    )
    return PruningPlan(JOINT_METHODS[config.prune_method](settings), groups)
