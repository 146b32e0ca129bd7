#!/usr/bin/env bash
# Run the study: compare all ways to obtain pathways at several sparsities, over several seeds. Options: ./run_study.sh --help
set -euo pipefail
cd "$(dirname "$0")"

# The environment that `make env` created, or the active Python.
python=$(cd ../../.. && pwd)/.venv/bin/python
if [ -n "${VIRTUAL_ENV:-}" ] || [ ! -x "$python" ]; then python=python3; fi
exec "$python" -c 'from icefall_pathways.cli import run_command; run_command("run-study", prog="./run_study.sh")' "$@"
