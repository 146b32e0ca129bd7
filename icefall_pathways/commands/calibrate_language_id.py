r"""Calibrate spoken language identification, and report its accuracy.

Usage:

  ./pruned_transducer_pathways/calibrate_language_id.py --exp-dir exp/pathways

All pathways decode the dev split. The confidence of a pathway combines the scores of its search and of its CTC head:
their weights and an offset per language are fitted and written to EXP_DIR/language_id.json, which
`transcribe.py --lang auto` reads. The report on the test split (also in
EXP_DIR/streaming/DECODING_METHOD/language-id-*) gives the accuracy of identification after several durations of speech,
and the word error rates with the identified and with the given language.
"""

from icefall_pathways.decoding.language_id.calibration import CalibrationConfig as Config
from icefall_pathways.decoding.language_id.calibration import calibrate

__all__ = ["Config", "run"]


def run(config: Config) -> None:
    """Calibrate and print the report."""
    print(calibrate(config))
