"""The web page: complete, without external resources, and usable without a mouse."""

import re
from html.parser import HTMLParser
from pathlib import Path

import httpx2
import pytest

import icefall_pathways.serve

PAGE = Path(icefall_pathways.serve.__file__).with_name("page")


class Elements(HTMLParser):
    """Collect the elements of a page."""

    def __init__(self, text):
        super().__init__()
        self.elements = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))


@pytest.fixture(scope="module")
def elements():
    return Elements((PAGE / "index.html").read_text(encoding="utf-8")).elements


@pytest.mark.parametrize("path", ["", *(f"page/{file.name}" for file in PAGE.iterdir() if file.suffix != ".html")])
def test_every_file_is_served_with_its_type(server, path):
    answer = httpx2.get(f"http://{server.address}/{path}")
    assert answer.content == (PAGE / (Path(path).name or "index.html")).read_bytes()
    assert (
        answer.headers["content-type"].split(";")[0]
        == {
            "": "text/html",
            ".css": "text/css",
            ".js": "text/javascript",
        }[Path(path).suffix]
    )
    assert "default-src 'self'" in answer.headers["content-security-policy"]


@pytest.mark.parametrize("name", ["other.js", "..%2fserver.py", "%2e%2e%2fserver.py", "."])
def test_other_files_are_not_served(server, name):
    assert httpx2.get(f"http://{server.address}/page/{name}").status_code == 404


def test_all_resources_are_files_of_the_page(elements):
    sources = [attrs.get("src") or attrs.get("href") for tag, attrs in elements if tag in ("script", "link", "img")]
    assert sources and all(source.startswith(("page/", "data:")) for source in sources)
    for file in PAGE.iterdir():
        assert not re.search(r"https?://", file.read_text(encoding="utf-8")), file


def test_controls_have_labels_and_results_are_announced(elements):
    labels = {attrs["for"] for tag, attrs in elements if tag == "label"}
    assert {attrs["id"] for tag, attrs in elements if tag in ("select", "input")} == labels
    by_id = {attrs["id"]: attrs for _, attrs in elements if "id" in attrs}
    assert by_id["transcript"]["aria-live"] == "polite"
    assert by_id["status"]["role"] == "status"
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in elements


def test_script_refers_to_elements_of_the_page(elements):
    script = (PAGE / "page.js").read_text(encoding="utf-8")
    used = set(re.findall(r'element\("([\w-]+)"\)', script))
    assert used and used <= {attrs["id"] for _, attrs in elements if "id" in attrs}
