"""The JSON header of a masks file."""

from dataclasses import dataclass
from pathlib import Path

import torch

from icefall_pathways.files import read_json
from icefall_pathways.pathways.granularity import parse_granularity
from icefall_pathways.pathways.layer_sparsity import parse_layer_sparsity

ALLOCATIONS = ("layer-wise", "global")

# Fields that older headers lack.
_OPTIONAL_FIELDS = ("allocation", "layer_sparsity")


class MasksError(ValueError):
    """A masks file is damaged, or masks do not fit the model or the languages."""


@dataclass(frozen=True)
class MasksHeader:
    """Metadata of masks: languages, origin, granularity and allocation.

    Attributes:
      languages: Language tags in the order of their bits.
      method: The pruning method ("imp", "lth", ..., "dense").
      granularity: The groups that are pruned together; see `pathways.granularity`.
      target_sparsity: The requested sparsity.
      source: Hash of the checkpoint that the masks were computed from.
      roots: The submodules whose prunable parameters all have masks; "" is the whole model.
      allocation: "layer-wise": every parameter has the same sparsity; "global": all parameters are ranked together.
      layer_sparsity: Fixed sparsities of single layers, "PATTERN=SPARSITY ..."; see `pathways.layer_sparsity`.

    Raises:
      ValueError: A value is invalid, or values exclude each other.
    """

    languages: tuple[str, ...]
    method: str = "dense"
    granularity: str = "element"
    target_sparsity: float = 0.0
    source: str = ""
    roots: tuple[str, ...] = ("",)
    allocation: str = "layer-wise"
    layer_sparsity: str = ""

    def __post_init__(self) -> None:
        granularity = parse_granularity(self.granularity)
        if self.allocation not in ALLOCATIONS:
            raise ValueError(f"allocation {self.allocation!r}: expected one of {', '.join(ALLOCATIONS)}")
        if not granularity.shares_budget and (self.allocation != "layer-wise" or self.layer_sparsity):
            raise ValueError(
                f"granularity {self.granularity} fixes the sparsity of every tensor: it cannot be combined with global "
                "allocation or with sparsities of single layers"
            )
        parse_layer_sparsity(self.layer_sparsity)


def read_header(path: Path) -> tuple[MasksHeader, dict[str, torch.Size], str]:
    """Read a header, the shapes of the codes and the SHA-256 of their file.

    Raises:
      MasksError: The file is damaged or not a masks header.
    """
    try:
        values = read_json(path)
        names = [name for name in MasksHeader.__dataclass_fields__ if name in values or name not in _OPTIONAL_FIELDS]
        fields = {name: values[name] for name in names}
        fields |= {name: tuple(str(item) for item in fields[name]) for name in ("languages", "roots")}
        shapes = {name: torch.Size(shape) for name, shape in values["prunable"].items()}
        return MasksHeader(**fields), shapes, values["sha256"]
    except KeyError as error:
        raise MasksError(
            f"{path} is not a masks header: it lacks {error}; copy it again or repeat the search"
        ) from error
    except (ValueError, TypeError, AttributeError) as error:
        raise MasksError(f"{path} is not a masks header ({error}): copy it again or repeat the search") from error
