#!/usr/bin/env bash
# Run the whole recipe in stages: data, dense model, masks, pathways, decoding, report. Options: ./run.sh --help
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")"
. ../../../tools/select_python.sh
exec "$python" -c 'from icefall_pathways.cli import run_command; run_command("run", prog="./run.sh")' "$@"
