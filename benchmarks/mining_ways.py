"""Two cores mine the same images twice: as two processes that know nothing of each other, and as one job on a local Ray.

    python benchmarks/mining_ways.py                                        # drawn images
    python benchmarks/mining_ways.py --images coco/val2017 --count 20000    # links to these, again and again

`mine --part 1/2` beside `mine --part 2/2`, then `join`; and `mine --workers 2`. Both with the start of everything. It prints the
seconds by the clock and of CPU of all processes, and the efficiency: what Ray takes into what the two take. The bytes must agree.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from pathlib import Path

MARK = "UNIVIP_BENCHMARK_RUN"
_TICKS = os.sysconf("SC_CLK_TCK")
_EVERY = 0.1
"""Seconds between two looks at the processes: what one of them does between the last look and its end is not seen."""
_KINDS = (
    "univip_stream",
    "ray::_Counter",
    "ray::_mine",
    "ray::IDLE",
    "ray::",
    "default_worker",
    "log_monitor",
    "runtime_env",
    "monitor",
    "dashboard",
)


class Watched:
    """While inside: CPU seconds of every process that has the mark in its environment, by kind. Ray's are not all waited for."""

    def __init__(self, mark: str) -> None:
        self._mark, self._stop, self._other = f"{MARK}={mark}".encode(), threading.Event(), set[str]()
        self._seconds: dict[str, tuple[str, float]] = {}
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> "Watched":
        self._began = time.perf_counter()
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.clock = time.perf_counter() - self._began
        self._stop.set()
        self._thread.join()

    @property
    def cpu(self) -> Counter[str]:
        """CPU seconds by kind of process."""
        found: Counter[str] = Counter()
        for kind, seconds in self._seconds.values():
            found[kind] += seconds
        return found

    @property
    def processes(self) -> Counter[str]:
        """Number of processes by kind."""
        return Counter(kind for kind, _ in self._seconds.values())

    def _watch(self) -> None:
        while not self._stop.wait(_EVERY):
            for pid in filter(str.isdigit, os.listdir("/proc")):
                if pid not in self._other:
                    self._look(pid)

    def _look(self, pid: str) -> None:
        place = Path("/proc", pid)
        try:
            if pid not in self._seconds and self._mark not in (place / "environ").read_bytes():
                # A process that was forked a moment ago still has its parent's environment, and one that has ended has none.
                self._other.add(pid)
                return
            words = (place / "cmdline").read_bytes().decode(errors="replace").split("\0")
            program = Path(words[0]).name
            line = " ".join(words[:5]) if program.startswith(("python", "ray::")) else program
            times = (place / "stat").read_text().rpartition(")")[2].split()[11:13]
        except OSError:
            return  # gone meanwhile
        kind = next((kind for kind in _KINDS if kind in line), line[:40])
        # Ray's workers change their names as they work.
        known = self._seconds.get(pid, (kind, 0.0))[0]
        kind = known if known.startswith(("ray::_", "univip_stream")) or not line else kind
        self._seconds[pid] = (kind, sum(map(int, times)) / _TICKS)


def univip(mark: str, *words: object) -> "subprocess.Popen[bytes]":
    environment = os.environ | {MARK: mark, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-m", "univip_stream", *map(str, words)], env=environment, stderr=subprocess.DEVNULL,
                            stdout=subprocess.DEVNULL)  # fmt: skip


def ended_well(*processes: "subprocess.Popen[bytes]") -> None:
    for process in processes:
        if process.wait():
            sys.exit(f"{process.args} failed")


def in_parts(source: Path, out: Path, shards: int) -> Watched:
    mark = uuid.uuid4().hex
    with Watched(mark) as watched:
        job = ("mine", "--src", source, "--out", out, "--num-shards", shards)
        ended_well(*[univip(mark, *job, "--part", f"{part}/2", "--inline") for part in (1, 2)])
        ended_well(univip(mark, "join", out))
    return watched


def on_ray(source: Path, out: Path, shards: int) -> Watched:
    mark = uuid.uuid4().hex
    with Watched(mark) as watched:
        ended_well(univip(mark, "mine", "--src", source, "--out", out, "--num-shards", shards, "--workers", 2))
    return watched


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if not path.name.startswith(".")}


def main() -> None:
    from mining import draw

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, help="folder of images; drawn ones without it")
    parser.add_argument("--count", type=int, default=256, help="images to mine: links to those there are, again and again")
    parser.add_argument("--shards", type=int, default=16)
    parser.add_argument("--only", choices=("parts", "ray"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        there = sorted(options.images.rglob("*.jpg")) if options.images else draw(Path(place), 48)
        source = Path(place, "source")
        source.mkdir()
        for number in range(options.count):
            (source / f"{number:09d}.jpg").symlink_to(there[number % len(there)].resolve())
        ways = {"parts": in_parts, "ray": on_ray}
        if options.only:
            ways = {options.only: ways[options.only]}
        found: dict[str, Watched] = {}
        for name, way in ways.items():
            found[name] = way(source, Path(place, name), options.shards)
            cpu = found[name].cpu
            shares = ", ".join(f"{found[name].processes[kind]} {kind} {seconds:.1f}" for kind, seconds in cpu.most_common())
            print(
                f"{name:6}{options.count} images: {found[name].clock:8.1f} s by the clock, {cpu.total():8.1f} s of CPU: {shares}",
                flush=True,
            )
        if len(found) == 2:
            parts, ray = found["parts"], found["ray"]
            print(f"efficiency: {parts.cpu.total() / ray.cpu.total():.2f} by CPU, {parts.clock / ray.clock:.2f} by the clock")
            same = contents(Path(place, "parts")) == contents(Path(place, "ray"))
            print("the bytes agree" if same else "THE BYTES DIFFER")


if __name__ == "__main__":
    main()
