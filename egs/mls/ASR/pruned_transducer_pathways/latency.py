#!/usr/bin/env python3
r"""Measure how long speakers wait for their text, and how fast the recogniser is.

Usage:

  OMP_NUM_THREADS=1 ./pruned_transducer_pathways/latency.py --exp-dir exp/pathways --streams "1 16"

Utterances are spoken on a simulated clock: audio arrives in real time, computing takes what it takes on this machine.
The table (also in EXP_DIR/streaming/DECODING_METHOD/latency-*) tells for each number of simultaneous speakers the
real-time factor (seconds of computing per second of audio of all of them), the time from the beginning of the audio to
the first text, from its end to the final result, and from a token's frame to when it is shown for good:
waiting for the chunk to fill and for what it looks ahead, and computing. One language at a time is recognised.
"""

from icefall_pathways.decoding.latency import LatencyConfig, measure
from icefall_pathways.options import parse, run_script


def main() -> None:
    """Read the options, measure, print the table."""
    print(measure(parse(LatencyConfig, __doc__)))


if __name__ == "__main__":
    run_script(main)
