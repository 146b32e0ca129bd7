#!/usr/bin/env bash
# Create or update .venv: the locked packages of requirements.txt, kaldifeat from a wheel that is built once, and this
# package in editable mode.
#
#   tools/make_env.sh    (or: make env)
#
# Does nothing if .venv is up to date. Environment variables:
#   PYTHON       the Python 3.10 to use (default: the first one in PATH, pyenv or uv)
#   WHEEL_CACHE  folder for the kaldifeat wheel (default: ~/.cache/icefall_pathways/wheels)
set -euo pipefail
cd "$(dirname "$0")/.."

VENV=$PWD/.venv
KALDIFEAT=$PWD/tools/kaldifeat

fail() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

is_python310() {
  [ "$("$1" -c 'import sys, venv, ensurepip; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)" = 3.10 ]
}

find_python() {
  local candidate
  if [ -n "${PYTHON:-}" ]; then
    is_python310 "$PYTHON" || fail "PYTHON=$PYTHON is not a working Python 3.10 with venv; point PYTHON at one"
    echo "$PYTHON"
    return
  fi
  for candidate in python3.10 python3 python "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.10*/bin/python3.10 \
    "$(command -v uv >/dev/null && uv python find 3.10 2>/dev/null)"; do
    if [ -n "$candidate" ] && is_python310 "$candidate"; then
      echo "$candidate"
      return
    fi
  done
  fail "no Python 3.10 with venv found in PATH, pyenv or uv; install one (apt install python3.10-venv, pyenv install 3.10 or uv python install 3.10) or set PYTHON=/path/to/python3.10"
}

pip_install() {
  "$VENV/bin/python" -m pip --disable-pip-version-check "$@" \
    || fail "pip failed (see above). If it could not reach the package index, connect this machine to the network or set PIP_INDEX_URL to a mirror, and run the same command again; installed packages are kept"
}

# The wheel depends on torch, Python and the build scripts; the name of its folder identifies all three.
kaldifeat_wheels() {
  local platform build_hash
  platform=$("$VENV/bin/python" -c 'import platform, torch; print(f"torch{torch.__version__}-py{platform.python_version()}-{platform.machine()}")')
  build_hash=$(find "$KALDIFEAT" -type f | LC_ALL=C sort | xargs cat | sha256sum | cut -c1-12)
  echo "${WHEEL_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/icefall_pathways/wheels}/$platform-$build_hash"
}

install_kaldifeat() {
  local wheels
  wheels=$(kaldifeat_wheels)
  compgen -G "$wheels/kaldifeat-*.whl" >/dev/null || "$KALDIFEAT/build.sh" "$VENV/bin/python" "$wheels"
  pip_install install --quiet --no-deps --force-reinstall "$wheels"/kaldifeat-*.whl
}

main() {
  local fingerprint
  fingerprint=$(cat requirements.txt pyproject.toml "$KALDIFEAT/requirements.txt" "$0" | sha256sum | cut -c1-16)
  if [ "$(cat "$VENV/.installed" 2>/dev/null)" = "$fingerprint" ]; then
    return
  fi
  if [ ! -x "$VENV/bin/python" ] || ! is_python310 "$VENV/bin/python"; then
    local python
    python=$(find_python)
    rm -rf "$VENV"
    "$python" -m venv "$VENV" || fail "$python cannot create a virtual environment in $VENV; install its venv package (apt install python3.10-venv)"
  fi
  echo "Installing the packages of requirements.txt into .venv (about 3.5 GB)"
  pip_install install --quiet --progress-bar on --require-hashes -r requirements.txt
  install_kaldifeat
  pip_install install --quiet --no-deps --no-build-isolation --editable .
  "$VENV/bin/python" -c 'import k2, kaldifeat, lhotse, torchaudio' || fail "the packages are installed but cannot be imported (see above); remove .venv and run the same command again"
  echo "$fingerprint" > "$VENV/.installed"
}

main
