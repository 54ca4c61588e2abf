"""Ten minutes of a GPU, in order of worth: each part a process with a time limit, its failures caught, its JSON written as it goes.

`benchmarks/gpu.sh OUT` starts it. OUT then holds `summary.json`, `a.json` to `e.json` and `transcript.txt`, few and small, so that
they can be brought back from any machine. What is large lies in --work, and a second start goes on from it; what the first one
found stays in OUT with a number in its name, such as `a.1.json`.
"""

import argparse
import contextlib
import importlib.metadata
import importlib.util
import itertools
import json
import os
import platform
import re
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from processes import StoppedError, Words, started, watched

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PARTS = {
    "a": ("right", "losses, gradients, augmentation, training and judging on the device", 0.26),
    "b": ("rates", "images a second of a step, and where its time goes", 0.31),
    "c": ("augmenting", "what augmentation costs of a step", 0.08),
    "d": ("streaming", "real shards beside memory", 0.13),
    "e": ("learning", "BYOL and UniVIP on Imagenette", 0.22),
}
"""Letter -> module, what it finds out, share of the time; what a part leaves over is for those after it."""
WANTED = ("torch", "torchvision", "numpy", "PIL", "click", "pyarrow", "cv2", "timm", "safetensors", "pytest")
"""Modules that the parts import."""
TORCH = (2, 11)
"""The version that the parts were rehearsed with."""
_GRACE = 15.0
"""Seconds that a part has to save after it is asked to stop, before it is killed."""


def main() -> int:
    args = _arguments()
    words = Words(args.out / "transcript.txt")
    work = args.work or Path(tempfile.gettempdir()) / "univip-gpu"
    work /= "rehearsed" if args.rehearse else "run"  # what was made in small is not taken for the whole
    began = time.monotonic()
    _set_aside(args.out, ["summary", *args.parts])
    summary: dict[str, Any] = {"arguments": [str(word) for word in sys.argv[1:]], "machine": _machine(), "parts": {}}
    found = summary["parts"]

    def told() -> None:
        words.write(args.out / "summary.json", json.dumps(summary | {"seconds": _since(began)}, indent=1) + "\n")

    told()
    for line in _doubts(summary["machine"]):
        words.say(line + "\n")
    if "torch" in summary["machine"]["missing"]:
        return 1
    work.mkdir(parents=True, exist_ok=True)
    stopped = True
    with _stopped_by_signals(), _meanwhile(args, work):
        for number, letter in enumerate(args.parts):
            module, what, share = PARTS[letter]
            left = args.budget - (time.monotonic() - began)
            limit = left * share / sum(PARTS[later][2] for later in args.parts[number:])
            if limit < 1:
                found[letter] = {"status": "left out: no time left", "limit": 0, "done": 0, "failed": []}
                continue
            command = [sys.executable, str(HERE / f"{module}.py"), str(args.out / f"{letter}.json"), "--work", str(work)]
            command += ["--device", args.device or ("cpu" if args.rehearse else "cuda"), "--limit", f"{limit:.0f}"]
            command += ["--rehearse"] * args.rehearse
            words.say(f"\n== {letter}: {what} (at most {limit:.0f} s)\n   {' '.join(command)}\n")
            start = time.monotonic()
            found[letter] = {"status": "running", "limit": round(limit), "done": 0, "failed": []}
            told()
            status = watched(command, ROOT, limit, _GRACE, words.keep)
            found[letter] |= {"status": status, "seconds": _since(start), **_found(args.out / f"{letter}.json")}
            told()
            words.say(f"   {letter} ended with {status} after {_since(start)} s\n")
            if str(status).startswith("stopped from outside"):
                break
        else:
            stopped = False
    told()
    words.say(json.dumps(summary, indent=1) + "\n")
    if stopped:
        return 128 + signal.SIGTERM
    return 1 if any(part["status"] != 0 or part["failed"] for part in found.values()) else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks/gpu.sh", description=__doc__)
    parser.add_argument("out", type=Path, help="folder for JSON and transcript")
    parser.add_argument("--rehearse", action="store_true", help="tiny sizes on the CPU: does every part run?")
    parser.add_argument("--device", help="cuda, or cpu for a rehearsal")
    parser.add_argument("--budget", type=float, default=570, help="seconds for all parts together")
    parser.add_argument("--parts", default="abcde", help="letters of the parts, in the order to run them")
    parser.add_argument("--work", type=Path, help="folder for shards and runs; kept, it lets learning go on")
    args = parser.parse_args()
    if unknown := sorted(set(args.parts) - set(PARTS)):
        parser.error(f"there is no part {', '.join(unknown)}; expected letters of {''.join(PARTS)}")
    if not args.parts:
        parser.error(f"no part is named; expected letters of {''.join(PARTS)}")
    if twice := [letter for letter in PARTS if args.parts.count(letter) > 1]:
        parser.error(f"part {', '.join(twice)} comes twice")
    if not args.budget > 0:  # nor no number
        parser.error(f"--budget is {args.budget:g}; expected seconds above 0")
    return args


