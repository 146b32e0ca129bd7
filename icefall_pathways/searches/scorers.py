"""Registry of the token scorers (hotwords and language models).

To add a language model, write a module with the model (see `TokenScorer`) and its options, and add a line to `SCORERS`.
The options then appear in every decoding script, and all searches that derive from `ShallowFusionOptions` use them.
"""

from icefall_pathways.searches.context_graph import HotwordOptions
from icefall_pathways.searches.ngram import NgramOptions
from icefall_pathways.searches.token_scorer import ScorerOptions

SCORERS: dict[str, type[ScorerOptions]] = {"hotwords": HotwordOptions, "ngram": NgramOptions}
"""Names of the scorers and their options, which build them; a search applies the enabled ones in this order."""
