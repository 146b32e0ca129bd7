"""Which parameters of a model can be pruned."""

from collections.abc import Iterable

from torch import nn

# The weights of these modules are matrices or convolution kernels. Embeddings are tables and never pruned.
_PRUNABLE_MODULES = (nn.Linear, nn.modules.conv._ConvNd, nn.RNNBase)


def prunable_parameters(model: nn.Module, roots: Iterable[str] | None = None) -> dict[str, nn.Parameter]:
    """The parameters that masks cover: matrices and kernels of linear, convolution and recurrent modules.

    Biases, norms, embeddings and free parameters (gates, scales, tables) are never among them. A module whose class
    sets `prunable = False` is left out with all that it holds.

    Args:
      model: Any module.
      roots: Names of the submodules to look in, such as ("encoder", "decoder"); None looks everywhere.

    Raises:
      ValueError: `model` has no submodule of such a name, or nothing in it can be pruned.
    """
    roots = [""] if roots is None else list(roots)
    found: dict[str, nn.Parameter] = {}
    seen: set[nn.Module] = set()
    for root in roots:
        try:
            start = model.get_submodule(root)
        except AttributeError as error:
            children = ", ".join(name for name, _ in model.named_children())
            raise ValueError(f"the model has no submodule {root!r}: it has {children}") from error
        found.update(_prunable_below(start, root, seen))
    if not found:
        raise ValueError(f"nothing to prune below {roots}: expected linear, convolution or recurrent modules")
    return found


def _prunable_below(module: nn.Module, prefix: str, seen: set[nn.Module]) -> dict[str, nn.Parameter]:
    if module in seen or not getattr(module, "prunable", True):
        return {}
    seen.add(module)
    found = {}
    dot = f"{prefix}." if prefix else ""
    if isinstance(module, _PRUNABLE_MODULES):
        for name, parameter in module.named_parameters(recurse=False):
            if "weight" in name and parameter.dim() >= 2:
                found[dot + name] = parameter
    for name, child in module.named_children():
        found.update(_prunable_below(child, dot + name, seen))
    return found
