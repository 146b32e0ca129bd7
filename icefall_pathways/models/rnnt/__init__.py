"""The losses of pruned RNN-T (Kuang et al., arXiv 2206.13236) in PyTorch, on any device.

Shapes: N utterances, T encoder frames, S tokens, V the vocabulary, R predictor outputs kept per frame, J the
width of the joiner. `boundary` has a row (0, 0, tokens, frames) for each utterance, int64, as in k2.
"""

from icefall_pathways.models.rnnt.pruned import pruned_rnnt_loss, select_rows
from icefall_pathways.models.rnnt.ranges import prune_ranges
from icefall_pathways.models.rnnt.simple import smoothed_rnnt_loss

__all__ = ["prune_ranges", "pruned_rnnt_loss", "select_rows", "smoothed_rnnt_loss"]
