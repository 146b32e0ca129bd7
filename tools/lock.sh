#!/usr/bin/env bash
# Resolve requirements.in and requirements-current.in into .txt files: exact versions, and the hashes of all files.
#
#   tools/lock.sh [--upgrade]        (or: make lock)
#
# k2's wheels have misleading names: pip parses "k2-1.23.4-py3.10-none-any.whl" as a wheel for any Python 3, finds five
# equal candidates and selects the wrong one. The lock therefore holds only the hash of the wheel for Python 3.10.
#
# The lock of the current stack is for all its Python versions. It omits torch and the packages that only torch for CUDA
# requires: a machine without a GPU has a CPU wheel, with other hashes and without those packages.
set -euo pipefail
cd "$(dirname "$0")/.."

K2_PY310_SHA256=1404589732fdb7f6f5bf62297a20dd73318b7b4f2e10dd52dc3d5b6669688a4c

command -v uv >/dev/null || { echo "error: uv not found; install it (pip install uv) and run this again" >&2; exit 1; }

# resolve FILE OPTIONS: write FILE.new from the .in file of its name; locked versions are kept, unless --upgrade is given.
resolve() {
  if [ -e "$1" ]; then cp "$1" "$1.new"; fi
  uv pip compile --generate-hashes --no-header --no-annotate --quiet "${@:2}" --output-file "$1.new" "${1%.txt}.in"
}

resolve requirements.txt --python-version 3.10 "$@"
awk -v k2_hash="$K2_PY310_SHA256" '
  /^[A-Za-z0-9]/ { package = $1; sub(/==.*/, "", package) }
  package != "k2" { print; next }
  /^k2==/ { print "k2==" substr($1, 5) " \\\n    --hash=sha256:" k2_hash }
' requirements.txt.new > requirements.txt.locked
mv requirements.txt.locked requirements.txt
rm requirements.txt.new

resolve requirements-current.txt --universal --python-version 3.11 "$@"
awk '
  /^[A-Za-z0-9]/ { package = $1; sub(/==.*/, "", package) }
  package !~ /^(torch|triton|cuda-.*|nvidia-.*)$/ { print }
' requirements-current.txt.new > requirements-current.txt.locked
mv requirements-current.txt.locked requirements-current.txt
rm requirements-current.txt.new
