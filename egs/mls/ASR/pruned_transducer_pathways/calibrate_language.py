#!/usr/bin/env python3
r"""Find out how to tell which language is spoken, and how well that works.

Usage:

  ./pruned_transducer_pathways/calibrate_language.py --exp-dir exp/pathways

All pathways hear the dev split. How sure each is of what it hears, by the search and by the CTC head, tells the
language: weights and offsets are fitted and written to EXP_DIR/language_choice.json, which `transcribe.py --lang auto`
reads. Then the test split is heard: the report (also in EXP_DIR/streaming/DECODING_METHOD/language-choice-*) tells the
share of right choices against the seconds heard, and the word error rate against that of the known language.
"""

from icefall_pathways.decoding.language_id.calibration import CalibrationConfig, calibrate
from icefall_pathways.options import parse, run_script


def main() -> None:
    """Read the options, calibrate, print the report."""
    print(calibrate(parse(CalibrationConfig, __doc__)))


if __name__ == "__main__":
    run_script(main)
