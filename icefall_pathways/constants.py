"""Constants of audio, features and frame rates, shared by several packages."""

import math

#: Sample rate in Hz; recordings at other rates are resampled.
SAMPLE_RATE = 16000

#: Samples between the starts of consecutive feature frames (10 ms).
FRAME_SHIFT = 160

#: Log-mel filter bank bins of a feature frame.
NUM_MEL_BINS = 80

#: Log-mel padding of batches and of the ends of streams, equal to Lhotse's `LOG_EPSILON`.
LOG_EPS = math.log(1e-10)

#: Feature frames per encoder frame: every encoder outputs one frame per 40 ms.
SUBSAMPLING_FACTOR = 4
