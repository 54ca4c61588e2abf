"""Two processes that write one place, and processes killed between two files: nothing is torn, and the same command goes on."""

import json
import shutil
from pathlib import Path

import pytest
from disturbed import KILLED, WRITING

HERE = Path(__file__).resolve().parent


@pytest.fixture(scope="module")
def results(tmp_path_factory, warm):
    """(what was done, command) -> what came of it, of one process that forks them all, itself a fork that has computed nothing."""
    folder = tmp_path_factory.mktemp("disturbed")
    path = [str(HERE), str(HERE.parent), str(HERE.parents[1] / "pipelines")]
    script = f"import runpy, sys; sys.path[:0] = {path}; runpy.run_path({str(HERE / 'disturbed.py')!r}, run_name='__main__')"
    done = warm.run(["-c", script, folder / "work"], timeout=280)
    assert done.returncode == 0, done.stderr
    rows = map(json.loads, done.stdout.splitlines())
    return {("two", row["two"]) if "two" in row else ("killed", row["killed"]): row for row in rows}


@pytest.mark.parametrize("name", WRITING)
def test_two_at_once_leave_a_whole_result(name, results):
    row = results["two", name]
    assert 0 in row["statuses"], row
    for status, said in zip(row["statuses"], row["said"], strict=True):
        assert status in (0, 1), said
        assert "Traceback" not in said
        assert "should not have happened" not in said
        assert status == 0 or "another" in said, said
    assert row["faults"] == []


@pytest.mark.skipif(not shutil.which("strace"), reason="needs strace")
@pytest.mark.parametrize("name", KILLED)
def test_killed_at_each_rename_and_run_again_gives_the_same(name, results):
    row = results["killed", name]
    assert row["points"]
    assert row["faults"] == []
