"""Does UniVIP teach a network more than BYOL? A declared grid of runs, and the table of what came out.

The protocol is in grid.py and, in words, in docs/results.md. Every finished cell is one small JSON file in results/.

    python benchmarks/learning run --imagenette imagenette128 [--only drawn/] [--sides 2]     # begins or goes on; stop at any time
    python benchmarks/learning table [--write]                # prints the tables; --write puts them into docs/results.md
    python benchmarks/learning proof                          # the smallest cell once more, compared bit for bit
    python benchmarks/learning list                           # what is done and what is left
"""

import argparse
import os
import signal
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
SMALLEST = "drawn/byol-s0"


def main() -> int:
    """Parse, call."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", choices=("run", "cell", "table", "proof", "list"))
    parser.add_argument("name", nargs="?", help="of a cell, for the job `cell`")
    parser.add_argument("--work", type=Path, default=Path("out/learning"), help="images, shards and run folders")
    parser.add_argument("--imagenette", type=Path, help="folder with Imagenette's train/ and val/ at 128 pixels")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where finished cells are written and read")
    parser.add_argument("--lightly", type=Path, help="the Python of an environment with lightly, for its BYOL")
    parser.add_argument("--only", help="beginning of the names of cells to run")
    parser.add_argument("--sides", type=int, default=1, help="cells side by side, one thread each")
    parser.add_argument("--write", action="store_true", help="tables and plots go into docs/")
    asked = parser.parse_args()
    for name in ("work", "results", "imagenette", "lightly"):
        if getattr(asked, name) is not None:
            setattr(asked, name, getattr(asked, name).absolute())
    jobs = {"run": _run, "cell": _cell, "table": _table, "proof": _proof, "list": _list}
    return jobs[asked.job](asked)


def _run(asked: argparse.Namespace) -> int:
    """Cells in the grid's order, `--sides` at a time; one that another process holds is left to it."""
    from cell import STOPPED
    from grid import cells

    stopping = False
    running: dict[int, tuple[str, subprocess.Popen[bytes]]] = {}

    def stop(number: int, frame: object) -> None:
        nonlocal stopping
        stopping = True
        for _, process in running.values():
            process.send_signal(signal.SIGTERM)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    failed: list[str] = []
    todo = [cell.name for cell in cells(asked.only) if not (asked.results / f"{cell.name}.json").exists()]
    while (todo or running) and not (stopping and not running):
        while todo and len(running) < asked.sides and not stopping:
            name = todo.pop(0)
            given = {"--imagenette": asked.imagenette, "--lightly": asked.lightly}
            more = [word for option, value in given.items() if value for word in (option, str(value))]
            words = [
                sys.executable,
                str(HERE),
                "cell",
                name,
                "--work",
                str(asked.work),
                "--results",
                str(asked.results),
                *more,
            ]
            process = subprocess.Popen(words, env={**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"})
            running[process.pid] = (name, process)
        pid, status = os.wait()
        name, _ = running.pop(pid)
        code = os.waitstatus_to_exitcode(status)
        print(f"{name}: {'done' if code == 0 else 'stopped' if code == STOPPED else f'exit status {code}'}", flush=True)
        if code not in (0, STOPPED):
            failed.append(name)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else STOPPED if stopping else 0


def _cell(asked: argparse.Namespace) -> int:
    """One cell, in this process; its training is a child that SIGTERM is passed on to."""
    import cell as job
    from grid import cells

    found = [cell for cell in cells() if cell.name == asked.name]
    if not found:
        print(f"error: there is no cell {asked.name!r}; `list` lists them", file=sys.stderr)
        return 2
    # The terminal or the runner tells the whole group; the training saves and leaves with 75, and so do we.
    signal.signal(signal.SIGTERM, lambda number, frame: job.pass_on(number))
    with job.held(asked.work / "locks" / f"{found[0].name.replace('/', '_')}.lock") as mine:
        if not mine or (asked.results / f"{found[0].name}.json").exists():
            return 0
        return job.run(found[0], asked.work, asked.imagenette, asked.results, _commit(), asked.lightly)


def _commit() -> str:
    """Of the code that runs, with a mark where it is not as committed."""
    git = ["git", "-C", str(HERE)]
    head = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True).stdout.strip()
    changed = subprocess.run(
        [*git, "status", "--porcelain", "--", "../../univip_stream", "."], capture_output=True, text=True
    )
    mine = [line for line in changed.stdout.splitlines() if not line.endswith(".json")]
    return (head or "unknown") + ("+changes" if mine else "")


def _list(asked: argparse.Namespace) -> int:
    from grid import cells

    for cell in cells(asked.only):
        done = (asked.results / f"{cell.name}.json").exists()
        print(f"{'done' if done else 'left':5}{cell.name}")
    return 0


def _table(asked: argparse.Namespace) -> int:
    import table

    return table.main(asked.results, write=asked.write)


def _proof(asked: argparse.Namespace) -> int:
    import proof

    return proof.main(SMALLEST, asked.results, asked.work.parent / "proof", _commit())


if __name__ == "__main__":
    sys.exit(main())
