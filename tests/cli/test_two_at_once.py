"""Two processes that write one place at the same time: one does it, the other too or is refused in words; nothing is torn."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from at_once import WRITING

HERE = Path(__file__).resolve().parent


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Command -> what came of it, of one process that forks them all."""
    folder = tmp_path_factory.mktemp("at-once")
    path = os.pathsep.join(
        [str(HERE), str(HERE.parent), str(HERE.parents[1] / "pipelines"), os.environ.get("PYTHONPATH", "")]
    )
    call = [sys.executable, str(HERE / "at_once.py"), str(folder / "work")]
    done = subprocess.run(call, capture_output=True, text=True, timeout=280, env=os.environ | {"PYTHONPATH": path})
    assert done.returncode == 0, done.stderr
    return {row["command"]: row for row in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize("name", WRITING)
def test_two_at_once_leave_a_whole_result(name, results):
    row = results[name]
    assert 0 in row["statuses"], row
    for status, said in zip(row["statuses"], row["said"], strict=True):
        assert status in (0, 1), said
        assert "Traceback" not in said
        assert "should not have happened" not in said
        assert status == 0 or "another" in said, said
    assert row["faults"] == []
