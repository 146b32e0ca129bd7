"""Select the parameters that masks cover."""

from collections.abc import Iterable

from torch import nn

# Modules whose weights are matrices or convolution kernels. Embeddings are lookup tables and never pruned.
_PRUNABLE_MODULES = (nn.Linear, nn.modules.conv._ConvNd, nn.RNNBase)


def prunable_parameters(model: nn.Module, roots: Iterable[str] | None = None) -> dict[str, nn.Parameter]:
    """Return the parameters that masks cover: matrices and kernels of linear, convolution and recurrent modules.

    Biases, norms, embeddings and free parameters (gates, scales, tables) are excluded, and so is every module, with its
    children, whose class sets `prunable = False`.

    Args:
      model: Any module.
      roots: Names of the submodules to search, e.g. ("encoder", "decoder"); None searches the whole model.

    Raises:
      ValueError: `model` lacks one of the submodules, or has no prunable parameter there.
    """
    roots = [""] if roots is None else list(roots)
    parameters: dict[str, nn.Parameter] = {}
    visited: set[nn.Module] = set()
    for root in roots:
        try:
            start = model.get_submodule(root)
        except AttributeError as error:
            children = ", ".join(name for name, _ in model.named_children())
            raise ValueError(f"the model has no submodule {root!r}: it has {children}") from error
        parameters.update(_prunable_below(start, root, visited))
    if not parameters:
        raise ValueError(f"nothing to prune in {roots}: expected linear, convolution or recurrent modules")
    return parameters


def _prunable_below(module: nn.Module, prefix: str, visited: set[nn.Module]) -> dict[str, nn.Parameter]:
    if module in visited or not getattr(module, "prunable", True):
        return {}
    visited.add(module)
    parameters = {}
    dot = f"{prefix}." if prefix else ""
    if isinstance(module, _PRUNABLE_MODULES):
        for name, parameter in module.named_parameters(recurse=False):
            if "weight" in name and parameter.dim() >= 2:
                parameters[dot + name] = parameter
    for name, child in module.named_children():
        parameters.update(_prunable_below(child, dot + name, visited))
    return parameters
