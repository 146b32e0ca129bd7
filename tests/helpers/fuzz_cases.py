"""All readers for fuzzing, with their valid files; see `fuzzing.Case`."""

import fuzz_audio
import fuzz_corpora
import fuzz_models
import fuzz_texts
from fuzzing import Files

CASES = {**fuzz_audio.CASES, **fuzz_corpora.CASES, **fuzz_models.CASES, **fuzz_texts.CASES}


def check_case(argument: tuple[str, Files]) -> None:
    """Read the files of a case, in a process of its own; see `Case.check`."""
    name, files = argument
    CASES[name].check(files)
