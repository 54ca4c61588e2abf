"""What `benchmarks/gpu.sh` survives: the script itself, around parts that take no time and need no torch.

Real parts are rehearsed in test_gpu.py.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
QUICK = """
import json, sys
from pathlib import Path
path = Path(sys.argv[1])
path.write_text(json.dumps({"entries": {"one": {"value": 1}}}))
print("a word")
"""
# As torch's libraries may: deaf to requests to stop, with a child of its own.
HANGS = (
    QUICK
    + """
import signal, subprocess, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"])
Path(sys.argv[1]).with_suffix(".child").write_text(str(child.pid))
time.sleep(100)
"""
)
# As real parts: ends when asked to, and says so.
WAITS = (
    QUICK
    + """
import signal, time
def stop(*_):
    path.write_text(json.dumps({"entries": {"one": {"value": 1}, "two": {"left_out": "stopped"}}}))
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
Path(sys.argv[1]).with_suffix(".pid").write_text(str(__import__("os").getpid()))
time.sleep(100)
"""
)


@pytest.fixture
def script(tmp_path: Path) -> Callable[..., list[str]]:
    """The script in a tree of its own, with these parts in place of the real ones."""
    tree = tmp_path / "tree"
    (tree / "benchmarks" / "gpu").mkdir(parents=True)
    shutil.copy(ROOT / "benchmarks" / "gpu.sh", tree / "benchmarks")
    for name in ("__main__.py", "processes.py"):
        shutil.copy(ROOT / "benchmarks" / "gpu" / name, tree / "benchmarks" / "gpu")

    def command(out: Path, **parts: str) -> list[str]:
        for name in ("right", "rates", "augmenting", "streaming", "learning"):
            (tree / "benchmarks" / "gpu" / f"{name}.py").write_text(parts.get(name, QUICK))
        return ["bash", str(tree / "benchmarks" / "gpu.sh"), str(out), "--rehearse", "--work", str(tmp_path / "work")]

    return command


def run(command: list[str], *more: str, **environment: str) -> subprocess.CompletedProcess[str]:
    environment = {"PYTHON": sys.executable} | environment
    return subprocess.run(
        [*command, *more], env=os.environ | environment, capture_output=True, text=True, timeout=100, check=False
    )


def until(what: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.05)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def summary(out: Path) -> dict:
    return json.loads((out / "summary.json").read_text())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--budget", "0"], "expected seconds above 0"),
        (["--budget", "-5"], "expected seconds above 0"),
        (["--budget", "nan"], "expected seconds above 0"),
        (["--parts", "ax"], "there is no part x"),
        (["--parts", ""], "no part is named"),
        (["--parts", "aba"], "part a comes twice"),
    ],
)
def test_wrong_words_are_told_before_anything_runs(script, tmp_path, words, said):
    done = run(script(tmp_path / "out"), *words)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out" / "summary.json").exists()


def test_without_python_or_a_folder_to_write_to_it_says_so(script, tmp_path):
    done = run(script(tmp_path / "out"), PYTHON="python-that-nobody-has")
    assert done.returncode == 2
    assert "error: there is no python-that-nobody-has here; PYTHON=... names another" in done.stderr
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", Path("/proc/univip-gpu")):
        done = run(script(out))
        assert done.returncode == 2
        assert f"error: {out} cannot be written to" in done.stderr
        assert "Traceback" not in done.stderr


def test_what_torch_lacks_is_told_in_a_sentence_and_nothing_runs(script, tmp_path):
    bare = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", bare], check=True)
    done = run(script(tmp_path / "out"), PYTHON=str(bare / "bin" / "python"), PYTHONPATH="")
    assert done.returncode == 1
    assert "error: torch is missing in" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    assert "torch" in summary(tmp_path / "out")["machine"]["missing"]
    assert summary(tmp_path / "out")["parts"] == {}


def test_an_old_torch_is_told_and_tried(script, tmp_path):
    old = tmp_path / "old" / "torch-2.4.1.dist-info"
    old.mkdir(parents=True)
    (old / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 2.4.1\n")
    done = run(script(tmp_path / "out"), "--parts", "a", PYTHONPATH=str(old.parent))
    assert "torch 2.4.1 is older than 2.11" in done.stdout
    assert summary(tmp_path / "out")["parts"]["a"]["done"] == 1


def test_a_full_disk_loses_the_transcript_and_no_part(script, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "transcript.txt").symlink_to("/dev/full")
    done = run(script(out))
    assert [part["status"] for part in summary(out)["parts"].values()] == [0] * 5
    assert done.stdout.count("a word") == 5
    assert "transcript.txt cannot be written" in done.stderr
    (out / "summary.part").symlink_to("/dev/full")
    done = run(script(out))
    assert done.stdout.count("a word") == 5
    assert '"parts"' in done.stdout  # what could not be written is said


def test_a_reader_that_goes_away_stops_nothing(script, tmp_path):
    out = tmp_path / "out"
    command = " ".join(script(out))
    subprocess.run(["bash", "-c", f"{command} | true"], env=os.environ | {"PYTHON": sys.executable}, timeout=100, check=True)
    assert [part["status"] for part in summary(out)["parts"].values()] == [0] * 5


def test_a_part_that_hangs_is_killed_with_what_it_started_and_the_next_one_runs(script, tmp_path):
    out = tmp_path / "out"
    command = script(out, right=HANGS)
    main = Path(command[1]).parent / "gpu" / "__main__.py"
    main.write_text(main.read_text().replace("_GRACE = 15.0", "_GRACE = 1.0"))
    done = run(command, "--parts", "ab", "--budget", "6")
    assert done.returncode == 1
    found = summary(out)["parts"]
    assert "stopped at its limit" in found["a"]["status"]
    assert found["a"]["seconds"] < 10
    assert found["a"]["done"] == 1
    assert not alive(int((out / "a.child").read_text()))
    assert found["b"]["status"] in (0, "left out: no time left")


def test_asked_to_stop_it_stops_its_part_and_keeps_what_was_found(script, tmp_path):
    out = tmp_path / "out"
    process = subprocess.Popen([*script(out, rates=WAITS)], env=os.environ | {"PYTHON": sys.executable})
    until((out / "b.pid").exists)
    assert summary(out)["parts"]["b"]["status"] == "running"
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == 143
    found = summary(out)["parts"]
    assert [*found] == ["a", "b"]
    assert found["b"]["status"] == "stopped from outside (0)"
    assert found["b"]["done"] == 2
    until(lambda: not alive(int((out / "b.pid").read_text())))


def test_killed_outright_it_leaves_no_part_behind_and_its_json_is_whole(script, tmp_path):
    out = tmp_path / "out"
    process = subprocess.Popen([*script(out, rates=WAITS)], env=os.environ | {"PYTHON": sys.executable})
    until((out / "b.pid").exists)
    process.kill()
    process.wait()
    until(lambda: not alive(int((out / "b.pid").read_text())))
    assert summary(out)["parts"]["a"]["status"] == 0
    assert summary(out)["parts"]["b"]["status"] == "running"
    assert json.loads((out / "b.json").read_text())["entries"]["two"] == {"left_out": "stopped"}


def test_another_start_keeps_what_the_first_one_found(script, tmp_path):
    out = tmp_path / "out"
    assert run(script(out)).returncode == 0
    fails = "import sys; sys.exit(3)"
    done = run(script(out, right=fails), "--parts", "a")
    assert done.returncode == 1
    # What an earlier start found is not taken for what this one did.
    assert summary(out)["parts"]["a"] == summary(out)["parts"]["a"] | {"status": 3, "done": 0}
    assert json.loads((out / "a.1.json").read_text())["entries"] == {"one": {"value": 1}}
    assert [*json.loads((out / "summary.1.json").read_text())["parts"]] == [*"abcde"]
    assert (out / "b.json").exists()
    assert (out / "transcript.txt").read_text().count("== a: ") == 2


def test_what_is_carried_is_whole_small_and_counted(tmp_path):
    from PIL import Image

    here = tmp_path / "gpu"
    here.mkdir()
    text = (ROOT / "benchmarks" / "gpu" / "carry.sh").read_text()
    start, end = text.index("for package in"), text.index("done\n") + len("done\n")
    (here / "carry.sh").write_text(text[:start] + text[end:])  # wheels want a network

    def carry(*words: object) -> subprocess.CompletedProcess[str]:
        return run(["bash", str(here / "carry.sh")], *map(str, words))

    source = tmp_path / "imagenette"
    for split in ("train", "val"):
        for name in ("n1", "n2"):
            (source / split / name).mkdir(parents=True)
            for number in range(3):
                Image.new("RGB", (128, 96), (number * 50, 0, 0)).save(source / split / name / f"{number}.JPEG")
    (source / "train" / "noisy.csv").write_text("a list beside the classes")
    (source / "train" / "n1" / "broken.JPEG").write_bytes(b"no image")
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    Image.new("RGB", (64, 64)).save(photographs / "one.JPG", "JPEG")
    for _ in range(2):
        done = carry(source, photographs)
        assert done.returncode == 0, done.stderr
        assert "left out: " in done.stdout
        assert "in 12 files: imagenette" in done.stdout
        assert "in 1 files: photographs" in done.stdout
    assert not list(here.rglob("*.part"))
    for words, said in (((tmp_path / "nothing",), "holds no train/"), (("", tmp_path / "tree"), "holds no JPEGs")):
        done = carry(*words)
        assert done.returncode == 1
        assert said in done.stderr
        assert "Traceback" not in done.stderr
    with open(here / "carried" / "large", "wb") as file:
        file.truncate(61 * 2**20)
    done = carry("")
    assert done.returncode == 1
    assert "more than 60 MiB" in done.stderr
