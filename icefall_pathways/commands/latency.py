r"""Measure latency and real-time factor of the streaming recognizer.

Usage:

  OMP_NUM_THREADS=1 ./pruned_transducer_pathways/latency.py --exp-dir exp/pathways --streams "1 16"

Utterances are decoded on a simulated clock: audio arrives in real time, and computation takes as long as on this
machine. Languages are measured one at a time. For each number of concurrent streams, the table (also in
EXP_DIR/streaming/DECODING_METHOD/latency-*) has the median and the 95th percentile of

  first text             from the start of the audio to the first text
  end of audio to final  from the end of the audio to the final result
  token delay            from the end of a token's encoder frame until the token is shown and no longer changes: the
                         wait for the rest of the chunk and its right context, and computation

and the real-time factor: seconds of computation per second of audio, summed over the streams.
"""

from icefall_pathways.decoding.latency import LatencyConfig as Config
from icefall_pathways.decoding.latency import measure

__all__ = ["Config", "run"]


def run(config: Config) -> None:
    """Measure and print the table."""
    print(measure(config))
