"""Find slow tests, and share the machine out: how many processes, and how many Rays at once.

Slow tests run first if several processes share the suite, and `make test-fast` leaves them out.

A test counts as slow if it starts or trains something, which is found from the names that it, its fixtures and its helpers
use, so nobody has to mark it. A test that takes long for another reason gets `@pytest.mark.slow`; the end of a run names such
tests.
"""

import contextlib
import fcntl
import inspect
import os
import time
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FunctionType
from typing import IO

import pytest

STARTS = frozenset(
    {
        "subprocess", "multiprocessing", "warm", "Cluster", "attached",  # processes, Ray
        "s3_server", "web_server", "odd_server", "dripping", "page_at",  # servers, browsers
        "pretrain",
    }
)  # fmt: skip
LONG = 2
"""Seconds above which a test that is not marked slow is named at the end of a run."""
FIRST = (
    "test_documentation",
    "test_compiled",
    "test_walk",
    "test_detection",
    "test_pretended_gpu",
    "test_kill",
    "test_disturbed",
    "test_train",
    "test_drip",
    "test_resume",
    "test_workers",
    "test_gpu",
    "test_mine",
    "test_distributed",
    "test_strange_shards",
    "test_surroundings",
    "test_kernels",
    "test_cluster",
    "test_add",
    "test_photographs",
    "test_on_ray",
    "test_elastic",
)
"""Files that take longest. They run first, so that none of them is left for the end."""
TESTS = str(Path(__file__).resolve().parent) + os.sep
AT_MOST = 4
"""Cores that the suite uses: with more, each start costs more than it brings."""
RAYS = 2
"""Tests that start a Ray at the same time: each takes a gigabyte and, while it starts, more than a core."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """A process more than cores: tests that wait for servers, clusters and browsers leave a quarter of the cores idle."""
    return min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, AT_MOST) + 1


@pytest.hookimpl(hookwrapper=True, tryfirst=True)  # outermost, so that a wait for room counts for no test's time
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    with contextlib.ExitStack() as held:
        if hasattr(item.config, "workerinput") and item.get_closest_marker("ray"):
            folder = item.config._tmp_path_factory.getbasetemp().parent
            held.enter_context(_room(folder))
        yield


@contextlib.contextmanager
def _room(folder: Path) -> Iterator[None]:
    """Wait until fewer than `RAYS` of the processes that share the suite hold a lock in this folder, and hold one."""
    with contextlib.ExitStack() as files:
        locks = [files.enter_context(open(folder / f"ray{number}.lock", "w")) for number in range(RAYS)]
        while not (held := next(filter(_locked, locks), None)):
            time.sleep(0.1)
        yield
        fcntl.flock(held, fcntl.LOCK_UN)  # forks that are left over hold the file open


def _locked(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if hasattr(config, "workerinput"):  # set by pytest-xdist, which distributes files in this order
        items.sort(key=lambda item: FIRST.index(item.path.stem) if item.path.stem in FIRST else len(FIRST))
    known: dict[FunctionType, bool] = {}
    for item in items:
        if isinstance(item, pytest.Function):
            fixtures = item._fixtureinfo.name2fixturedefs.values()
            functions = [item.function, *(fixture.func for several in fixtures for fixture in several)]
            if any(_starts(function, known) for function in functions):
                item.add_marker("slow")


def _starts(function: object, known: dict[FunctionType, bool]) -> bool:
    if not callable(function) or not isinstance(function := inspect.unwrap(function), FunctionType):
        return False
    if function not in known:
        if not function.__code__.co_filename.startswith(TESTS):
            return known.setdefault(function, False)
        known[function] = False  # a preliminary answer, for functions that call each other
        names = set(_names(function.__code__))
        known[function] = not STARTS.isdisjoint(names) or any(
            _starts(function.__globals__.get(name), known) for name in names
        )
    return known[function]


def _names(code: CodeType) -> Iterator[str]:
    """Yield the names that a function's code, and code inside it, uses: globals, attributes, parameters."""
    yield from (*code.co_names, *code.co_varnames)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    seconds: dict[str, float] = {}
    for report in terminalreporter.getreports(""):
        if isinstance(report, pytest.TestReport) and "slow" not in report.keywords:
            seconds[report.nodeid] = seconds.get(report.nodeid, 0) + report.duration
    if long := sorted((took, name) for name, took in seconds.items() if took > LONG):
        terminalreporter.section("slow tests that are not marked slow")
        for took, name in reversed(long):
            terminalreporter.write_line(f"{took:5.1f} s  {name}")
