"""Environment variables that make computation on CPUs faster; GPUs are not affected.

Only the standard library is used: tools/cpu_env.sh runs this file with any Python 3.
"""

import os
import shlex
from collections.abc import Mapping
from pathlib import Path

#: One thread per process, which sleeps while it waits, because processes share the cores of this machine.
SINGLE_THREAD = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}


def cpu_defaults(cpuinfo: Path = Path("/proc/cpuinfo")) -> dict[str, str]:
    """Return the variables for this machine's CPU."""
    # Keep freed memory for the next tensors. By default glibc returns large blocks to the system, and each page that is
    # allocated again causes a page fault: on a virtual machine whose host reclaims free pages, a training step took
    # ten times as long.
    defaults = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "4000000000"}
    # The matrix library in the wheel of torch 1.13.1 (MKL 2020.0) takes a slow path on AMD processors; with this
    # variable, which newer versions ignore, it uses AVX2: twice the speed on an AMD EPYC.
    words = set(cpuinfo.read_text().split()) if cpuinfo.exists() else set()
    if {"AuthenticAMD", "avx2"} <= words:
        defaults["MKL_DEBUG_CPU_TYPE"] = "5"
    return defaults


def with_defaults(defaults: Mapping[str, str], environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return `environ` with `defaults` for variables that are unset or empty."""
    return {**environ, **{name: environ.get(name) or value for name, value in defaults.items()}}


if __name__ == "__main__":
    for variable, default in cpu_defaults().items():
        print(f"export {variable}={shlex.quote(os.environ.get(variable) or default)}")
