"""Each set that can be installed does its job, in an environment that holds that set and nothing else.

The environments are made of what is installed here: a fresh interpreter sees the packages that pip would bring for a set, by their
own requirements, and no others. `docs/how-to/release.md` has the same with pip and an empty folder.
"""

import importlib.metadata
import json
import os
import subprocess
import tomllib
import venv
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from univip_stream.extras import EXTRAS

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def wanted(requirements: list[str], extras: set[str]) -> Iterator[Requirement]:
    for text in requirements:
        requirement = Requirement(text)
        if requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in extras or {""}):
            yield requirement


def packages_of(*sets: str) -> set[str]:
    """Names of all that pip would install for `univip-stream[sets]`, without the project itself."""
    optional = PROJECT["optional-dependencies"]
    todo = [Requirement(text) for name in sets for text in optional[name]]
    todo += [Requirement(text) for text in PROJECT["dependencies"]]
    done: dict[str, set[str]] = {}
    while todo:
        requirement = todo.pop()
        name = canonicalize_name(requirement.name)
        if name == "univip-stream":
            todo += [Requirement(text) for extra in requirement.extras for text in optional[extra]]
            continue
        extras = {"", *requirement.extras}
        if name in done and extras <= done[name]:
            continue
        done[name] = done.get(name, set()) | extras
        try:
            requires = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:  # for another system or Python
            continue
        todo += wanted(requires, done[name])
    return set(done)


def environment(folder: Path, packages: set[str]) -> Path:
    """The Python of a new environment that holds these packages of the present one, and the project."""
    venv.create(folder, with_pip=False, symlinks=True)
    [site] = folder.glob("lib/python*/site-packages")
    files = [file for name in sorted(packages) for file in _files(name)]
    owners: dict[str, set[str]] = {}
    for name, first, _ in files:
        owners.setdefault(first, set()).add(name)
    for _, first, path in files:
        # A folder of one package is one link; of several (namespaces such as `nvidia`) it is linked file by file.
        link = site / (first if len(owners[first]) == 1 else path)
        if not os.path.lexists(link):
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(_here() / link.relative_to(site))
    # By its own path, as an editable installation has it: numba's files of compiled kernels are kept by path.
    (site / "univip_stream.pth").write_text(f"{ROOT}\n")
    return folder / "bin" / "python"


def _here() -> Path:
    return Path(np.__file__).resolve().parents[1]


def _files(name: str) -> list[tuple[str, str, Path]]:
    try:
        found = importlib.metadata.files(name) or []
    except importlib.metadata.PackageNotFoundError:
        return []
    inside = [Path(str(file)) for file in found if not str(file).startswith("..")]
    return [(name, file.parts[0], file) for file in inside if file.parts[0] != "__pycache__"]


def called(python: Path, *words: object, folder: Path) -> subprocess.CompletedProcess[str]:
    environ = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    command = [str(python), "-m", "univip_stream", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environ, timeout=280)


def called_in_turn(python: Path, *commands: list[object], folder: Path) -> list[tuple[int, str]]:
    """(exit status, everything said) of each command, all in one process: each start of torch takes seconds."""
    code = (
        "import json, sys\nfrom click.testing import CliRunner\nfrom univip_stream.cli import cli\n"
        "for words in json.loads(sys.argv[1]):\n    done = CliRunner().invoke(cli, words, catch_exceptions=False)\n"
        "    print(json.dumps([done.exit_code, done.output]), file=sys.__stdout__)"
    )
    environ = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    words = json.dumps([[*map(str, words)] for words in commands])
    done = subprocess.run([python, "-c", code, words], capture_output=True, text=True, cwd=folder, env=environ, timeout=280)
    assert done.returncode == 0, done.stderr
    return [tuple(json.loads(line)) for line in done.stdout.splitlines()]


