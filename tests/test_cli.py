"""The command as a whole: its list, completion of a shell, quiet."""

import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
import torch
from click.testing import CliRunner

from univip_stream.cli import COMMANDS, cli
from univip_stream.cli.trouble import errors_reported

COMMAND = str(Path(sys.executable).parent / "univip-stream")


def completed(words):
    """What a Bash would offer for the last of `words`."""
    variables = {"_UNIVIP_STREAM_COMPLETE": "bash_complete", "COMP_WORDS": " ".join(words), "COMP_CWORD": str(len(words) - 1)}
    done = subprocess.run([COMMAND], env=os.environ | variables, capture_output=True, text=True, check=True)
    return [line.partition(",")[2] for line in done.stdout.splitlines()]


def test_every_command_is_listed_once_under_its_task():
    text = CliRunner().invoke(cli, ["--help"]).output
    for task in ("Make shards:", "Train:", "Judge and use:", "Understand:"):
        assert task in text
    for name in COMMANDS:
        assert sum(line.split()[:1] == [name] for line in text.splitlines()) == 1, name


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_an_example(name):
    commands = [name]
    command = cli.get_command(None, name)
    if hasattr(command, "table"):
        commands = [f"{name} {inner}" for inner in command.table]
    for words in commands:
        text = CliRunner().invoke(cli, [*words.split(), "--help"]).output
        assert f"univip-stream {words}" in text.split("Options:")[0].split("\n", 1)[1], words


def test_a_shell_completes_commands_options_and_choices():
    assert completed(["univip-stream", "ex"]) == ["export", "explain"]
    assert completed(["univip-stream", "eval", "li"]) == ["linear"]
    assert "--min-scale" in completed(["univip-stream", "mine", "--min"])
    assert completed(["univip-stream", "explain", "--proposals", "opencv-"]) == ["opencv-fast", "opencv-quality"]


def test_quiet_mining_says_only_its_result(drawn_folder, tmp_path):
    arguments = ["mine", "--src", str(drawn_folder), "--out", str(tmp_path / "shards"), "--inline"]
    done = subprocess.run([COMMAND, *arguments, "--quiet", "--json"], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert done.stdout.startswith("{")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore"),
            "error: out of GPU memory (CUDA out",
        ),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors"), "smaller --batch-size or --image-size"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "error: out of memory (Default"),
        (MemoryError(), "error: out of memory; fewer --workers"),
    ],
)
def test_memory_that_is_full_is_said_by_every_command(error, words):
    """Training has a sentence of its own, with its settings; this is for those that judge, embed and retrieve."""

    @click.command()
    @click.pass_context
    def judge(ctx):
        with errors_reported(ctx):
            raise error

    done = CliRunner().invoke(judge, [])
    assert done.exit_code == 1
    assert words in done.output
