"""How a sparsity falls on the tensors of a model."""

from collections.abc import Mapping
from fnmatch import fnmatchcase

from icefall_pathways.pathways.header import MasksHeader
from icefall_pathways.pathways.layer_sparsity import parse_layer_sparsity


def budget_groups(header: MasksHeader, sizes: Mapping[str, int], sparsity: float) -> list[tuple[list[str], float]]:
    """Which parameters share one budget of entries, and the sparsity of each budget.

    Layer-wise allocation prunes every parameter to the same sparsity; global allocation lets the parameters compete, so
    that those with the largest scores stay wherever they are. Parameters with a sparsity of their own in
    `header.layer_sparsity` are left out of that and pruned one by one; the others are pruned so much more, or less,
    that all of them together have the sparsity asked for. On the way to `header.target_sparsity`, every part has gone
    the same share of its own way; beyond it, every part loses the same share of what it keeps at the target.

    Args:
      header: Of the masks.
      sizes: Entries of each parameter that the masks cover.
      sparsity: Share of all entries together to prune now.

    Raises:
      ValueError: A pattern matches no parameter, or the other parameters cannot make up for those with a sparsity of
        their own.
    """
    own = _own_sparsities(header.layer_sparsity, sizes)
    others = [name for name in sizes if name not in own]
    target = header.target_sparsity if own else sparsity
    shares = own | dict.fromkeys(others, _rest(own, sizes, target))
    now = {name: _interpolated_sparsity(share, sparsity, target) for name, share in shares.items()}
    if header.allocation == "global" and others:
        return [([name], now[name]) for name in own] + [(others, now[others[0]])]
    return [([name], now[name]) for name in sizes]


def _own_sparsities(text: str, sizes: Mapping[str, int]) -> dict[str, float]:
    """The sparsity of each parameter that a pattern names; of several patterns the last one counts."""
    own: dict[str, float] = {}
    for pattern, sparsity in parse_layer_sparsity(text).items():
        named = [name for name in sizes if fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")]
        if not named:
            raise ValueError(
                f"--layer-sparsity {pattern}={sparsity:g} names nothing that is pruned: the prunable parameters are "
                f"{', '.join(list(sizes)[:5])}, ..."
            )
        own |= dict.fromkeys(named, sparsity)
    return own


def _rest(own: Mapping[str, float], sizes: Mapping[str, int], sparsity: float) -> float:
    """The sparsity of the other parameters with which all together have `sparsity`."""
    if not own:
        return sparsity
    to_prune = sparsity * sum(sizes.values()) - sum(share * sizes[name] for name, share in own.items())
    entries = sum(size for name, size in sizes.items() if name not in own)
    rest = to_prune / entries if entries else (0.0 if abs(to_prune) < 1 else -1.0)
    if not 0 <= rest < 1:
        raise ValueError(
            f"--layer-sparsity fixes {len(own)} of {len(sizes)} parameters; for a sparsity of {sparsity:g} overall, "
            f"{to_prune:.0f} of the other {entries} entries would have to go: change --sparsity, or fix fewer layers"
        )
    return rest


def _interpolated_sparsity(share: float, sparsity: float, target: float) -> float:
    """A part's sparsity when all together are at `sparsity`, if it is `share` at the target."""
    if sparsity <= target:
        return share * (sparsity / target) if target else share
    return 1 - (1 - share) * ((1 - sparsity) / (1 - target))
