#!/usr/bin/env bash
# Create or update the environment of a stack: its locked packages, and this package in editable mode.
#
#   tools/make_env.sh             (or: make env)
#   tools/make_env.sh --folder    only print the folder of the environment
#   tools/make_env.sh --stacks    only print the stacks that this machine can run
#
# reference  .venv: Python 3.10 with torch 1.13.1, k2, and kaldifeat from a wheel that is built once
# current    .venv-current: Python 3.11 to 3.13 with current torch and numpy, without k2 and kaldifeat, without a compiler
#
# Does nothing if the environment is up to date and the checkout has not been moved. Environment variables:
#   STACK        reference or current (default: reference if a Python 3.10 is found and torch 1.13.1 supports the GPUs)
#   PYTHON       the Python to use (default: the first suitable one in PATH, pyenv or uv); selects the stack if STACK does not
#   WHEEL_CACHE  folder for the kaldifeat wheel (default: ~/.cache/icefall_pathways/wheels)
#
# The default package index has torch for CUDA, several GB. Without a GPU, set PIP_EXTRA_INDEX_URL to PyTorch's index of
# CPU wheels, see https://pytorch.org/get-started/locally (or PIP_FIND_LINKS to a folder with such a wheel).
set -euo pipefail
cd "$(dirname "$0")/.."

KALDIFEAT=$PWD/tools/kaldifeat
REFERENCE_VERSIONS=3.10
CURRENT_VERSIONS="3.11 3.12 3.13"

fail() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

# is_python PYTHON VERSIONS: it runs, can create environments, and has one of the versions.
is_python() {
  local version
  version=$("$1" -c 'import sys, venv, ensurepip; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || return 1
  [[ " $2 " == *" $version "* ]]
}

# find_python VERSIONS: print the first suitable Python.
find_python() {
  local version candidate
  if [ -n "${PYTHON:-}" ]; then
    is_python "$PYTHON" "$1" && echo "$PYTHON"
    return
  fi
  for version in $1; do
    for candidate in "python$version" python3 python "${PYENV_ROOT:-$HOME/.pyenv}/versions/$version".*/bin/python3 \
      "$(command -v uv >/dev/null && uv python find "$version" 2>/dev/null)"; do
      if [ -n "$candidate" ] && is_python "$candidate" "$version"; then
        echo "$candidate"
        return
      fi
    done
  done
  return 1
}

# Print the first GPU that torch 1.13.1 does not support: it was compiled for compute capability 3.7 to 8.6, and code for
# one of 8.x runs on all of 8.x. Drivers too old to report the compute capability do not support newer GPUs.
unsupported_gpu() {
  command -v nvidia-smi >/dev/null || return 0
  local capability name
  nvidia-smi --query-gpu=compute_cap,name --format=csv,noheader 2>/dev/null | while IFS=', ' read -r capability name; do
    if [[ "$capability" =~ ^([0-9]+)\.[0-9]+$ ]] && [ "${BASH_REMATCH[1]}" -ge 9 ]; then
      echo "$name"
      break
    fi
  done || true
}

# Set stack, reason, venv and versions.
select_stack() {
  local gpu
  case "${STACK:-}" in
    reference | current)
      stack=$STACK reason="STACK=$STACK"
      ;;
    "")
      gpu=$(unsupported_gpu)
      stack=current
      if [ -n "$gpu" ]; then
        reason="torch 1.13.1 of the reference stack does not support $gpu"
      elif find_python "$REFERENCE_VERSIONS" >/dev/null; then
        stack=reference reason="Python 3.10 is available, and no GPU requires a newer torch"
      else
        reason="no Python 3.10 with venv is available"
        [ -z "${PYTHON:-}" ] || reason="PYTHON=$PYTHON is not a Python 3.10"
      fi
      ;;
    *)
      fail "STACK=$STACK is not a stack: expected reference or current"
      ;;
  esac
  if [ "$stack" = reference ]; then
    venv=$PWD/.venv versions=$REFERENCE_VERSIONS requirements=requirements.txt
  else
    venv=$PWD/.venv-current versions=$CURRENT_VERSIONS requirements=requirements-current.txt
  fi
}

