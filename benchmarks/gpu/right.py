"""Part a: `pytest -m gpu`, each test's word kept as it is said."""

import os
from pathlib import Path
from typing import Any

import pytest
from part import Part, running

ROOT = Path(__file__).resolve().parents[2]


class Kept:
    """A pytest plugin that keeps what every test said, so that nothing is lost if the rest is cut off."""

    def __init__(self, part: Part) -> None:
        self.part = part

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """After every phase of a test; what failed or was skipped before the test itself counts, too."""
        if report.when != "call" and report.outcome == "passed":
            return
        name = report.nodeid.rsplit("::", 1)[-1]
        entry: dict[str, Any] = {"seconds": round(report.duration, 2), **dict(report.user_properties)}
        if report.outcome == "failed":
            entry["error"] = report.longreprtext[-1500:]
        elif report.outcome == "skipped":
            entry["left_out"] = str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr)
        else:
            entry["passed"] = True
        self.part.keep(name, entry)


def tests(part: Part) -> None:
    os.chdir(ROOT)
    os.environ["UNIVIP_GPU_TESTS"] = part.device.type
    # Warnings are not errors here: another version's must not hide what the GPU has to say. No shape checks: they need packages.
    command = [
        "-m",
        "gpu",
        "tests/gpu",
        "-o",
        "addopts=",
        "-o",
        "filterwarnings=default",
        "-o",
        "tmp_path_retention_policy=none",
    ]
    command += [f"--basetemp={part.work / 'pytest'}"]  # of its own: others on the machine tidy up the usual one
    status = pytest.main([*command, "-p", "no:cacheprovider", "-q", "--durations=8", "--tb=short"], plugins=[Kept(part)])
    if status not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.INTERRUPTED):
        part.keep("pytest", {"error": f"exit status {status!r}"})


if __name__ == "__main__":
    with running() as part:
        tests(part)
