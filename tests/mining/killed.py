"""Mine without Ray and die by SIGKILL at a stage: python killed.py STAGE SOURCE OUT [add | K/N], for the tests of killed jobs."""

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

from univip_stream.mining import MiningConfig, mine, mine_part, output, shard
from univip_stream.mining.part import parse_part
from univip_stream.shards import write


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_before(owner, name, when):
    """Die where owner.name is called with arguments that `when` accepts."""
    real = getattr(owner, name)

    def called(*arguments, **keywords):
        if when(*arguments):
            die()
        return real(*arguments, **keywords)

    setattr(owner, name, called)


CANDIDATES = "001.candidates.parquet"
STAGES = {
    "before the temporary file": lambda: die_before(shard, "write_shard", lambda _, path, *rest: path.name == "001.tar"),
    "while writing": lambda: die_before(write, "_add_sample", lambda tar, file, sample: sample.key == "000000006"),
    "before the tar's rename": lambda: die_before(Path, "replace", lambda path, target: target.name == "001.tar"),
    "between tar and candidates": lambda: die_before(Path, "replace", lambda path, target: target.name == CANDIDATES),
    "between candidates and index": lambda: die_before(Path, "replace", lambda path, target: target.name == "001.parquet"),
    "before the manifest": lambda: die_before(Path, "replace", lambda path, target: target.name == "manifest.json"),
    "after the manifest": lambda: die_before(output.Output, "remove", lambda out, name: name == ".mining.json"),
}

ADDING = {
    "add: while writing": lambda: die_before(write, "_add_sample", lambda tar, file, sample: sample.key == "000000009"),
    "add: between tar and index": lambda: die_before(Path, "replace", lambda path, target: target.name == "004.parquet"),
    "add: before the manifest": STAGES["before the manifest"],
    "add: after the manifest": STAGES["after the manifest"],
}

PARTS = {
    "part: while writing": lambda: die_before(write, "_add_sample", lambda tar, file, sample: sample.key == "000000003"),
    "part: between tar and index": STAGES["between candidates and index"],
    "part: before it says what it made": lambda: die_before(output.Output, "write", lambda out, name, data: "part-1" in name),
}


def run_killed(warm, stage, *arguments):
    """Run this file as a fork of `warm`, up to the stage where it dies."""
    return warm.run(["-c", f"import runpy; runpy.run_path({__file__!r}, run_name='__main__')", stage, *arguments])


if __name__ == "__main__":
    stage, source, out, *how = sys.argv[1:]
    {**STAGES, **ADDING, **PARTS}[stage]()
    config = MiningConfig(sources=(Path(source),), out=out, num_shards=3, proposals="naive", inline=True, add=how == ["add"])
    if how and how != ["add"]:
        mine_part(replace(config, num_shards=5, part=parse_part(*how)))
    else:
        mine(config)
    raise SystemExit("this stage was never reached")
