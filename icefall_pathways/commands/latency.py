r"""Measure latency and real-time factor of the streaming recognizer.

Usage:

  OMP_NUM_THREADS=1 ./pruned_transducer_pathways/latency.py --exp-dir exp/pathways --streams "1 16"

Utterances arrive on a simulated clock: audio in real time, computation as long as it takes on this machine. For each
number of concurrent streams the table (also in EXP_DIR/streaming/DECODING_METHOD/latency-*) gives the real-time factor
(seconds of computation per second of audio of all streams), the time from the start of the audio to the first text,
from its end to the final result, and from the frame of a token to when it is shown and no longer changes: waiting for
the chunk and its right context, and computation. Languages are measured one at a time.
"""

from icefall_pathways.decoding.latency import LatencyConfig as Config
from icefall_pathways.decoding.latency import measure

__all__ = ["Config", "run"]


def run(config: Config) -> None:
    """Measure and print the table."""
    print(measure(config))
