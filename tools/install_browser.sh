#!/usr/bin/env bash
# Make sure that tests of the server's page find a browser: Chromium, or Google Chrome.
#
#   tools/install_browser.sh PYTHON    PYTHON has the package playwright
#
# Does nothing if there is one. As root, installs Debian's package, and the library that playwright's Node.js needs;
# elsewhere, playwright downloads a build into ~/.cache/ms-playwright. If both fail, says what to do and succeeds: the
# tests that need a browser are then skipped, or, for root on the reference stack, fail.
set -euo pipefail
cd "$(dirname "$0")/.."

python=$1
log=$(mktemp)
trap 'rm -f "$log"' EXIT

has_browser() { "$python" tests/helpers/browser.py; }

install_package() {
  [ "$(id -u)" = 0 ] && command -v apt-get && apt-get update -q \
    && DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends chromium libatomic1
}

download() {
  local options=()
  if [ "$(id -u)" = 0 ] && command -v apt-get; then options+=(--with-deps); fi  # system libraries
  timeout 600 "$python" -m playwright install "${options[@]}" chromium
}

if has_browser; then exit; fi
echo "Installing Chromium for the tests of the server's page"
for attempt in install_package download; do
  if "$attempt" >>"$log" 2>&1 && has_browser; then exit; fi
done
tail -n 5 "$log" >&2
echo "note: Chromium could not be installed, so the tests of the server's page are skipped; to run them, install" \
  "chromium or google-chrome (Debian: apt-get install chromium libatomic1) and run the same command again" >&2
