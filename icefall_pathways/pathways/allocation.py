"""Allocate a target sparsity over parameters: layer-wise, globally, or with fixed sparsities of single layers."""

from collections.abc import Mapping
from fnmatch import fnmatchcase

from icefall_pathways.pathways.header import MasksHeader
from icefall_pathways.pathways.layer_sparsity import parse_layer_sparsity


def budget_groups(header: MasksHeader, sizes: Mapping[str, int], sparsity: float) -> list[tuple[list[str], float]]:
    """Group the parameters that share a budget of entries, and compute the sparsity of each group.

    Layer-wise allocation prunes every parameter to the same sparsity. Global allocation ranks the entries of all
    parameters together. Parameters listed in `header.layer_sparsity` are pruned separately to their fixed sparsity, and
    the sparsity of the others is adjusted so that the overall sparsity is met. Below `header.target_sparsity`, every
    sparsity is scaled by the same factor; above it, every density is.

    Args:
      header: The header of the masks.
      sizes: The number of entries of each masked parameter.
      sparsity: The overall sparsity to prune to now.

    Returns:
      (parameter names, sparsity) of each group.

    Raises:
      ValueError: A pattern matches no parameter, or the other parameters cannot compensate for the fixed sparsities.
    """
    fixed = _fixed_sparsities(header.layer_sparsity, sizes)
    others = [name for name in sizes if name not in fixed]
    target = header.target_sparsity if fixed else sparsity
    at_target = fixed | dict.fromkeys(others, _compensating_sparsity(fixed, sizes, target))
    current = {name: _interpolated_sparsity(final, sparsity, target) for name, final in at_target.items()}
    if header.allocation == "global" and others:
        return [([name], current[name]) for name in fixed] + [(others, current[others[0]])]
    return [([name], current[name]) for name in sizes]


def _fixed_sparsities(text: str, sizes: Mapping[str, int]) -> dict[str, float]:
    """Return the sparsity of each parameter that a pattern matches; the last matching pattern has priority."""
    fixed: dict[str, float] = {}
    for pattern, sparsity in parse_layer_sparsity(text).items():
        matching = [name for name in sizes if fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")]
        if not matching:
            raise ValueError(
                f"--layer-sparsity {pattern}={sparsity:g} matches no prunable parameter: these are "
                f"{', '.join(list(sizes)[:5])}, ..."
            )
        fixed |= dict.fromkeys(matching, sparsity)
    return fixed


def _compensating_sparsity(fixed: Mapping[str, float], sizes: Mapping[str, int], sparsity: float) -> float:
    """Return the sparsity of the other parameters for which the overall sparsity is `sparsity`."""
    if not fixed:
        return sparsity
    to_prune = sparsity * sum(sizes.values()) - sum(layer * sizes[name] for name, layer in fixed.items())
    entries = sum(size for name, size in sizes.items() if name not in fixed)
    rest = to_prune / entries if entries else (0.0 if abs(to_prune) < 1 else -1.0)
    if not 0 <= rest < 1:
        raise ValueError(
            f"--layer-sparsity fixes {len(fixed)} of {len(sizes)} parameters; an overall sparsity of {sparsity:g} "
            f"would have to prune {to_prune:.0f} of the other {entries} entries: change --sparsity, or fix fewer layers"
        )
    return rest


def _interpolated_sparsity(final: float, sparsity: float, target: float) -> float:
    """Return a parameter's sparsity at overall `sparsity`, if it is `final` at the overall sparsity `target`."""
    if sparsity <= target:
        return final * (sparsity / target) if target else final
    return 1 - (1 - final) * ((1 - sparsity) / (1 - target))
