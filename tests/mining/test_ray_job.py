"""A job handed to a cluster with `ray job submit`, by the command of docs/how-to/cluster.md: stopped, given again, the same bytes.

A real head of its own on loopback with the job server, which needs the parts of `ray[default]`; nothing here is pretended.
"""

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from importlib.util import find_spec
from pathlib import Path

import pytest
from test_kill import SECONDS, config, contents, wait_for

from univip_stream.mining import mine

pytestmark = pytest.mark.ray
PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "cluster.md"
SERVERS_PARTS = ("aiohttp_cors", "colorful", "opencensus", "opentelemetry.exporter.prometheus", "prometheus_client")
"""What Ray's job server imports beside Ray (the extra `default`)."""
PROPOSALS = "test_kill:propose_slowly"


def missing() -> list[str]:
    def lacks(name: str) -> bool:
        try:
            return find_spec(name) is None
        except ModuleNotFoundError:
            return True

    return [name for name in SERVERS_PARTS if lacks(name)]


def said_in(page: Path, beginning: str) -> list[str]:
    """The words of the one command of a page that begins so."""
    found = re.findall(rf"^{beginning}.*$", page.read_text(), re.MULTILINE)
    assert len(found) == 1, found
    return shlex.split(found[0])


def free_ports(count: int) -> list[str]:
    with ExitStack() as stack:
        taken = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [str(server.getsockname()[1]) for server in taken]


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, dict[str, str]]]:
    """(address of a cluster's job server, the environment of a person who may use it)."""
    if lacking := missing():
        pytest.skip(f"Ray's job server needs {', '.join(lacking)}; pip install 'ray[default]'")
    home = tmp_path_factory.mktemp("head")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | {
        "HOME": str(home), "RAY_AUTH_MODE": "token", SECONDS: "2",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)]),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }  # fmt: skip
    # Once, as the page says; then whoever has the file may hand in jobs.
    subprocess.run(said_in(PAGE, "ray get-auth-token"), env=environment, check=True, capture_output=True, timeout=120)
    port, client, server, agent = free_ports(4)
    own = {"--port": port, "--ray-client-server-port": client, "--dashboard-port": server, "--dashboard-agent-listen-port": agent,
           "--min-worker-port": "0", "--max-worker-port": "0", "--num-cpus": "1", "--object-store-memory": "100000000"}  # fmt: skip
    command = [*said_in(PAGE, "ray start --head"), "--block", *[word for pair in own.items() for word in pair]]
    with (home / "log").open("wb") as log:
        ray = subprocess.Popen(command, env=environment, cwd=home, stdout=log, stderr=log, start_new_session=True)
    try:

        def answers() -> bool:
            assert ray.poll() is None, (home / "log").read_text()
            return "--block" in (home / "log").read_text()

        wait_for(answers, seconds=240)
        yield f"http://127.0.0.1:{server}", environment
    finally:
        ray.terminate()
        try:
            ray.wait(60)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(ray.pid, signal.SIGKILL)  # its session: whatever a head that hangs has left


def submitted(head: tuple[str, dict[str, str]], source: Path, out: Path, *ray: str) -> subprocess.Popen[str]:
    address, environment = head
    words = said_in(PAGE, "ray job submit")
    own = {"http://127.0.0.1:8265": address, "/data/photos": str(source), "/data/shards": str(out)}
    assert own.keys() <= set(words)
    words = [own.get(word, word) for word in words]
    words[words.index("--") : words.index("--")] = ray
    return subprocess.Popen(
        [*words, "--num-shards", "3", "--proposals", PROPOSALS], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True,
    )  # fmt: skip


@pytest.mark.timeout(900)
def test_a_job_is_stopped_then_handed_in_again_and_leaves_the_bytes_of_mining_here(head, drawn_folder, tmp_path, monkeypatch):
    monkeypatch.setenv(SECONDS, "0")
    mine(config(drawn_folder, tmp_path / "here", proposals=PROPOSALS))
    out = tmp_path / "by-job"

    first = submitted(head, drawn_folder, out, "--submission-id", "first")
    wait_for(lambda: list(out.glob("*.parquet")) or first.poll() is not None, seconds=300)
    address, environment = head
    stopped = subprocess.run(
        ["ray", "job", "stop", "--address", address, "first"], env=environment, capture_output=True, text=True, timeout=200
    )
    said = first.communicate(timeout=200)[0]
    assert "was stopped" in stopped.stdout + stopped.stderr, said
    assert not (out / "manifest.json").exists()
    assert "run the same command again" in said
    assert "Traceback" not in said

    again = submitted(head, drawn_folder, out)
    said = again.communicate(timeout=400)[0]
    assert again.returncode == 0, said
    assert "12 images: 12 ok" in said
    assert contents(out) == contents(tmp_path / "here")


@pytest.mark.timeout(600)
def test_a_job_that_fails_says_why_and_fails_the_command(head, tmp_path):
    job = submitted(head, tmp_path / "nothing", tmp_path / "out")
    said = job.communicate(timeout=500)[0]
    assert job.returncode == 1, said
    assert re.search(rf"error: .*{re.escape(str(tmp_path / 'nothing'))}", said)
    assert "Traceback" not in said
