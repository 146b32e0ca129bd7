"""Shapes of batches for the RNN-T losses."""

SHAPES = {  # (tokens, frames) of each utterance
    "unequal lengths": [(6, 15), (2, 9), (4, 4)],
    "no token": [(0, 5), (3, 7)],
    "no token in the batch": [(0, 5), (0, 3)],
    "one frame": [(1, 1), (0, 1)],
    "as many tokens as frames": [(7, 7), (5, 5)],
    "fewer tokens than the prune range": [(2, 9), (1, 12)],
}
