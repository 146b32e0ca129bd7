"""Select the parameters that masks cover."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

# Modules whose weights are matrices or convolution kernels. Embeddings are lookup tables and never pruned.
_PRUNABLE_MODULES = (
    nn.Linear,
    nn.Bilinear,
    nn.modules.conv._ConvNd,
    nn.RNNBase,
    nn.RNNCellBase,
    nn.MultiheadAttention,
)


def prunable_parameters(model: nn.Module, roots: Iterable[str] | None = None) -> dict[str, nn.Parameter]:
    """Return the parameters that masks cover: matrices and kernels of linear, convolution and recurrent modules.

    The input projections of `nn.MultiheadAttention` are among them. Biases, norms, embeddings and free parameters
    (gates, scales, tables) are excluded, and so is every module, with its children, whose attribute `prunable` is False
    (of the class or of the instance). A parameter that several modules share has one mask and the name that
    `model.named_parameters()` gives it.

    Args:
      model: Any module.
      roots: Names of the submodules to search, e.g. ("encoder", "decoder"); None searches the whole model.

    Raises:
      ValueError: `model` lacks one of the submodules or has no prunable parameter there, a weight is not a parameter
        (weight normalization, TorchScript), or it is shared with a module that is not pruned.
    """
    roots = [""] if roots is None else list(roots)
    names = {parameter: name for name, parameter in model.named_parameters()}
    modules: dict[nn.Module, str] = {}
    for root in roots:
        for name, module in _prunable_below(_submodule(model, root), root):
            modules.setdefault(module, name)
    parameters = {
        names[parameter]: parameter for module, name in modules.items() for parameter in _matrices(module, name)
    }
    if not parameters:
        raise ValueError(f"nothing to prune in {roots}: expected linear, convolution or recurrent modules")
    _check_shared(model, parameters, modules)
    return parameters


def parameter_owners(model: nn.Module) -> dict[str, list[tuple[nn.Module, str]]]:
    """Return the modules and attributes that hold each parameter, by its name in `model.named_parameters()`."""
    owners: dict[nn.Parameter, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        # Unlike `named_parameters`, also lists a parameter that the module holds twice.
        for attribute, parameter in module._parameters.items():
            if parameter is not None:
                owners.setdefault(parameter, []).append((module, attribute))
    return {name: owners[parameter] for name, parameter in model.named_parameters()}


def _submodule(model: nn.Module, name: str) -> nn.Module:
    try:
        return model.get_submodule(name)
    except AttributeError as error:
        children = ", ".join(child for child, _ in model.named_children())
        raise ValueError(f"the model has no submodule {name!r}: it has {children}") from error


def _prunable_below(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    """Yield the prunable modules among `module` and its descendants with their names, parents first."""
    if not getattr(module, "prunable", True):
        return
    if isinstance(module, torch.jit.ScriptModule):
        raise ValueError(f"{name or 'the model'} is a TorchScript module, which has no masks: use it before scripting")
    if isinstance(module, _PRUNABLE_MODULES):
        yield name, module
    for child_name, child in module.named_children():
        yield from _prunable_below(child, f"{name}.{child_name}" if name else child_name)


def _matrices(module: nn.Module, name: str) -> list[nn.Parameter]:
    """Return the weights of a prunable module.

    Raises:
      ValueError: A weight is computed from other parameters. Masks of those would not be masks of the weight.
    """
    # The hooks of weight_norm, spectral_norm and torch.nn.utils.prune replace a parameter by a plain attribute.
    computed = [key for key, value in vars(module).items() if isinstance(value, Tensor)]
    computed += list(module.parametrizations.keys()) if is_parametrized(module) else []  # type: ignore[union-attr,operator]
    for attribute in computed:
        if "weight" in attribute and attribute not in module._parameters:
            raise ValueError(
                f"{attribute} of {name or 'the model'} is computed from other parameters (weight normalization, "
                "parametrization or torch.nn.utils.prune), and a mask covers parameters only: remove it "
                "(torch.nn.utils.remove_weight_norm, parametrize.remove_parametrizations, ...) before masks are used, "
                "or set `prunable = False` on the module"
            )
    return [p for key, p in module.named_parameters(recurse=False) if "weight" in key and p.dim() >= 2]


def _check_shared(model: nn.Module, parameters: Iterable[str], modules: Iterable[nn.Module]) -> None:
    owners, names = parameter_owners(model), {module: name for name, module in model.named_modules()}
    for name in parameters:
        for module, attribute in owners[name]:
            if module not in modules:
                raise ValueError(
                    f"{name} is shared with {attribute} of {names[module] or 'the model'} ({type(module).__name__}), "
                    "which is not pruned: prune both or neither (set `prunable = False` on the module with "
                    f"{name.rpartition('.')[2]}, or change the submodules that are pruned)"
                )
