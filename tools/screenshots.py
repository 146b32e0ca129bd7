#!/usr/bin/env python3
"""Take the screenshots of the server's page in docs/images, while its microphone plays a recording.

Usage, with a server that runs, here with the model of `make demo`, calibrated for language identification:

  icefall-pathways serve --model egs/mls/ASR/exp/demo/pathways
  tools/screenshots.py http://127.0.0.1:6006/ speech.wav

The recording (WAV) should end within a sentence: the screenshots are taken at its end, with text that may still change.
"""

import sys
from pathlib import Path

import soundfile

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "helpers"))

from browser import run_browser  # noqa: E402

SIZES = {"page.png": (960, 720), "page-phone.png": (390, 760)}


def main() -> None:
    """Record once per size, and write the screenshots."""
    url, recording = sys.argv[1], Path(sys.argv[2])
    for name, (width, height) in SIZES.items():
        with run_browser(recording) as browser:
            page = browser.new_page(viewport={"width": width, "height": height})
            page.goto(url)
            page.get_by_role("status").filter(has_text="Ready").wait_for()
            page.get_by_role("button", name="Start microphone").click()
            page.wait_for_timeout(1000 * soundfile.info(recording).duration)
            page.screenshot(path=ROOT / "docs" / "images" / name, full_page=True)


if __name__ == "__main__":
    main()
