"""The web page in a browser, with a microphone that plays a file: every result is that of the websocket.

All requests of the page are observed: none may leave the server.
"""

import io
import json
import re
from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx2
import numpy as np
import pytest
import scipy.signal
import soundfile
from browser import run_browser
from running_server import run_server, texts

from icefall_pathways.transcription.transcript import Segment, Word
from icefall_pathways.transcription.writers import WRITERS

_TIMEOUT = 60_000  # milliseconds; machines that run tests are busy

_RECORD_PARTIAL_RESULTS = """() => {
  const partial = document.getElementById("partial");
  window.partialResults = [];
  new MutationObserver(() => window.partialResults.push(partial.textContent))
    .observe(partial, { childList: true, subtree: true });
}"""


@pytest.fixture(scope="module")
def recording(speech, tmp_path_factory):
    """Return a WAV file."""
    path = tmp_path_factory.mktemp("audio") / "speech.wav"
    soundfile.write(path, speech, 16000)
    return path


@pytest.fixture(scope="module")
def browser(recording):
    with run_browser(recording) as running:
        yield running


class OpenPage:
    """A page of a server, with what it requested and sent.

    Attributes:
      page: The page.
      urls: URLs of all requests and websockets.
      frames: Messages sent on each websocket.
    """

    def __init__(self, context, address):
        self.urls: list[str] = []
        self.frames: list[list[str | bytes]] = []
        self.page = context.new_page()
        self.page.set_default_timeout(_TIMEOUT)
        self.page.on("request", lambda request: self.urls.append(request.url))
        self.page.on("websocket", self._observe)
        self.page.goto(f"http://{address}/")

    def _observe(self, websocket):
        self.urls.append(websocket.url)
        frames: list[str | bytes] = []
        self.frames.append(frames)
        websocket.on("framesent", lambda frame: frames.append(frame))

    def wait_for_status(self, text):
        self.page.get_by_role("status").filter(has_text=text).wait_for()

    def texts(self):
        """Return the texts of the segments."""
        return self.page.locator("#transcript li span:last-child").all_inner_texts()


@pytest.fixture
def opened(browser, server) -> Iterator[OpenPage]:
    context = browser.new_context()
    opened = OpenPage(context, server.address)
    opened.wait_for_status("Ready")
    yield opened
    context.close()
    addresses = {urlsplit(url).netloc for url in opened.urls if not url.startswith(("data:", "blob:"))}
    assert addresses == {server.address}


def test_microphone_is_recognized_while_it_records(opened, server, speech):
    page = opened.page
    page.get_by_label("Language").select_option("en")
    page.evaluate(_RECORD_PARTIAL_RESULTS)
    page.get_by_role("button", name="Start microphone").click()
    assert float(page.locator("#unstable").evaluate("element => getComputedStyle(element).opacity")) < 1
    page.locator("#streams").filter(has_text="1 English").wait_for()
    page.wait_for_timeout(3000)
    page.get_by_role("button", name="Stop microphone").click()
    opened.wait_for_status("Finished")

    (start, *audio, end), *others = opened.frames
    start = json.loads(start)
    assert json.loads(end) == {"type": "end"} and not others
    expected = server.recognize(audio, format="pcm_s16le", sample_rate=start["sample_rate"], language="en")
    assert opened.texts() == texts(expected) != []
    partial = [message["text"] for message in expected if message["type"] == "partial"]
    assert set(filter(None, page.evaluate("window.partialResults"))) & set(partial)
    assert correlation(audio, start["sample_rate"], speech) > 0.5, "the microphone did not play the file"
    assert re.fullmatch(r"-?\d+\.\d\d s", page.locator("#delay").inner_text())


def correlation(audio, rate, played):
    """Return the highest normalized correlation of half a second of 16-bit messages with audio played repeatedly."""
    samples = np.frombuffer(b"".join(audio), "<i2").astype(float)
    samples = np.interp(np.arange(0, len(samples) / rate, 1 / 16000), np.arange(len(samples)) / rate, samples)
    played = np.tile(played.astype(float), 2)
    norms = np.sqrt(scipy.signal.correlate(played**2, np.ones(8000), "valid"))
    parts = [part for part in np.split(samples, range(8000, len(samples), 8000))[:-1] if part.any()]
    return max((scipy.signal.correlate(played, p, "valid") / norms).max() / np.linalg.norm(p) for p in parts)


def test_uploaded_file_gives_text_and_subtitles(opened, server, recording):
    opened.page.get_by_label("Language").select_option("nl")
    opened.page.get_by_label("Audio or video file").set_input_files(recording)
    opened.wait_for_status("Finished")
    data = recording.read_bytes()
    assert opened.texts() == texts(server.recognize([data], format="container", language="nl")) != []
    with opened.page.expect_download() as download:
        opened.page.get_by_role("button", name="Download subtitles").click()
    assert download.value.suggested_filename == "transcript.srt"
    subtitles = httpx2.post(
        f"http://{server.address}/v1/audio/transcriptions",
        files={"file": data},
        data={"language": "nl", "response_format": "srt"},
    )
    assert download.value.path().read_text(encoding="utf-8").strip() == subtitles.text.strip() != ""


