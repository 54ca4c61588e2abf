"""Kill a command, or fill its disk, at each system call by which it changes its files; run it again and compare.

Of the writes of one file only some are tried.

By hand, for all of it (about a quarter of an hour): `python tests/cli/crashes.py FOLDER [COMMAND ...]`, with PYTHONPATH at the
repository, at tests/ and at pipelines/. It needs strace. The ordinary suite does a few points (test_disturbed.py).

A command runs in a fork of a process that has imported everything, and strace attaches to it before it begins: so a point costs
what the command costs, not what importing torch does.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from commands import TABLE, coco_of, line

CHANGES = (
    "fsync",
    "fdatasync",
    "rename",
    "renameat",
    "renameat2",
    "unlink",
    "unlinkat",
    "mkdir",
    "ftruncate",
    "link",
    "symlink",
)
MOST_WRITES = 6
"""Points among the writes of one file, evenly: a checkpoint has a thousand."""
WRITES = ("write", "pwrite64", "writev", "pwritev")
NOTED = re.compile(r'"(?:time|seconds|images_per_second|data_wait|memory_bytes|created|wall\w*|took\w*|cpu\w*)": [^,}\n]+')
"""What differs from run to run and may."""


@dataclass(frozen=True)
class Case:
    """A command whose files are compared."""

    name: str
    row: str
    instead: dict[str, list[str]] = field(default_factory=dict)
    out: str = "out"
    """What is written, below the case's folder."""

    def words(self, places, home):
        return line(self.row, places | {"out": str(home / "out")}, **self.instead)


CASES = [
    Case("mine", "mine", {"num_shards": ["2"]}),
    Case("refilter", "refilter", {"min_scale": ["80"]}),
    Case("import boxes", "import boxes"),
    Case("train", "train", {"steps": ["2"], "settings": [*TABLE["train"].base["settings"], "checkpoint_every=1"]}),
    Case("train, decoded cache", "train", {"decoded_cache": ["{out}-decoded"], "steps": ["2"]}),
    Case("train, remote cache", "train", {"shards": ["{web}/manifest.json"], "cache": ["{out}-cache"]}),
    Case("embed", "embed", out="out.parquet"),
    Case("retrieve", "retrieve", out="out.parquet"),
    Case("eval knn", "eval knn", {"cache": ["{out}-features"]}, out="out.json"),
    Case("eval linear", "eval linear", {"cache": ["{out}-features"]}, out="out.json"),
    Case("eval finetune", "eval finetune", {"rates": ["0.1", "0.01"]}, out="out.json"),
    Case("eval detect", "eval detect", {"iterations": ["2"], "save_every": ["1"]}, out="out.json"),
    Case(
        "export backbone",
        "export backbone",
        {"run": ["{resnet}"], "format": ["detectron2"], "out": ["{out}.pkl"]},
        out="out.pkl",
    ),
    Case("export boxes coco", "export boxes", out="out.json"),
    Case("export boxes soco", "export boxes", {"format": ["soco"], "out": ["{out}"]}),
    Case("export boxes detreg", "export boxes", {"format": ["detreg"], "out": ["{out}"]}),
    Case("inspect", "inspect", {"png": ["{out}-sheets"]}, out="out.html"),
    Case("plot", "plot", out="out.html"),
    Case("explain", "explain", out="out.png"),
]


def prepare(home: Path) -> dict[str, str]:
    """Images, shards, a run and the rest that the commands read; made in forks, so that no thread runs in this process."""
    import cv2
    import numpy as np
    from demo_images import SHAPES, draw_scene
    from small_voc import voc07

    home.mkdir(parents=True)
    rng = np.random.default_rng(7)
    for name, shape in (
        (name, shape) for name in ("images", *(f"labelled/{one}" for one in SHAPES[:2])) for shape in SHAPES[:4]
    ):
        (home / name).mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(home / name / f"{shape}.jpg"), cv2.cvtColor(draw_scene(shape, rng, 320, 240), cv2.COLOR_RGB2BGR))
    shutil.copytree(home / "images", home / "coco" / "train2017")
    coco_of(home / "coco" / "annotations", [(path.name, 320, 240) for path in sorted((home / "images").iterdir())])
    places = {name: str(home / name) for name in ("images", "labelled", "coco", "shards", "run", "resnet", "missing")}
    places |= {
        "image": str(home / "images" / f"{SHAPES[0]}.jpg"), "features": str(home / "features.parquet"),
        "boxes.json": str(home / "coco" / "annotations" / "instances_train2017.json"),
    }  # fmt: skip
    places["voc07"] = str(voc07(home / "voc"))
    small = {"proposals": ["naive"], "num_shards": ["2"], "out": [places["shards"]]}
    for words in (
        line("mine", places, **small),
        line("train", places, out=[places["run"]]),
        line("train", places, out=[places["resnet"]], backbone=["resnet18"]),
        line("embed", places, source=[places["shards"]], out=[places["features"]]),
    ):
        status, said = run(words, home)
        assert status == 0, said
    return places


