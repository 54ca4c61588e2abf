"""The layers of ARCHITECTURE.md hold: an import points down, and the two programs stay apart."""

import ast
import json
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "univip_stream"

# From the top down. A module may import what stands on its own line or below it.
LAYERS = [
    {"cli", "__main__"},
    {"api"},
    {"pretrain", "mining", "evaluation", "export", "report"},
    {"methods", "stream", "webdataset", "formats", "sources", "probe", "record", "loggers"},
    {"losses", "transport", "networks", "views", "augment", "plan", "proposals"},
    {"boxes", "shards", "images", "depth", "filetypes", "schedules", "checkpoint", "distributed", "workers", "cluster"},
    {"errors", "extras", "suggest", "failures", "shapes", "files", "parquet", "machine", "storage", "stopping", "typed"}
    | {"__init__"},
]
FLOOR = {name: height for height, names in enumerate(reversed(LAYERS)) for name in names}


def imported_parts(path: Path) -> Iterator[tuple[int, str]]:
    """(line, part of univip_stream) of every import in a file, also those inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            part = name.split(".")
            if part[0] == "univip_stream":
                yield node.lineno, part[1] if len(part) > 1 and part[1] in FLOOR else "__init__"


def part_of(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def test_every_module_has_a_layer():
    parts = {part_of(path) for path in PACKAGE.rglob("*.py")}
    assert parts <= set(FLOOR), f"no layer named for {sorted(parts - set(FLOOR))}"


def test_no_import_points_up():
    upward = [
        f"{path.relative_to(PACKAGE)}:{line} imports {part}"
        for path in PACKAGE.rglob("*.py")
        if path.parts[-1] != "__init__.py" or path.parent != PACKAGE
        for line, part in imported_parts(path)
        if FLOOR[part] > FLOOR[part_of(path)]
    ]
    assert not upward, "\n".join(upward)


def test_the_programs_do_not_import_each_other():
    programs = LAYERS[2]
    crossings = [
        f"{path.relative_to(PACKAGE)}:{line} imports {part}"
        for path in PACKAGE.rglob("*.py")
        for line, part in imported_parts(path)
        if part_of(path) in programs and part in programs and part != part_of(path)
    ]
    # Judging a run begins with loading what pre-training saved; that one arrow is meant.
    crossings = [c for c in crossings if not (c.startswith(("evaluation", "export", "report")) and "pretrain" in c)]
    assert not crossings, "\n".join(crossings)


def loaded_after(statements: list[str], names: set[str]) -> dict[str, set[str]]:
    """Which of `names` a fresh interpreter has loaded after each statement, where it has any; one for all, as starts are slow."""
    code = (
        "import json, sys\n"
        f"for statement in {statements!r}:\n"
        "    exec(statement)\n"
        f"    print(json.dumps([statement, *sorted(set(sys.modules) & {names!r})]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row[0] for row in rows] == statements
    return {statement: set(found) for statement, *found in rows if found}


def test_what_is_loaded_is_seen():
    assert loaded_after(["import json", "import csv"], {"csv"}) == {"import csv": {"csv"}}


def test_mining_loads_no_torch():
    offered = "import univip_stream; dir(univip_stream); univip_stream.MiningConfig, univip_stream.mine"
    assert loaded_after([offered], {"torch", "ray", "numba", "univip_stream.pretrain"}) == {}
    modules = ("cli.mine", "mining", "cli.verify", "api.mining")
    imports = [f"import univip_stream.{module}" for module in modules]
    assert loaded_after(imports, {"torch", "torchvision", "webdataset"}) == {}


def test_training_and_looking_load_neither_ray_nor_numba():
    statements = [
        "import univip_stream.report.sheets, univip_stream.report.page",
        "from univip_stream import train, evaluate, embed, TrainConfig",
        "import univip_stream.cli.train, univip_stream.pretrain",
    ]
    assert loaded_after(statements, {"ray", "numba"}) == {}


def test_training_runs_where_ray_numba_and_contrib_cannot_be_imported():
    blocked = (
        "import sys\n"
        "class Block:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('ray', 'numba') or name.startswith('cv2.ximgproc'):\n"
        "            raise ImportError(name + ' is not on this machine')\n"
        "sys.meta_path.insert(0, Block())\n"
        "import univip_stream.cli.train, univip_stream.pretrain, univip_stream.stream, univip_stream.methods"
    )
    assert loaded_after([blocked], {"ray", "numba"}) == {}


def test_the_list_of_commands_loads_nothing_heavy():
    help_call = "from univip_stream.cli import cli\ncli.main(['--help'], standalone_mode=False)"
    code = f"{help_call}\nimport sys\nassert not {{'torch', 'ray', 'cv2'}} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "mine" in done.stdout


def test_the_package_says_that_it_is_typed():
    """PEP 561: without the marker in the wheel, a type checker of those who use the package takes everything for Any."""
    assert (PACKAGE / "py.typed").is_file()
    data = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    assert data["univip_stream"] == ["py.typed"]
