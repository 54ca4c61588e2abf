"""The command `univip-stream`: parse, call, print. Each subcommand is imported only when it is used."""

import importlib
import sys
from typing import Any

import click

from univip_stream import __version__
from univip_stream.errors import InputError

# name -> where its click command lives. Lazy, so that `mine` runs without torch and `train` without Ray.
COMMANDS = {
    "mine": "univip_stream.cli.mine:mine",
    "verify": "univip_stream.cli.verify:verify",
    "train": "univip_stream.cli.train:train",
    "eval": "univip_stream.cli.evaluate:evaluate",
}


class LazyGroup(click.Group):
    """A click group whose commands are imported on use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except InputError as error:
            click.echo(f"error: {error}", err=True)
            ctx.exit(error.exit_status)


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
    sys.exit(cli.main(prog_name="univip-stream"))
