#!/usr/bin/env bash
# Resolve requirements.in into requirements.txt: exact versions, and the hashes of all files.
#
#   tools/lock.sh [--upgrade]        (or: make lock)
#
# k2's wheels have misleading names: pip parses "k2-1.23.4-py3.10-none-any.whl" as a wheel for any Python 3, finds five
# equal candidates and selects the wrong one. The lock therefore holds only the hash of the wheel for Python 3.10.
set -euo pipefail
cd "$(dirname "$0")/.."

K2_PY310_SHA256=1404589732fdb7f6f5bf62297a20dd73318b7b4f2e10dd52dc3d5b6669688a4c

command -v uv >/dev/null || { echo "error: uv not found; install it (pip install uv) and run this again" >&2; exit 1; }
cp requirements.txt requirements.txt.new # keep the locked versions, unless --upgrade is given
uv pip compile --python-version 3.10 --generate-hashes --no-header --no-annotate --quiet "$@" \
  --output-file requirements.txt.new requirements.in
awk -v k2_hash="$K2_PY310_SHA256" '
  /^[A-Za-z0-9]/ { package = $1; sub(/==.*/, "", package) }
  package != "k2" { print; next }
  /^k2==/ { print "k2==" substr($1, 5) " \\\n    --hash=sha256:" k2_hash }
' requirements.txt.new > requirements.txt.locked
mv requirements.txt.locked requirements.txt
rm requirements.txt.new
