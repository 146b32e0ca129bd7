"""MkDocs hook: generate pages and figures from the code.

Writes to docs/generated: the options of every command, the import graph, and copies of documents that are stored
elsewhere in the repository. Pages link to the sources of these, which a clone has; the site links to what is generated.
"""

import contextlib
import io
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
GENERATED = DOCS / "generated"

# Documents outside docs/, and the names of their pages.
COPIES = {
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "egs/mls/ASR/RESULTS.md": "results.md",
} | {f"egs/mls/ASR/{path.name}": path.name for path in sorted((ROOT / "egs" / "mls" / "ASR").glob("*.png"))}
# Pages that are generated from a file or folder of the repository.
PAGES = COPIES | {"icefall_pathways/commands": "options.md"}
FIGURES = {
    "<!-- import graph -->": "![Import graph: packages in layers, with arrows to the imported](import_graph.svg)"
}


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Link to generated pages and show generated figures; called by MkDocs for each page."""
    return with_generated(markdown, page.file.src_uri)


def with_generated(markdown: str, page: str) -> str:
    """Return the text of a page with links to generated pages in place of their sources, and generated figures.

    Args:
      markdown: The text.
      page: Path of the page in docs.
    """
    folder = (DOCS / page).parent
    generated = os.path.relpath(GENERATED, folder)

    def replace(match: re.Match[str]) -> str:
        source = os.path.relpath(os.path.normpath(folder / match[1]), ROOT)
        return f"]({generated}/{PAGES[source]}{match[2] or ''})" if source in PAGES else match[0]

    for marker, figure in FIGURES.items():
        markdown = markdown.replace(marker, figure.replace("](", f"]({generated}/"))
    return re.sub(r"\]\(([^)#\s]+)(#[^)\s]*)?\)", replace, markdown)


def on_pre_build(config: Any) -> None:
    """Generate everything before MkDocs collects its files."""
    GENERATED.mkdir(exist_ok=True)
    for source, target in COPIES.items():
        shutil.copyfile(ROOT / source, GENERATED / target)
    _write_if_changed(GENERATED / "options.md", options_page())
    _write_if_changed(GENERATED / "import_graph.svg", import_graph_figure())


def options_page() -> str:
    """Return the help of every command as Markdown."""
    from icefall_pathways import cli

    os.environ |= {"COLUMNS": "120", "NO_COLOR": "1"}
    parts = [
        "# Options",
        "Every script of the recipe is also a console command: `icefall-pathways train` is "
        "`./pruned_transducer_pathways/train.py`. Booleans accept 1, 0, true and false.",
    ]
    for name, script in cli.SCRIPTS.items():
        output = io.StringIO()
        with contextlib.redirect_stdout(output), contextlib.suppress(SystemExit):
            cli.read_config(name, ["--help"], prog=f"icefall-pathways {name}")
        text = re.sub(r"\x1b\[[0-9;]*m", "", output.getvalue())
        if "--help" not in text:
            raise RuntimeError(f"icefall-pathways {name} --help printed no options")
        parts += [f"## {name}", f"Script: `{script}`", f"```text\n{text.strip()}\n```"]
    return "\n\n".join(parts) + "\n"


def import_graph_figure() -> str:
    """Return an SVG of the packages in layers, with arrows from importers to imported packages."""
    sys.path.insert(0, str(ROOT / "tests"))
    from test_architecture import LAYERS, PACKAGE, component, import_graph, internal

    modules = internal(import_graph(ROOT, PACKAGE), PACKAGE)
    edges = {(component(edge.importer), component(edge.imported)) for edge in modules}
    return draw_layers(LAYERS, {(importer, imported) for importer, imported in edges if importer != imported})


def draw_layers(layers: Any, edges: set[tuple[str, str]]) -> str:
    """Draw one row of boxes per layer, the lowest layer at the bottom.

    Args:
      layers: Names of the packages of each layer, from the bottom to the top.
      edges: (importer, imported) pairs; those that a longer path implies are not drawn.
    """
    used = {name for edge in edges for name in edge}
    rows = [[name for name in layer if name in used] for layer in layers]
    rows = [row for row in rows if row][::-1]
    width, height, box = 900, 90 * len(rows), (136, 34)
    center = {}
    for level, row in enumerate(rows):
        shift = (-1) ** level * 110 if len(row) == 1 else 0  # so that arrows do not cross boxes
        for i, name in enumerate(row):
            center[name] = ((i + 0.5) * width / len(row) + shift, 45 + 90 * level)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="14">',
        '<defs><marker id="tip" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0,0 L10,5 L0,10 z" fill="#888"/></marker></defs>',
    ]
    for importer, imported in sorted(without_shortcuts(edges)):
        (x1, y1), (x2, y2) = center[importer], center[imported]
        parts.append(
            f'<line x1="{x1:.0f}" y1="{y1 + box[1] / 2:.0f}" x2="{x2:.0f}" y2="{y2 - box[1] / 2:.0f}" '
            'stroke="#888" marker-end="url(#tip)"/>'
        )
    for name, (x, y) in center.items():
        parts.append(
            f'<rect x="{x - box[0] / 2:.0f}" y="{y - box[1] / 2:.0f}" width="{box[0]}" height="{box[1]}" rx="6" '
            'fill="#e0f2f1" stroke="#00796b"/>'
            f'<text x="{x:.0f}" y="{y + 5:.0f}" text-anchor="middle" fill="#222">{name or "icefall_pathways"}</text>'
        )
    return "\n".join([*parts, "</svg>"]) + "\n"


def without_shortcuts(edges: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """Return the transitive reduction of an acyclic graph: drop edges that a longer path implies."""
    targets: dict[str, set[str]] = {}
    for importer, imported in edges:
        targets.setdefault(importer, set()).add(imported)

    def reachable(name: str) -> set[str]:
        below = targets.get(name, set())
        return below.union(*map(reachable, below)) if below else set()

    return {
        (importer, imported)
        for importer, imported in edges
        if not any(imported in reachable(other) for other in targets[importer] - {imported})
    }


def _write_if_changed(path: Path, text: str) -> None:
    """Write a file only if its text changes, because `mkdocs serve` rebuilds after every write."""
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")
