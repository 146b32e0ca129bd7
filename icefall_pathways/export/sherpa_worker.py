"""Decode the audio of a job with sherpa-onnx; see `sherpa_process`, which starts this module in a subprocess.

The module imports little: torch would load another ONNX Runtime into the process.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from icefall_pathways.constants import NUM_MEL_BINS, SAMPLE_RATE


def run(job: Mapping[str, Any]) -> None:
    """Decode the utterances of a job, and write its results.

    Args:
      job: `recognizer`: arguments of `OnlineRecognizer.from_transducer`; `samples`: NumPy archive with the samples of
        each utterance; `languages`: language of each utterance, or nothing; `result`: JSON file for the results.
    """
    try:
        import sherpa_onnx
    except ImportError as error:
        sys.exit(f"sherpa-onnx cannot be imported ({error}): install it with pip install sherpa-onnx")
    recognizer = sherpa_onnx.OnlineRecognizer.from_transducer(
        sample_rate=SAMPLE_RATE, feature_dim=NUM_MEL_BINS, num_threads=1, **{"modeling_unit": "bpe"} | job["recognizer"]
    )
    with np.load(job["samples"], allow_pickle=False) as archive:
        streams = []
        for index in range(len(archive.files)):
            streams.append(recognizer.create_stream())
            if job["languages"]:
                streams[-1].set_option("language", job["languages"][index])
            streams[-1].accept_waveform(SAMPLE_RATE, archive[f"arr_{index}"])
            streams[-1].input_finished()
    while ready := [stream for stream in streams if recognizer.is_ready(stream)]:
        recognizer.decode_streams(ready)
    results = [
        {
            "tokens": recognizer.tokens(stream),
            "timestamps": recognizer.timestamps(stream),
            "text": recognizer.get_result(stream),
        }
        for stream in streams
    ]
    Path(job["result"]).write_text(json.dumps(results), encoding="utf-8")


if __name__ == "__main__":
    run(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
