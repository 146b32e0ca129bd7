#!/usr/bin/env bash
# Run the whole recipe in stages: data, dense model, masks, pathways, decoding, report. Options: ./run.sh --help
set -euo pipefail
cd "$(dirname "$0")"

# The environment that `make env` created, or the active Python.
python=$(cd ../../.. && pwd)/.venv/bin/python
if [ -n "${VIRTUAL_ENV:-}" ] || [ ! -x "$python" ]; then python=python3; fi
exec "$python" -c 'from icefall_pathways.cli import run_command; run_command("run", prog="./run.sh")' "$@"
