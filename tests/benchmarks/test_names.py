"""Programs beside the package take from it what is there: most of them run for minutes, and a renamed function showed up late."""

import ast
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = sorted(path for folder in ("benchmarks", "pipelines", "docs") for path in (ROOT / folder).rglob("*.py"))


def taken(path):
    """(module, name) of everything that a file imports from the package, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "univip_stream" and not node.level:
            yield from ((node.module, name.name) for name in node.names)


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_a_program_imports_is_there(path):
    for module, name in taken(path):
        found = import_module(module)
        if not hasattr(found, name):
            import_module(f"{module}.{name}")  # a module of a package