def _set_aside(out: Path, names: list[str]) -> None:
    """What an earlier start found gets a number: it is not taken for what this one finds, nor lost."""
    present = [name for name in names if (out / f"{name}.json").exists()]
    number = next(n for n in itertools.count(1) if not any((out / f"{name}.{n}.json").exists() for name in names))
    for name in present:
        (out / f"{name}.json").rename(out / f"{name}.{number}.json")


def _machine() -> dict[str, Any]:
    """What is installed, looked up without importing it: an import of torch takes seconds, and may hang."""
    facts: dict[str, Any] = {"python": platform.python_version(), "cpus": len(os.sched_getaffinity(0))}
    for name in ("torch", "torchvision"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            facts[name] = importlib.metadata.version(name)
    return facts | {"missing": [name for name in WANTED if importlib.util.find_spec(name) is None]}


def _doubts(machine: dict[str, Any]) -> Iterator[str]:
    """Sentences about what will not go well."""
    if "torch" in machine["missing"]:
        yield f"error: torch is missing in {sys.executable}; PYTHON=... names another Python"
    elif machine["missing"]:
        yield f"missing in {sys.executable}: {', '.join(machine['missing'])}; what needs them will fail (docs/how-to/gpu.md)"
    number = re.match(r"(\d+)\.(\d+)", machine.get("torch", ""))
    if number and tuple(map(int, number.groups())) < TORCH:
        yield f"torch {machine['torch']} is older than {'.'.join(map(str, TORCH))}, which this was written for: parts may fail"


@contextlib.contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """Within: a request to stop is an error, once; the next ones are for nobody."""

    def stop(number: int, frame: Any) -> None:
        for one in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(one, signal.SIG_IGN)
        raise StoppedError

    for one in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(one, stop)
    with contextlib.suppress(StoppedError):  # between two parts
        yield


@contextlib.contextmanager
def _meanwhile(args: argparse.Namespace, work: Path) -> Iterator[None]:
    """The images of the later parts are made while the first use the GPU."""
    if args.rehearse or not set("de") & set(args.parts):
        yield
        return
    command = [sys.executable, str(HERE / "pictures.py"), str(work)]
    with open(args.out / "transcript.txt", "ab") as said:
        process = started(command, cwd=ROOT, stdout=said, stderr=said, start_new_session=True)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _found(path: Path) -> dict[str, Any]:
    """What a part wrote, in short."""
    try:
        entries = json.loads(path.read_text())["entries"]
    except (OSError, ValueError, KeyError) as error:
        return {"done": 0, "failed": [f"no JSON: {error}"]}
    return {
        "done": sum("error" not in entry for entry in entries.values()),
        "failed": [name for name, entry in entries.items() if "error" in entry],
    }


def _since(start: float) -> float:
    return round(time.monotonic() - start, 1)


if __name__ == "__main__":
    sys.exit(main())