def run(words, folder: Path, *, inject: str | None = None, log: Path | None = None):
    """(status, what was said) of a command in a fork; with strace where something is injected or logged."""
    said = tempfile.TemporaryFile()  # noqa: SIM115
    ready, go = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        status = 99
        try:
            os.close(go)
            os.dup2(said.fileno(), 1)
            os.dup2(said.fileno(), 2)
            os.chdir(folder)
            os.read(ready, 1)
            from univip_stream.cli import cli

            cli.main([*words], prog_name="univip-stream")
        except SystemExit as left:
            status = left.code if isinstance(left.code, int) else 0 if left.code is None else 1
        finally:
            sys.stdout.flush()
            os._exit(status)
    os.close(ready)
    tracer = None
    if inject or log:
        call = ["strace", "-f", "-y", "-qqq", "-s", "0", "-p", str(child), "-o", str(log or "/dev/null")]
        call += ["-e", f"trace={','.join(CHANGES + WRITES)}", *(["-e", f"inject={inject}"] if inject else [])]
        tracer = subprocess.Popen(call, stderr=subprocess.PIPE)
        until = time.monotonic() + 20
        while "TracerPid:\t0\n" in Path(f"/proc/{child}/status").read_text():
            if tracer.poll() is not None or time.monotonic() > until:
                os.kill(child, 9)
                os.waitpid(child, 0)
                raise RuntimeError(f"strace cannot attach: {tracer.stderr.read().decode()}")
            time.sleep(0.005)
    os.write(go, b"x")
    os.close(go)
    _, found = os.waitpid(child, 0)
    if tracer:
        tracer.wait()
        tracer.stderr.close()
    said.seek(0)
    text = said.read().decode(errors="replace")
    said.close()
    return os.waitstatus_to_exitcode(found), text


