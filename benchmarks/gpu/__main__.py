"""Ten minutes of a GPU, in order of worth: each part a process with a time limit, its failures caught, its JSON written as it goes.

`benchmarks/gpu.sh OUT` starts it. OUT then holds `summary.json`, `a.json` to `e.json` and `transcript.txt`, few and small, so that
they can be brought back from any machine. What is large lies in --work, and a second start goes on from it.
"""

import argparse
import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

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
_GRACE = 15.0
"""Seconds that a part has to save after it is asked to stop, before it is killed."""


def main() -> int:
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
    args.out.mkdir(parents=True, exist_ok=True)
    work = args.work or Path(tempfile.gettempdir()) / "univip-gpu"
    work /= "rehearsed" if args.rehearse else "run"  # what was made in small is not taken for the whole
    work.mkdir(parents=True, exist_ok=True)
    environment = dict(os.environ)
    began = time.monotonic()
    shares = {letter: PARTS[letter][2] for letter in args.parts}
    summary: dict[str, Any] = {"arguments": [str(word) for word in sys.argv[1:]], "parts": {}}
    with open(args.out / "transcript.txt", "ab") as transcript, _meanwhile(args, work, environment, transcript):
        for number, letter in enumerate(args.parts):
            module, what, share = PARTS[letter]
            left = args.budget - (time.monotonic() - began)
            limit = left * share / sum(list(shares.values())[number:])
            command = [sys.executable, str(HERE / f"{module}.py"), str(args.out / f"{letter}.json"), "--work", str(work)]
            command += ["--device", args.device or ("cpu" if args.rehearse else "cuda"), "--limit", f"{limit:.0f}"]
            command += ["--rehearse"] * args.rehearse
            _say(transcript, f"\n== {letter}: {what} (at most {limit:.0f} s)\n   {' '.join(command)}\n")
            start = time.monotonic()
            status = _watched(command, environment, limit, transcript)
            seconds = round(time.monotonic() - start, 1)
            summary["parts"][letter] = {
                "status": status,
                "seconds": seconds,
                "limit": round(limit),
                **_found(args.out / f"{letter}.json"),
            }
            _write(args.out / "summary.json", summary | {"seconds": round(time.monotonic() - began, 1)})
            _say(transcript, f"   {letter} ended with {status} after {seconds} s\n")
    failed = [letter for letter, part in summary["parts"].items() if part["status"] != 0 or part["failed"]]
    print(json.dumps(summary, indent=1))
    return 1 if failed else 0


@contextlib.contextmanager
def _meanwhile(args: argparse.Namespace, work: Path, environment: dict[str, str], transcript: BinaryIO) -> Iterator[None]:
    """The images of the later parts are made while the first use the GPU."""
    if args.rehearse or not set("de") & set(args.parts):
        yield
        return
    command = ["nice", sys.executable, str(HERE / "pictures.py"), str(work)]
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=transcript, stderr=transcript, start_new_session=True
    )
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _watched(command: list[str], environment: dict[str, str], limit: float, transcript: BinaryIO) -> int | str:
    """Run a part, its words passed on and kept; its exit status, or in words what ended it."""
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )
    assert process.stdout is not None
    selector = selectors.DefaultSelector()
    selector.register(process.stdout, selectors.EVENT_READ)
    deadline, asked = time.monotonic() + limit, False
    while True:
        if selector.select(timeout=0.5):
            words = os.read(process.stdout.fileno(), 1 << 16)
            if not words:
                break
            transcript.write(words)
            transcript.flush()
            sys.stdout.buffer.write(words)
            sys.stdout.flush()
        elif process.poll() is not None:
            break  # a process that it left behind may hold its output open
        if time.monotonic() > deadline:
            os.killpg(process.pid, signal.SIGKILL if asked else signal.SIGTERM)
            if asked:
                break
            asked, deadline = True, time.monotonic() + _GRACE
    status = process.wait()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # what it left behind
    return f"stopped at its limit ({status})" if asked else status


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


def _write(path: Path, value: dict[str, Any]) -> None:
    part = path.with_suffix(".part")
    part.write_text(json.dumps(value, indent=1) + "\n")
    part.replace(path)


def _say(transcript: BinaryIO, words: str) -> None:
    transcript.write(words.encode())
    transcript.flush()
    print(words, end="", flush=True)


if __name__ == "__main__":
    sys.exit(main())
