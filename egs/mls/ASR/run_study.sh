#!/usr/bin/env bash
# Run the study: compare all ways to obtain pathways at several sparsities, over several seeds. Options: ./run_study.sh --help
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")"
. ../../../tools/select_python.sh
exec "$python" -c 'from icefall_pathways.cli import run_command; run_command("run-study", prog="./run_study.sh")' "$@"