def points(case: Case, places, home: Path):
    """[(system call, its number)] of the main process, of those that touch the case's own files."""
    fresh(home)
    log = home.parent / f"{home.name}.strace"
    status, said = run(case.words(places, home), home, log=log)
    assert status == 0, said
    counts, found, writes = Counter(), [], {}
    lines = log.read_text(errors="replace").splitlines()
    main = lines[0].split()[0]
    for text in lines:
        match = re.match(rf"{main}\s+(\w+)\((.*)", text)
        if match:
            counts[match[1]] += 1
            if str(home) in match[2]:
                place = found if match[1] in CHANGES else writes.setdefault(match[2].partition(">")[0], [])
                place.append((match[1], counts[match[1]]))
    log.unlink()
    for of_file in writes.values():
        found += (
            [of_file[len(of_file) * at // MOST_WRITES] for at in range(MOST_WRITES)]
            if len(of_file) > MOST_WRITES
            else of_file
        )
    return found


def fresh(home: Path) -> None:
    """An empty folder for a case."""
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)


def result(home: Path) -> dict[str, str]:
    """Path -> a hash of every file that a person would look at, without what may differ."""
    found = {}
    for path in sorted(home.rglob("*")):
        left_out = path.name == ".lock" or "tfevents" in path.name or "checkpoints" in path.parts or "-cache" in str(path)
        # Features that several evaluations share: what a killed one leaves there goes after a day.
        left_out |= "out-features" in path.parts and path.suffix == ".tmp"
        if path.is_file() and not left_out:
            data = path.read_bytes()
            if path.suffix in (".json", ".jsonl", ".html"):
                data = NOTED.sub("", data.decode(errors="replace")).encode()
            if path.name == "provenance.json":
                said = json.loads(data)
                said.get("checkpoint", {}).pop("sha256", None)  # a checkpoint has times in it
                data = json.dumps(said).encode()
            if path.suffix == ".safetensors":  # its writer puts the header's fields in any order
                length = int.from_bytes(data[:8], "little")
                data = json.dumps(json.loads(data[8 : 8 + length]), sort_keys=True).encode() + data[8 + length :]
            if path.suffix in (".pixels", ".crc32"):
                data = b""  # what a killed run has not put there, the next need not
            found[str(path.relative_to(home))] = hashlib.sha256(data).hexdigest()
    return found


def broken(case: Case, places, home: Path, call: str, number: int, how: str, wanted: dict[str, str]) -> str | None:
    """What is wrong after a command was stopped at a point and run again; None if nothing is."""
    fresh(home)
    inject = f"{call}:{how}:when={number}"
    status, said = run(case.words(places, home), home, inject=inject)
    if how.startswith("error"):
        if status not in (0, 1, 2):
            return f"status {status}: {said[-500:]}"
        if "Traceback" in said or "should not have happened" in said:
            return f"not in words: {said[-700:]}"
        if status == 0 and call in WRITES and result(home) != wanted:
            return f"done, it says, and is not: {said[-300:]}"
    elif status not in (-9, 0):
        return f"killed it should be, and left with {status}: {said[-300:]}"
    status, said = run(case.words(places, home), home)
    if status != 0:
        return f"again: status {status}: {said[-700:]}"
    found = result(home)
    if found != wanted:
        others = sorted(name for name in {*found, *wanted} if found.get(name) != wanted.get(name))
        return f"again: other files: {others[:6]}"
    return None


def walk(case: Case, places, home: Path, *, every: int = 1, calls=CHANGES + WRITES, ways=("signal=SIGKILL", "error=ENOSPC")):
    """(points tried, what was wrong at them) of one command."""
    at = points(case, places, home)
    wanted = result(home)
    fresh(home)
    status, said = run(case.words(places, home), home)
    assert status == 0, said
    others = [name for name, found in result(home).items() if wanted.get(name) != found]
    assert result(home) == wanted, f"{case.name} is not the same twice: {others}: {said}"
    tried, faults = 0, []  # one by one: each may take seconds
    for call, number in [point for point in at if point[0] in calls][::every]:
        for how in ways:
            if how.startswith("error") and call.startswith(("unlink", "rename")):
                continue  # a full disk refuses neither
            tried += 1
            if found := broken(case, places, home, call, number, how, wanted):
                faults.append(f"{case.name}: {call} {number} {how}: {found}")
    shutil.rmtree(home, ignore_errors=True)
    return tried, faults


def imported() -> None:
    """Load what the commands load, so that forks need not; with one thread, so that sums are the same each time."""
    os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    from commands import every_command

    every_command()
    import matplotlib.pyplot  # noqa: F401
    import PIL.JpegImagePlugin  # noqa: F401
    import pyarrow.dataset  # noqa: F401
    import pycocotools.cocoeval  # noqa: F401
    import timm  # noqa: F401
    import torch.utils.tensorboard  # noqa: F401
    import torchvision  # noqa: F401

    with contextlib.suppress(ImportError):
        import pandas  # noqa: F401  Arrow loads it where it is installed, as soon as it is given a list

    import univip_stream.report.build
    import univip_stream.report.curves
    import univip_stream.report.explain
    import univip_stream.report.page  # noqa: F401


@contextlib.contextmanager
def web(folder: Path):
    """A web server over a folder, in a process of its own; yields its address."""
    code = (
        "import http.server,sys,functools\n"
        "h=functools.partial(http.server.SimpleHTTPRequestHandler, directory=sys.argv[1])\n"
        "s=http.server.ThreadingHTTPServer(('127.0.0.1',0),h)\nprint(s.server_port,flush=True)\ns.serve_forever()"
    )
    call = [sys.executable, "-c", code, str(folder)]
    server = subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        yield f"http://127.0.0.1:{server.stdout.readline().strip()}"
    finally:
        server.kill()
        server.wait()
        server.stdout.close()


if __name__ == "__main__":
    base = Path(sys.argv[1])
    shutil.rmtree(base, ignore_errors=True)
    imported()
    places = prepare(base / "places")
    with web(Path(places["shards"])) as address:
        for case in CASES:
            if sys.argv[2:] and case.name not in sys.argv[2:]:
                continue
            began = time.monotonic()
            tried, faults = walk(case, places | {"web": address}, base / "case")
            print(
                json.dumps({"case": case.name, "points": tried, "faults": len(faults), "s": round(time.monotonic() - began)})
            )
            print(*faults[:40], sep="\n", flush=True)
