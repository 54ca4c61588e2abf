"""Start every command that writes twice at once on one place, and kill a few where they rename; print what came of it, as JSON.

A script, because its forks must come of a process that has not computed anything: `python disturbed.py FOLDER`.
"""

import json
import os
import shutil
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
from commands import TABLE, line
from crashes import CASES, imported, prepare, walk

WRITING = [name for name in TABLE if name not in ("verify", "results", "doctor", "upgrade", "join")]
"""`upgrade` and `join` work in place: mining/test_upgrade.py has two at once, and mining/test_parts.py who holds the folder."""
KILLED = ("refilter", "train", "embed", "export backbone")
"""What the ordinary suite kills; `crashes.py` kills every command, at every system call."""
RENAMES = ("rename", "renameat", "renameat2")
PATIENCE = 120
"""Seconds for both together."""


def start(words, folder, said, gate):
    """A command in a fork, which begins when the gate opens."""
    child = os.fork()
    if child:
        return child
    status = 99
    try:
        os.chdir(folder)
        out = os.open(said, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        os.read(gate, 1)
        from univip_stream.cli import cli

        cli.main([*words], prog_name="univip-stream")
    except SystemExit as left:
        status = left.code if isinstance(left.code, int) else 0 if left.code is None else 1
    finally:
        os._exit(status)


def both(name, places, home):
    """(statuses, what each said, what is wrong with the files) of a command that was started twice."""
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir()
    words = line(name, places | {"out": str(home / "out")})
    gate, opener = os.pipe()
    waiting = [start(words, home, home.parent / f"said{at}", gate) for at in range(2)]
    order, statuses = list(waiting), {}
    os.write(opener, b"xx")
    os.close(gate)
    os.close(opener)
    until = time.monotonic() + PATIENCE
    while waiting and time.monotonic() < until:
        for child in list(waiting):
            found, status = os.waitpid(child, os.WNOHANG)
            if found:
                statuses[child] = os.waitstatus_to_exitcode(status)
                waiting.remove(child)
        time.sleep(0.02)
    for child in waiting:
        os.kill(child, 9)
        os.waitpid(child, 0)
        statuses[child] = "no answer"
    said = [(home.parent / f"said{at}").read_text(errors="replace") for at in range(2)]
    return [statuses[child] for child in order], said, wrong(home)


def wrong(home):
    """What of the files is torn or left over."""
    found = [path for path in sorted(home.iterdir()) if path.name.startswith("out")]
    faults = [] if found else ["nothing was written"]
    for path in found:
        try:
            read(path)
        except Exception as error:
            faults.append(f"{path.name}: {type(error).__name__}: {error}")
    return faults + [f"{path} is left" for path in home.rglob("*") if path.name.endswith(".tmp")]


def read(path: Path) -> None:
    """Read a result to its end."""
    from univip_stream.shards.verify import verify_folder

    if path.is_dir() and (path / "manifest.json").exists():
        assert verify_folder(path) == []
    elif path.suffix == ".json":
        json.loads(path.read_text())
    elif path.suffix == ".parquet":
        assert pq.read_table(path).num_rows
    elif path.is_dir() and (path / "metrics.jsonl").exists():
        assert [json.loads(text)["step"] for text in (path / "metrics.jsonl").read_text().splitlines()] == [1]
    else:
        assert path.stat().st_size


if __name__ == "__main__":
    base = Path(sys.argv[1])
    imported()
    places = prepare(base / "places")
    for name in WRITING:
        statuses, said, faults = both(name, places, base / "case")
        print(json.dumps({"two": name, "statuses": statuses, "said": said, "faults": faults}), flush=True)
    for case in CASES if shutil.which("strace") else ():
        if case.name in KILLED:
            tried, faults = walk(case, places, base / "case", calls=RENAMES, ways=("signal=SIGKILL",))
            print(json.dumps({"killed": case.name, "points": tried, "faults": faults}), flush=True)