def test_low_sample_rate_of_a_file_is_reported(opened, speech, tmp_path):
    soundfile.write(tmp_path / "low.wav", speech[::2], 8000)
    opened.page.get_by_label("Language").select_option("en")
    opened.page.get_by_label("Audio or video file").set_input_files(tmp_path / "low.wav")
    opened.wait_for_status("Finished: 3.0 s of audio; a sample rate of 8000 Hz, below the 16000 Hz of the model")


def test_subtitles_follow_the_rules_of_transcripts(opened):
    """Lines of 42 characters, two per subtitle, at most 7 s, at least 1 s, and marks of right-to-left text."""
    lines = [("abcdefghi " * 12, 0.4), ("slow words here", 4.0), ("שלום עולם", 0.1), ("end", 0.2)]
    out, segments, time = io.StringIO(), [], 0.0
    for index, (text, seconds) in enumerate(lines):
        words = [Word(word, time + seconds * i, time + seconds * (i + 1)) for i, word in enumerate(text.split())]
        language = "he" if index == 2 else "en"
        segments.append(Segment(language, time, words[-1].end + 0.5, text, text, False, words, True, index == 3))
        time = words[-1].end
    writer = WRITERS["srt"](out, "")
    for segment in segments:
        writer.add(segment)
    writer.close(None)
    finals = [{"end": segment.end, "words": [vars(word) for word in segment.words]} for segment in segments]
    script = "async (finals) => (await import('/page/srt.js')).toSrt(finals)"
    assert opened.page.evaluate(script, finals) == out.getvalue()
    assert out.getvalue().count("-->") > len(lines)


def test_detected_languages_are_listed_with_their_confidence(opened, server, recording):
    opened.page.get_by_label("Language").select_option("auto")
    opened.page.get_by_label("Audio or video file").set_input_files(recording)
    opened.wait_for_status("Finished")
    messages = server.recognize([recording.read_bytes()], format="container", language="auto")
    decisions = [message for message in messages if message["type"] == "language"]
    rows = [row.split("\t") for row in opened.page.locator("#languages tr").all_inner_texts()]
    names = {"en": "English", "nl": "Dutch"}
    assert len(decisions) >= 2
    assert [[cell.strip() for cell in row] for row in rows] == [
        [f"{decision['time']:.1f} s", names[decision["language"]], f"{round(100 * decision['confidence'])} %"]
        for decision in decisions
    ]


def test_language_of_silence_is_not_shown(opened, tmp_path):
    soundfile.write(tmp_path / "silence.wav", np.zeros(16000), 16000)
    opened.page.get_by_label("Language").select_option("auto")
    opened.page.get_by_label("Audio or video file").set_input_files(tmp_path / "silence.wav")
    opened.wait_for_status("Finished: 1.0 s of audio")
    assert opened.page.locator("#languages tr").count() == 0


def test_keyboard_operates_every_control(opened, recording):
    page, keyboard = opened.page, opened.page.keyboard

    def focused():
        return page.evaluate("document.activeElement.id")

    keyboard.press("Tab")
    assert focused() == "language"
    keyboard.press("ArrowDown")
    assert page.get_by_label("Language").input_value() == "en"
    keyboard.press("Tab")
    assert focused() == "microphone"
    keyboard.press("Space")
    opened.wait_for_status("Recording")
    keyboard.press("Enter")
    opened.wait_for_status("Finished")
    page.locator("#file:enabled").wait_for()  # after the status, when the connection is closed
    keyboard.press("Tab")
    assert focused() == "file"
    # Without the file chooser itself, which Chromium sometimes does not open for a key press of a script.
    page.locator("#file").evaluate(
        "input => input.addEventListener('click', event => { event.preventDefault(); input.dataset.clicked = 'yes'; })"
    )
    keyboard.press("Enter")
    page.locator("#file[data-clicked=yes]").wait_for()
    page.locator("#file").set_input_files(recording)
    opened.wait_for_status("Finished")
    page.get_by_role("listitem").first.wait_for()
    keyboard.press("Tab")
    assert focused() == "srt"
    with page.expect_download():
        keyboard.press("Enter")


def test_every_control_has_an_accessible_name(opened):
    snapshot = opened.page.locator("body").aria_snapshot()
    controls = re.findall(r"- (button|combobox|textbox|link|table|heading)\b *(\"[^\"]+\")?", snapshot)
    assert {role for role, _ in controls} >= {"button", "combobox", "table", "heading"}
    assert all(name for _, name in controls), snapshot


def test_page_fits_a_phone(opened):
    opened.page.set_viewport_size({"width": 320, "height": 568})
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= 320


def test_errors_of_the_server_are_shown(opened, tmp_path):
    damaged = tmp_path / "damaged.wav"
    damaged.write_bytes(b"no audio" * 100)
    opened.page.get_by_label("Audio or video file").set_input_files(damaged)
    opened.page.locator("#file:enabled").wait_for()
    assert "cannot" in opened.page.get_by_role("status").inner_text()


def test_token_is_requested_and_sent(browser, model, recording, tmp_path):
    secret = tmp_path / "token"
    secret.write_text("secret")
    with run_server(model, token_file=secret) as server, browser.new_context() as context:
        opened = OpenPage(context, server.address)
        opened.wait_for_status("requires a token")
        opened.page.get_by_label("Token").fill("secret")
        opened.page.keyboard.press("Enter")
        opened.wait_for_status("Ready")
        opened.page.get_by_label("Audio or video file").set_input_files(recording)
        opened.wait_for_status("Finished")
        assert opened.texts()
