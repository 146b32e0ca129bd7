#!/usr/bin/env python3
"""Read damaged files of all kinds, and count those that give neither a result nor the documented error.

Usage:

  benchmarks/fuzz.py --inputs 100000 --write 1

The files and readers are those of tests/helpers/fuzz_cases.py. Findings are printed and saved as files in --output-dir.
"""

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings
from tables import print_table
from tqdm import tqdm

from icefall_pathways.options import parse, run_script
from icefall_pathways.ranges import Options, PositiveInt, Seed

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "helpers"))

from fuzz_cases import CASES, check_case
from fuzzing import Files, damaged
from isolated import IsolatedFunction

_TABLE = Path(__file__).with_suffix(".md")
_ROUND = 500  # inputs of a case that are drawn together: Hypothesis remembers them, to draw none twice


@dataclass(frozen=True)
class FuzzConfig(Options):
    """Options of fuzzing."""

    inputs: PositiveInt = 10_000
    """Number of inputs of all readers together."""

    cases: tuple[str, ...] = tuple(CASES)
    """Cases of tests/helpers/fuzz_cases.py."""

    seed: Seed = 0
    """Seed of the first inputs; each round of inputs has the next one."""

    output_dir: Path = Path("fuzz")
    """Folder for the inputs of findings."""

    write: bool = False
    """Update the table in fuzz.md."""


def draw(case: str, count: int, first_seed: int) -> list[Files]:
    """Return random damaged files of a case."""
    inputs: list[Files] = []

    @seed(first_seed)
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(files=damaged(CASES[case]))
    def collect(files: Files) -> None:
        inputs.append(files)

    collect()
    return inputs


def rounds(config: FuzzConfig) -> Iterator[tuple[str, int, int]]:
    """Yield the case, the number of inputs and the seed of each round; all cases progress together."""
    total = sum(CASES[case].weight for case in config.cases)
    missing = {case: round(config.inputs * CASES[case].weight / total) for case in config.cases}
    round_seed = config.seed
    while any(missing.values()):
        for case in config.cases:
            count = min(_ROUND, missing[case])
            missing[case] -= count
            if count:
                yield case, count, round_seed
            round_seed += 1


def fuzz(config: FuzzConfig) -> tuple[Counter[str], Counter[str]]:
    """Return the number of inputs, and of findings, by case; those so far after Ctrl-C."""
    num_inputs, num_findings, reported = Counter[str](), Counter[str](), set[tuple[str, str]]()
    check = IsolatedFunction(check_case)
    with suppress(KeyboardInterrupt), tqdm(total=config.inputs, unit="input") as bar:
        for case, count, round_seed in rounds(config):
            for files in draw(case, count, round_seed):
                bar.update()
                num_inputs[case] += 1
                failure = check((case, files))
                if failure is None:
                    continue
                num_findings[case] += 1
                cause = failure.strip().splitlines()[-1]
                if (case, cause[:60]) not in reported:
                    reported.add((case, cause[:60]))
                    _save(config.output_dir / f"{case.replace(' ', '-')}-{len(reported)}", files, failure)
                    tqdm.write(f"{case}: {cause[:300]}")
    check.close()
    return num_inputs, num_findings


def _save(folder: Path, files: Files, failure: str) -> None:
    for name, data in files.items():
        (folder / "files" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "files" / name).write_bytes(data)
    (folder / "failure.txt").write_text(failure)


def main() -> None:
    """Print the numbers of inputs and findings; with --write 1, update fuzz.md."""
    config = parse(FuzzConfig, __doc__ or "")
    num_inputs, num_findings = fuzz(config)
    rows = [[case, str(num_inputs[case]), str(num_findings[case])] for case in num_inputs]
    rows.append(["all", str(num_inputs.total()), str(num_findings.total())])
    print_table(["files", "inputs", "findings"], rows, _TABLE if config.write else None, "fuzz")


if __name__ == "__main__":
    run_script(main)