# Print the stacks that this machine can run, or the one that STACK or PYTHON selects.
print_stacks() {
  local stack reason gpu stacks=()
  if [ -n "${STACK:-}${PYTHON:-}" ]; then
    select_stack
    echo "$stack"
    return
  fi
  gpu=$(unsupported_gpu)
  if [ -n "$gpu" ]; then
    reason="torch 1.13.1 of the reference stack does not support $gpu"
  elif find_python "$REFERENCE_VERSIONS" >/dev/null; then
    stacks+=(reference)
  else
    reason="the reference stack needs Python 3.10, which is not available with venv"
  fi
  if find_python "$CURRENT_VERSIONS" >/dev/null; then
    stacks+=(current)
  else
    reason="the current stack needs Python ${CURRENT_VERSIONS// /, }, which is not available with venv"
  fi
  [ ${#stacks[@]} -ne 1 ] || echo "Only the ${stacks[0]} stack is used: $reason" >&2
  echo "${stacks[@]:-current}"
}

pip_install() {
  "$venv/bin/python" -m pip --disable-pip-version-check "$@" \
    || fail "pip failed (see above). If it could not reach the package index, connect this machine to the network or set PIP_INDEX_URL to a mirror, and run the same command again; installed packages are kept"
}

# The wheel depends on torch, Python and the build scripts; the name of its folder identifies all three.
kaldifeat_wheels() {
  local platform build_hash
  platform=$("$venv/bin/python" -c 'import platform, torch; print(f"torch{torch.__version__}-py{platform.python_version()}-{platform.machine()}")')
  build_hash=$(find "$KALDIFEAT" -type f -print0 | LC_ALL=C sort -z | xargs -0 cat | sha256sum | cut -c1-12)
  echo "${WHEEL_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/icefall_pathways/wheels}/$platform-$build_hash"
}

install_kaldifeat() {
  local wheels
  wheels=$(kaldifeat_wheels)
  compgen -G "$wheels/kaldifeat-*.whl" >/dev/null || "$KALDIFEAT/build.sh" "$venv/bin/python" "$wheels"
  pip_install install --quiet --no-deps --force-reinstall "$wheels"/kaldifeat-*.whl
}

create_venv() {
  local python first=${versions%% *} range=${versions// /, }
  if ! python=$(find_python "$versions"); then
    [ -z "${PYTHON:-}" ] || fail "PYTHON=$PYTHON is not a working Python $range with venv; point PYTHON at one"
    fail "no Python $range with venv found in PATH, pyenv or uv; install one (apt install python$first-venv, pyenv install $first or uv python install $first) or set PYTHON=/path/to/python$first"
  fi
  rm -rf "$venv"
  "$python" -m venv "$venv" || fail "$python cannot create a virtual environment in $venv; install its venv package (apt install python3-venv)"
}

# Not in the lock: torch, and the CUDA libraries that it requires, depend on the machine.
install_torch() {
  local torch
  torch=$(sed -n 's/^\(torch==[^ ]*\).*/\1/p' requirements-current.in)
  echo "Installing $torch: for CUDA, several GB, unless pip finds a CPU wheel; without a GPU, set PIP_EXTRA_INDEX_URL to PyTorch's index of CPU wheels (https://pytorch.org/get-started/locally)"
  pip_install install --quiet --progress-bar on "$torch"
}

# Print the folder whose package the environment imports.
installed_checkout() {
  "$venv/bin/python" -I - <<'EOF' 2>/dev/null
import json
from importlib.metadata import distribution
from urllib.parse import urlsplit
from urllib.request import url2pathname

print(url2pathname(urlsplit(json.loads(distribution("icefall_pathways").read_text("direct_url.json"))["url"]).path))
EOF
}

install_package() {
  pip_install install --quiet --no-deps --no-build-isolation --editable .
}

# After the checkout has been moved or copied with its environment: import the package of this folder, not of the old one,
# and let the scripts of the environment start the Python of this folder.
follow_move() {
  local old new script
  old=$(installed_checkout) || old=""
  new=$(pwd -P)
  [ "$old" != "$new" ] || return 0
  if [ -L "$venv" ]; then
    echo "warning: ${venv##*/} is a link to an environment that imports icefall_pathways from ${old:-no folder}: set PYTHONPATH=$new, or remove the link and run the same command again" >&2
    return
  fi
  echo "Installing the package of this folder, in place of ${old:-none}"
  for script in "$venv"/bin/*; do
    if [ -n "$old" ] && grep -qIF "$old/" "$script"; then
      sed -i "s|$old/|$new/|g" "$script"
    fi
  done
  install_package
}

main() {
  local stack reason venv versions requirements fingerprint imports gpu
  if [ "${1:-}" = --stacks ]; then
    print_stacks
    return
  fi
  select_stack
  if [ "${1:-}" = --folder ]; then
    echo "$venv"
    return
  fi
  fingerprint=$(cat "$requirements" "${requirements%.txt}.in" pyproject.toml "$KALDIFEAT/requirements.txt" "$0" | sha256sum | cut -c1-16)
  echo "Using the $stack stack in ${venv##*/}: $reason"
  gpu=$(unsupported_gpu)
  if [ "$stack" = reference ] && [ -n "$gpu" ]; then
    echo "warning: torch 1.13.1 of the reference stack does not support $gpu: STACK=current can use it" >&2
  fi
  if [ "$(cat "$venv/.installed" 2>/dev/null)" = "$fingerprint" ]; then
    follow_move
    return
  fi
  if ! is_python "$venv/bin/python" "$versions" || ! "$venv/bin/python" -c "import pip" 2>/dev/null; then
    create_venv
  fi
  echo "Installing the packages of $requirements into ${venv##*/}"
  pip_install install --quiet --progress-bar on --no-deps --require-hashes -r "$requirements"
  if [ "$stack" = reference ]; then
    install_kaldifeat
    imports="k2, kaldifeat, lhotse, torchaudio"
  else
    install_torch
    imports="kaldi_native_fbank, lhotse, torch"
  fi
  install_package
  "$venv/bin/python" -c "import $imports" || fail "the packages are installed but cannot be imported (see above); remove ${venv##*/} and run the same command again"
  echo "$fingerprint" > "$venv/.installed"
}

main "$@"