def has(python: Path, module: str) -> bool:
    code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({module!r}) is None)"
    return subprocess.run([python, "-I", "-c", code]).returncode == 0


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("photographs")
    rng = np.random.default_rng(0)
    for number in range(6):
        image = np.kron(rng.integers(0, 256, (4, 5, 3)), np.ones((64, 64, 1))).astype(np.uint8)
        cv2.imwrite(str(folder / f"{number}.png"), image)
    return folder


@pytest.fixture(scope="module")
def mining(tmp_path_factory) -> Path:
    return environment(tmp_path_factory.mktemp("mining") / "env", packages_of("mine"))


@pytest.fixture(scope="module")
def shards(mining, photographs, kernels, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("mined") / "shards"
    done = called(mining, "mine", "--src", photographs, "--out", out, "--workers", 1, "--json", folder=photographs)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["samples"] == 6
    return out


def test_a_machine_that_mines_needs_no_torch(mining, shards, tmp_path):
    assert [name for name in (*EXTRAS["train"], "skimage", "pytest") if has(mining, name)] == []
    *done, train, inspect = called_in_turn(
        mining,
        ["verify", shards],
        ["refilter", shards, "--min-scale", 32, "--inline", "--out", tmp_path / "other"],
        ["export", "boxes", shards, "--format", "coco", "--out", tmp_path / "boxes.json"],
        ["doctor", "--for", "mine", "--no-ray"],
        ["train", "--shards", shards, "--out", tmp_path / "run"],
        ["inspect", shards],  # it shows the trainer's views
        folder=tmp_path,
    )
    assert [status for status, _ in done] == [0] * 4, done
    for status, said in (train, inspect):
        assert status == 1
        assert "torch, which is not installed here: pip install 'univip-stream[train]'" in said


def test_a_machine_that_trains_needs_neither_ray_nor_numba(shards, tmp_path):
    python = environment(tmp_path / "env", packages_of("train"))
    assert [name for name in (*EXTRAS["mine"], "skimage", "pytest") if has(python, name)] == []
    run = tmp_path / "run"
    settings = ["--set", "steps=2", "--set", "stream.batch_size=2", "--set", "stream.workers=1"]
    trained = called(python, "train", "--shards", shards, "--out", run, "--recipe", "cpu-demo", *settings, folder=tmp_path)
    assert trained.returncode == 0, trained.stderr
    *done, (status, said) = called_in_turn(
        python,
        ["inspect", shards, "--html", tmp_path / "report.html"],
        ["plot", run, "--out", tmp_path / "curves.png"],
        ["export", "backbone", run, "--format", "timm", "--out", tmp_path / "backbone.pth"],
        ["doctor", "--for", "train"],
        ["mine", "--src", tmp_path, "--out", tmp_path / "mined"],
        folder=tmp_path,
    )
    assert [status for status, _ in done] == [0] * 4, done
    assert status == 1
    assert "which is not installed here: pip install 'univip-stream[mine]'" in said


def test_without_an_extra_the_commands_are_listed_and_say_what_they_need(shards, tmp_path):
    python = environment(tmp_path / "env", packages_of())
    assert [name for modules in EXTRAS.values() for name in modules if has(python, name)] == []
    help, verify, train, mine = called_in_turn(
        python,
        ["--help"],
        ["verify", shards],
        ["train", "--shards", shards, "--out", "run"],
        ["mine", "--src", shards, "--out", "more"],
        folder=tmp_path,
    )
    assert (help[0], verify[0]) == (0, 0), (help, verify)
    for status, said in (train, mine):
        assert status == 1
        assert "is not installed here: pip install 'univip-stream[" in said


def test_all_is_both_and_the_table_of_extras_is_pyprojects():
    assert packages_of("all") == packages_of("mine") | packages_of("train")
    for extra, modules in EXTRAS.items():
        names = {canonicalize_name(Requirement(text).name) for text in PROJECT["optional-dependencies"][extra]}
        assert names == {canonicalize_name(package) for package in modules.values()}
