"""A browser for tests of the server's page: Chromium or Google Chrome, driven by playwright.

As a program, exits with status 0 if there is one; tools/install_browser.sh calls it.
"""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser

#: Reason of skipped tests.
NO_BROWSER = (
    "no browser, or no libatomic for playwright: run tools/install_browser.sh .venv/bin/python, or install chromium or "
    "google-chrome, and libatomic1"
)

_NAMES = ("chromium", "google-chrome", "google-chrome-stable")
_OPTIONS = [
    "--no-sandbox",  # which root and containers cannot use; the only page that is opened is our own
    "--disable-gpu",
    # Do not contact the vendor.
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def find_browser() -> str | None:
    """Return the path of a browser that playwright can drive, or None.

    A name in PATH is not enough: some of Ubuntu's commands only print how to install the browser.
    """
    from playwright.sync_api import sync_playwright

    # Fails where Node.js, which playwright brings along, lacks a system library.
    if not _succeeds([sys.executable, "-m", "playwright", "--version"]):
        return None
    for path in filter(None, map(shutil.which, _NAMES)):
        if _succeeds([path, "--version"]):
            return path
    with sync_playwright() as playwright:
        downloaded = playwright.chromium.executable_path
    return downloaded if Path(downloaded).exists() else None


def _succeeds(command: list[str]) -> bool:
    with suppress(OSError, subprocess.CalledProcessError):
        subprocess.run(command, check=True, capture_output=True)
        return True
    return False


@contextmanager
def run_browser(microphone: Path) -> Iterator["Browser"]:
    """Run a browser without a window, whose microphone repeats a WAV file; skip the test if there is none."""
    from playwright.sync_api import sync_playwright

    path = find_browser()
    if path is None:
        pytest.skip(NO_BROWSER)
    fake_media = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    fake_media.append(f"--use-file-for-fake-audio-capture={microphone}")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=[*_OPTIONS, *fake_media])
        yield browser
        browser.close()


if __name__ == "__main__":
    sys.exit(find_browser() is None)
