"""Links between documents, as a reader of a clone follows them."""

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = {"": "*.md", **dict.fromkeys(("benchmarks", "deploy", "docs", "egs", "examples", "tests"), "**/*.md")}
GENERATED = ROOT / "docs" / "generated"
PAGES = [
    page
    for folder, pattern in FOLDERS.items()
    for page in sorted((ROOT / folder).glob(pattern))
    if GENERATED not in page.parents
]


def links_of(page):
    """Return the targets of the links and images of a page that are files, without those in code blocks."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    return [target for target in targets if not re.match(r"[a-z]+:", target)]


def anchors_of(page):
    """Return the anchors of the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def test_documents_are_found():
    names = {page.relative_to(ROOT).as_posix() for page in PAGES}
    assert {"README.md", "CONTRIBUTING.md", "docs/guide/data.md", "egs/mls/ASR/RESULTS.md"} <= names


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_to_files_and_headings_of_the_repository(page):
    for link in links_of(page):
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists() and GENERATED not in (target, *target.parents), link
        assert not anchor or target.suffix != ".md" or anchor in anchors_of(target), link


def test_pages_of_the_site_link_to_generated_pages():
    with_generated = runpy.run_path(str(ROOT / "docs" / "generate.py"))["with_generated"]
    text = "[a](../../CONTRIBUTING.md#style) ![b](../images/b.png) [c](../../icefall_pathways/commands) [d](#e)"
    expected = "[a](../generated/contributing.md#style) ![b](../images/b.png) [c](../generated/options.md) [d](#e)"
    assert with_generated(text, "guide/data.md") == expected
    assert with_generated("<!-- import graph -->", "architecture.md").endswith("](generated/import_graph.svg)")
