"""The cache of machine code: another folder for other code and other processors, and none where none can be written."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from univip_stream.proposals import jit


@pytest.fixture
def places(monkeypatch, tmp_path):
    """Looks for a folder anew, in a user's cache of the test."""
    jit._folder.cache_clear()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield tmp_path
    jit._folder.cache_clear()


def test_the_users_own_folder_comes_first(places, monkeypatch):
    monkeypatch.setattr(jit._config, "CACHE_DIR", str(places / "mine"))
    assert jit._folder() == places / "mine" / f"kernels-{jit._digest()}"


def test_a_folder_that_cannot_be_written_is_passed_over(places, monkeypatch):
    (places / "file").touch()
    monkeypatch.setattr(jit._config, "CACHE_DIR", str(places / "file" / "cache"))
    monkeypatch.setattr(jit, "__file__", str(places / "file" / "jit.py"))
    monkeypatch.setattr(jit, "_digest", lambda: "0")
    assert jit._folder() == places / "cache" / "univip-stream" / "kernels-0"


def test_without_any_folder_kernels_are_compiled_all_the_same(monkeypatch):
    monkeypatch.setattr(jit, "_folder", lambda: None)
    double = jit.entry(lambda values: values * 2)
    assert double(np.arange(3)).tolist() == [0, 2, 4]


def test_kernels_that_threads_import_at_once_all_go_to_the_one_folder(places, monkeypatch):
    """numba has one setting for all threads: unguarded, the second thread here loses it to the first, and would cache under no
    name of what the code depends on."""
    monkeypatch.setattr(jit._config, "CACHE_DIR", str(places / "mine"))
    compile_, made = jit.numba.njit, []
    first_came, second_came, first_is_done = threading.Event(), threading.Event(), threading.Event()

    def njit(**options):
        if threading.current_thread() is threads[0]:
            first_came.set()
            second_came.wait(0.5)  # in vain if it has to wait its turn
        else:
            second_came.set()
            first_is_done.wait(10)
        return compile_(**options)

    def make():
        made.append(jit.entry(lambda values: values * 2))
        first_is_done.set()

    monkeypatch.setattr(jit.numba, "njit", njit)
    threads = [threading.Thread(target=make) for _ in range(2)]
    threads[0].start()
    first_came.wait(10)
    threads[1].start()
    for thread in threads:
        thread.join()
    folder = places / "mine" / f"kernels-{jit._digest()}"
    assert [Path(kernel._cache._cache_path).parent for kernel in made] == [folder] * 2
    setting = jit._config.CACHE_DIR
    assert setting == str(places / "mine")


def test_other_processors_and_other_sources_have_other_folders(monkeypatch, tmp_path):
    here = jit._digest()
    assert jit._digest() == here
    with monkeypatch.context() as patch:
        patch.setattr(jit.binding, "get_host_cpu_name", lambda: "another")
        assert jit._digest() != here
    for source in Path(jit.__file__).parent.glob("*.py"):
        (tmp_path / source.name).write_bytes(source.read_bytes())
    monkeypatch.setattr(jit, "__file__", str(tmp_path / "jit.py"))
    assert jit._digest() == here
    with open(tmp_path / "graph.py", "a") as graph:
        graph.write("# changed\n")
    assert jit._digest() != here


KERNEL = """
import sys
import numpy as np
from univip_stream.proposals.jit import entry

@entry
def total(values):
    found = 0
    for value in values:
        found += value
    return found

print(total(np.arange(1000)), sum(total.stats.cache_hits.values()))
"""


@pytest.fixture
def kernel(tmp_path):
    """The command that runs a kernel and prints its result and how often machine code came from the cache."""
    (tmp_path / "kernel.py").write_text(KERNEL)
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": os.pathsep.join(sys.path)}

    def start() -> subprocess.Popen[str]:
        command = [sys.executable, str(tmp_path / "kernel.py")]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)

    return start


def test_processes_that_start_at_once_share_one_file(kernel, tmp_path):
    running = [kernel() for _ in range(4)]
    assert [process.communicate()[0].split()[0] for process in running] == ["499500"] * 4
    assert len(list((tmp_path / "cache").rglob("*.nbc"))) == 1
    assert kernel().communicate()[0].split() == ["499500", "1"]


def test_a_damaged_file_of_the_cache_is_compiled_anew(kernel, tmp_path):
    assert kernel().communicate()[0].split() == ["499500", "0"]
    for cached in (tmp_path / "cache").rglob("*.nb[ic]"):
        cached.write_bytes(cached.read_bytes()[:50])
    assert kernel().communicate()[0].split() == ["499500", "0"]
    assert kernel().communicate()[0].split() == ["499500", "1"]
