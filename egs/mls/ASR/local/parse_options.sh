# Sourced by the recipe's scripts after they have given every option its default as a shell variable: --some-option VALUE
# sets $some_option. The usage block at the top of the script is its --help. Sets $python and $lhotse too,
# and what makes the CPU quicker. A script that has other defaults for some option calls `set_options "$@"` once more after
# setting them, so that what the user has typed wins.

fail() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

options=" $(compgen -v | grep -x '[a-z][a-z_]*' | tr '\n' ' ') "

set_options() {
  local name
  while [ $# -gt 0 ]; do
    case $1 in
      -h | --help)
        awk 'NR > 1 && !/^#/ { exit } NR > 1 { sub(/^# ?/, ""); print }' "$0"
        exit 0
        ;;
      --*)
        name=${1#--}
        name=${name//-/_}
        [[ $options == *" $name "* ]] || fail "unknown option $1; --help lists them"
        [ $# -ge 2 ] || fail "option $1 needs a value"
        printf -v "$name" '%s' "$2"
        shift 2
        ;;
      *) fail "unexpected word '$1': options start with --, and a list is one word in quotes" ;;
    esac
  done
}

set_options "$@"

# The environment that `make env` made, or whatever python the user has activated.
environment=$(cd ../../.. && pwd)/.venv/bin
if [ -z "${VIRTUAL_ENV:-}" ] && [ -x "$environment/python" ]; then
  python=$environment/python
  lhotse=$environment/lhotse
else
  python=python3
  lhotse=lhotse
fi

. ../../../tools/cpu_env.sh
