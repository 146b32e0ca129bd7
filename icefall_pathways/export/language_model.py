"""A model with the weights of one language: the mask multiplied in."""

import copy

from icefall_pathways.models.transducer import Transducer
from icefall_pathways.pathways.activation import FoldedPathways


def language_model(pathways: FoldedPathways, language: str) -> Transducer:
    """Return a copy of the model, on the CPU, with `mask * weight` in place of every masked weight.

    Args:
      pathways: The languages' sub-networks of a transducer, none of which is active.
      language: The language.

    Raises:
      MasksError: There is no pathway for the language.
    """
    assert isinstance(pathways.model, Transducer)
    model = copy.deepcopy(pathways.model).cpu()
    model.load_state_dict(model.state_dict() | pathways.weights(language))
    return model.eval()
