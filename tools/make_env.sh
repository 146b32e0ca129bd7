#!/usr/bin/env bash
# Set up .venv: the locked packages of requirements.txt, and kaldifeat from a wheel built once.
#
#   tools/make_env.sh    (or: make env)
#
# Does nothing when .venv already holds what the lock says. Environment:
#   PYTHON       the Python 3.10 to use (default: looked for in PATH, pyenv and uv)
#   WHEEL_CACHE  where the built kaldifeat wheel is kept (default: ~/.cache/icefall_pathways/wheels)
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
    || fail "pip failed (see above). If it could not reach the package index, connect this machine to the network or set PIP_INDEX_URL to a mirror, and run the same command again: what is already installed is kept"
}

# The wheel depends on torch, on Python and on the way it is built, so all of them name its folder in the cache.
kaldifeat_wheel_dir() {
  local key
  key=$("$VENV/bin/python" -c 'import platform, torch; print(f"torch{torch.__version__}-py{platform.python_version()}-{platform.machine()}")')
  echo "${WHEEL_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/icefall_pathways/wheels}/$key-$(cat "$KALDIFEAT"/requirements.txt "$KALDIFEAT"/*/*.* "$0" | sha256sum | cut -c1-12)"
}

build_kaldifeat() {
  local wheels=$1 torch_dir cxx11_abi building
  command -v "${CXX:-c++}" >/dev/null || fail "no C++ compiler found, and kaldifeat is built from source; install one (apt install g++) or set CXX"
  torch_dir=$("$VENV/bin/python" -c 'import pathlib, torch; print(pathlib.Path(torch.__file__).parent)')
  cxx11_abi=$("$VENV/bin/python" -c 'import torch; print(int(torch.compiled_with_cxx11_abi()))')
  building=$(mktemp -d)
  echo "Building kaldifeat (about 3 minutes, once; the wheel is kept in $wheels)"
  PATH="$VENV/bin:$PATH" MAKEFLAGS="-j$(nproc)" KALDIFEAT_MAKE_ARGS="-j$(nproc)" KALDIFEAT_CMAKE_ARGS="-DCMAKE_BUILD_TYPE=Release \
    -Dkaldifeat_BUILD_TESTS=OFF -DFETCHCONTENT_SOURCE_DIR_PYBIND11=$KALDIFEAT/pybind11 -DCMAKE_FIND_PACKAGE_TARGETS_GLOBAL=ON \
    -Dpybind11_DIR=$("$VENV/bin/python" -m pybind11 --cmakedir) -DTorch_DIR=$KALDIFEAT/torch -DTORCH_DIR=$torch_dir -DTORCH_CXX11_ABI=$cxx11_abi" \
    "$VENV/bin/python" -m pip --disable-pip-version-check wheel --no-deps --no-build-isolation --require-hashes \
    -r "$KALDIFEAT/requirements.txt" -w "$building" >"$building/build.log" 2>&1 \
    || { tail -n 40 "$building/build.log" >&2; fail "kaldifeat did not build (see above; whole log: $building/build.log)"; }
  mkdir -p "$wheels"
  cp "$building"/kaldifeat-*.whl "$wheels/"
  rm -rf "$building"
}

install_kaldifeat() {
  local wheels
  wheels=$(kaldifeat_wheel_dir)
  compgen -G "$wheels/kaldifeat-*.whl" >/dev/null || build_kaldifeat "$wheels"
  pip_install install --quiet --no-deps --force-reinstall "$wheels"/kaldifeat-*.whl
}

main() {
  local wanted
  wanted=$(cat requirements.txt pyproject.toml "$KALDIFEAT/requirements.txt" "$0" | sha256sum | cut -c1-16)
  if [ "$(cat "$VENV/.installed" 2>/dev/null)" = "$wanted" ]; then
    return
  fi
  if [ ! -x "$VENV/bin/python" ] || ! is_python310 "$VENV/bin/python"; then
    local python
    python=$(find_python)
    rm -rf "$VENV"
    "$python" -m venv "$VENV" || fail "$python could not make a virtual environment in $VENV; install its venv package (apt install python3.10-venv)"
  fi
  echo "Installing the packages of requirements.txt into .venv (about 3.5 GB)"
  pip_install install --quiet --progress-bar on --require-hashes -r requirements.txt
  install_kaldifeat
  pip_install install --quiet --no-deps --no-build-isolation --editable .
  "$VENV/bin/python" -c 'import k2, kaldifeat, lhotse, torchaudio' || fail "the packages were installed but do not import (see above); remove .venv and run the same command again"
  echo "$wanted" > "$VENV/.installed"
}

main
