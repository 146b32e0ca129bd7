"""Environment variables of the recipe's commands."""

import os
import subprocess
from pathlib import Path

import pytest

from icefall_pathways.recipe.environment import cpu_defaults, with_defaults

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("cpuinfo", "is_set"),
    [
        ("vendor_id : AuthenticAMD\nflags : fpu avx2 sse", True),
        ("vendor_id : AuthenticAMD\nflags : fpu sse", False),
        ("vendor_id : GenuineIntel\nflags : fpu avx2", False),
    ],
)
def test_mkl_uses_avx2_on_amd_processors_that_have_it(tmp_path, cpuinfo, is_set):
    (tmp_path / "cpuinfo").write_text(cpuinfo)
    assert ("MKL_DEBUG_CPU_TYPE" in cpu_defaults(tmp_path / "cpuinfo")) == is_set
    assert cpu_defaults(tmp_path / "cpuinfo")["MALLOC_MMAP_MAX_"] == "0"


def test_defaults_without_cpuinfo(tmp_path):
    assert set(cpu_defaults(tmp_path / "none")) == {"MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_"}


def test_set_variables_take_precedence():
    environ = with_defaults({"A": "1", "B": "2", "C": "3"}, {"A": "5", "B": "", "D": "7"})
    assert environ == {"A": "5", "B": "2", "C": "3", "D": "7"}


def test_cpu_env_script_exports_the_same_variables():
    environ = {"PATH": os.environ["PATH"], "MALLOC_MMAP_MAX_": "3"}
    command = ["bash", "-c", f". {ROOT}/tools/cpu_env.sh && env"]
    printed = subprocess.run(command, env=environ, capture_output=True, text=True, check=True).stdout
    variables = dict(line.split("=", 1) for line in printed.splitlines() if "=" in line)
    assert variables.items() >= (cpu_defaults() | {"MALLOC_MMAP_MAX_": "3"}).items()
