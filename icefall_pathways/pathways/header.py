"""What a masks file says about itself."""

from dataclasses import dataclass
from pathlib import Path

import torch

from icefall_pathways.files import read_json
from icefall_pathways.pathways.granularity import parse_granularity
from icefall_pathways.pathways.layer_sparsity import parse_layer_sparsity

ALLOCATIONS = ("layer-wise", "global")

# Headers written before masks had these do without.
_LATER_FIELDS = ("allocation", "layer_sparsity")


class MasksError(ValueError):
    """A masks file that is damaged, or that does not fit the model or the languages."""


@dataclass(frozen=True)
class MasksHeader:
    """What a masks file says about itself, beside the codes.

    Attributes:
      languages: Language tags in the order of their bits.
      method: How the masks were found ("imp", "lth", ..., "dense").
      granularity: What is pruned as one; see `pathways.granularity`.
      target_sparsity: What was asked for.
      source: Hash of the checkpoint whose magnitudes were taken.
      roots: The submodules whose prunable parameters the masks cover, all of them; "" is the whole model.
      allocation: "layer-wise": every parameter has the same sparsity; "global": they compete.
      layer_sparsity: Sparsities of single layers, as "PATTERN=SPARSITY ..."; see `pathways.allocation`.
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
                f"granularity {self.granularity} fixes the sparsity of every tensor: it goes with neither global "
                "allocation nor sparsities of single layers"
            )
        parse_layer_sparsity(self.layer_sparsity)


def read_header(path: Path) -> tuple[MasksHeader, dict[str, torch.Size], str]:
    """The header, the shapes of the codes and the SHA-256 of their file.

    Raises:
      MasksError: The file is damaged or no header.
    """
    try:
        values = read_json(path)
        names = [name for name in MasksHeader.__dataclass_fields__ if name in values or name not in _LATER_FIELDS]
        fields = {name: values[name] for name in names}
        fields |= {name: tuple(str(item) for item in fields[name]) for name in ("languages", "roots")}
        shapes = {name: torch.Size(shape) for name, shape in values["prunable"].items()}
        return MasksHeader(**fields), shapes, values["sha256"]
    except KeyError as error:
        raise MasksError(f"{path} is no header of masks: it lacks {error}; copy it again or search anew") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise MasksError(f"{path} is no header of masks ({error}): copy it again or search anew") from error
