"""Facts of audio, features and frame rates that several packages share, each defined once."""

import math

#: Hz; recordings of any other rate are resampled to it.
SAMPLE_RATE = 16000

#: Samples between the starts of two feature frames: 10 ms.
FRAME_SHIFT = 160

#: Log-mel filter bank energies of a feature frame.
NUM_MEL_BINS = 80

#: Log energy of silence: the floor of the feature extraction, with which batches and the ends of streams are padded.
LOG_EPS = math.log(1e-10)

#: Feature frames per encoder frame: every encoder outputs one frame per 40 ms.
SUBSAMPLING_FACTOR = 4
