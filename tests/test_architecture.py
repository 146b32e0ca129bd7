"""Imports run one way: no cycle between modules, and no import from a higher layer.

Imports are read with `ast`, including those inside functions and under `if TYPE_CHECKING`.
"""

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "icefall_pathways"

# From bottom to top. A component imports itself and components of lower layers, not other components of its layer.
# "" is `icefall_pathways/__init__.py`.
LAYERS = (
    ("interrupts",),
    ("constants", "errors", "files", "languages", "launch", "options", "ranges", "torch_compat"),
    ("json_types", "sharding"),
    ("corpora", "models"),
    ("data", "pathways"),
    ("optim",),
    ("experiment", "searches"),
    ("export",),
    ("training", "decoding"),
    ("transcription", "reporting"),
    ("recipe", "serve"),
    ("",),
    ("commands",),
    ("cli",),
    ("__main__",),
)

# For some components, the only other components that they may import.
ALLOWED = {
    "models": {"constants", "errors", "ranges", "torch_compat"},  # no languages, masks or files
    "pathways": {"errors", "files"},  # no speech
    "optim": {"pathways"},
}


class Import(NamedTuple):
    importer: str
    imported: str

    def __str__(self) -> str:
        return f"{self.importer} -> {self.imported}"


def module_name(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_names(tree: ast.AST, module: str, is_package: bool) -> Iterator[tuple[str, str]]:
    """Yield (module, name) of each import in a module; the name is "" for `import module`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".")
                parts = parts[: len(parts) - node.level + is_package]
                base = ".".join([*parts, base] if base else parts)
            yield from ((base, alias.name) for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
            match node.args:
                case [ast.Constant(value=str(name)), *_]:
                    yield name, ""


def import_graph(root: Path, package: str) -> set[Import]:
    """Return all imports of the package's modules, including those of other packages."""
    paths = {module_name(path, root): path for path in sorted((root / package).rglob("*.py"))}
    edges = set()
    for module, path in paths.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for base, name in imported_names(tree, module, path.name == "__init__.py"):
            submodule = f"{base}.{name}"
            edges.add(Import(module, submodule if submodule in paths else base))
    return edges


def internal(imports: set[Import], package: str) -> set[Import]:
    return {edge for edge in imports if edge.imported.split(".")[0] == package}


def find_cycle(imports: set[Import]) -> list[str]:
    """Return the modules of one cycle, or an empty list."""
    graph: dict[str, set[str]] = {}
    for importer, imported in imports:
        graph.setdefault(importer, set()).add(imported)
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(reversed(error.args[1]))
    return []


def component(module: str) -> str:
    """Return the part of the package that a module belongs to, such as "models"."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def layer(module: str) -> int:
    for index, components in enumerate(LAYERS):
        if component(module) in components:
            return index
    raise AssertionError(f"{module} belongs to no layer: add {component(module)!r} to LAYERS in {__file__}")


def is_upward(edge: Import) -> bool:
    return component(edge.importer) != component(edge.imported) and layer(edge.imported) >= layer(edge.importer)


@pytest.fixture(scope="module")
def imports() -> set[Import]:
    return import_graph(ROOT, PACKAGE)


def test_imports_have_no_cycle(imports):
    cycle = find_cycle(internal(imports, PACKAGE))
    assert not cycle, f"import cycle: {' -> '.join(cycle)}. Move what both modules need into a third one"


def test_no_import_points_upward(imports):
    upward = sorted(str(edge) for edge in internal(imports, PACKAGE) if is_upward(edge))
    assert not upward, f"imports of a higher or parallel layer: {upward}. See LAYERS for the order"


@pytest.mark.parametrize("name", ALLOWED)
def test_component_imports_only_allowed_components(imports, name):
    edges = {edge for edge in internal(imports, PACKAGE) if component(edge.importer) == name}
    assert edges, f"{PACKAGE}.{name} has no imports: does it still exist?"
    others = sorted(str(edge) for edge in edges if component(edge.imported) not in ALLOWED[name] | {name})
    assert not others, f"{PACKAGE}.{name} may import {sorted(ALLOWED[name])} only: {others}"


def test_matplotlib_is_imported_in_one_module(imports):
    importers = {edge.importer for edge in imports if edge.imported.split(".")[0] == "matplotlib"}
    assert importers == {f"{PACKAGE}.pathways.plots"}, "draw with the functions of pathways/plots.py"


def test_scripts_are_not_imported(imports):
    scripts = {path.stem for folder in ("egs", "benchmarks") for path in (ROOT / folder).rglob("*.py")}
    assert "prune" in scripts
    outside = {edge for edge in imports if edge.imported.split(".")[0] in scripts | {"egs", "benchmarks", "tests"}}
    assert not outside, f"the library imports scripts: {sorted(map(str, outside))}"


@pytest.mark.parametrize(
    "statement",
    [
        "from toy.training import b",
        "from toy.training.b import value",
        "import toy.training.b",
        "from ..training import b",
        "def f():\n    from toy.training.b import value",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from toy.training.b import value",
        'import importlib\nimportlib.import_module("toy.training.b")',
    ],
)
def test_upward_imports_and_cycles_are_detected(tmp_path, statement):
    for file, text in {
        "toy/__init__.py": "",
        "toy/models/__init__.py": "",
        "toy/models/a.py": statement,
        "toy/training/__init__.py": "",
        "toy/training/b.py": "from toy.models.a import value",
    }.items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(text)
    edges = internal(import_graph(tmp_path, "toy"), "toy")
    upward = Import("toy.models.a", "toy.training.b")
    assert {edge for edge in edges if is_upward(edge)} == {upward}
    assert set(find_cycle(edges)) == {"toy.models.a", "toy.training.b"}
    assert not find_cycle(edges - {upward})


def test_component_without_layer_is_reported():
    with pytest.raises(AssertionError, match="add 'toys' to LAYERS"):
        layer(f"{PACKAGE}.toys.train")
