# Sourced by the entry scripts of the recipe: set $python to a Python that has the package.
#
# An active environment comes first if it has the package, then the environment that `make env` created for the stack
# that STACK selects, then python3.

has_package() {
  "$1" -c 'import icefall_pathways' 2>/dev/null
}

python=python3
if [ -z "${VIRTUAL_ENV:-}" ] || ! has_package "$python"; then
  python=$("$(dirname "${BASH_SOURCE[0]}")/make_env.sh" --folder)/bin/python
  has_package "$python" || python=python3
fi
if ! has_package "$python"; then
  echo "error: icefall_pathways is not installed for ${VIRTUAL_ENV:-$(command -v python3 || echo python3)}: run make env in the top folder, or activate the environment that has it" >&2
  exit 1
fi
