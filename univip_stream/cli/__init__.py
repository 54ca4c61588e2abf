"""The command `univip-stream`: parse, call, print. Each subcommand is imported only when it is used."""

import importlib
import os
import sys
from typing import Any, NamedTuple

import click

from univip_stream import __version__
from univip_stream.errors import InputError


class Command(NamedTuple):
    """Where a subcommand lives, and its line in the list of commands."""

    target: str
    says: str


# Lazy, so that `mine` runs without torch, `train` without Ray, and `--help` at once.
COMMANDS = {
    "mine": Command("univip_stream.cli.mine:mine", "Images -> shards of images and boxes."),
    "refilter": Command("univip_stream.cli.refilter:refilter", "Other boxes from the candidates of shards."),
    "verify": Command("univip_stream.cli.verify:verify", "Read shards back against their manifest."),
    "train": Command("univip_stream.cli.train:train", "Pre-train from shards; run again, it continues."),
    "results": Command("univip_stream.cli.results:results", "Compare runs: settings, losses, evaluations."),
    "eval": Command("univip_stream.cli.evaluate:evaluate", "Judge a trained representation: knn."),
}


class LazyGroup(click.Group):
    """A click group whose commands are imported on use, and which prints people's errors without a traceback."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name].target.partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        # Click's own asks every command for its help, which would import torch and Ray to print a list.
        with formatter.section("Commands"):
            formatter.write_dl([(name, command.says) for name, command in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except InputError as error:
            click.echo(f"error: {error}", err=True)
            ctx.exit(error.exit_status)
        except BrokenPipeError:
            # The reader of our output left (`| head`). Nothing is wrong, and nothing more can be said.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            ctx.exit(1)
        except OSError as error:
            # The file system or network said no: the message names the file, the cause is not in our code.
            click.echo(f"error: {error}", err=True)
            ctx.exit(1)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="univip-stream")
def cli() -> None:
    """Mine region proposals into WebDataset shards, and train UniVIP from them.

    \b
    univip-stream mine  --src coco/train2017 --out shards/
    univip-stream train --shards 'shards/<000..127>.tar' --out runs/coco
    univip-stream eval knn runs/coco --train imagenet/train --val imagenet/val

    Exit status: 0 done, 1 failed, 2 called wrongly.
    """


def main() -> None:
    """Entry point of the installed command."""
    # Before torch is loaded: threads that wait for each other sleep instead of spinning. Where other programs want the same
    # cores, a spinning wait made single training steps ten times as long; alone, sleeping costs 2 to 4 % (docs/log.md).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    sys.exit(cli.main(prog_name="univip-stream"))
