#!/usr/bin/env bash
# Run the study: compare all ways to obtain pathways at several sparsities, over several seeds. Options: ./run_study.sh --help
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")"

# The environment that `make env` created, for the stack that STACK selects, or the active Python.
python=python3
if [ -z "${VIRTUAL_ENV:-}" ] && [ -x ../../../tools/make_env.sh ]; then
  venv=$(../../../tools/make_env.sh --folder)
  if [ -x "$venv/bin/python" ]; then python=$venv/bin/python; fi
fi
exec "$python" -c 'from icefall_pathways.cli import run_command; run_command("run-study", prog="./run_study.sh")' "$@"
