#!/usr/bin/env bash
# Prepare the data: from audio to features and tokens, in stages. Options: ./prepare.sh --help
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")"
. ../../../tools/select_python.sh
exec "$python" -c 'from icefall_pathways.cli import run_command; run_command("prepare", prog="./prepare.sh")' "$@"
