"""Groups of commands that are imported on use; misspelt names get a suggestion, and every error a sentence."""

import importlib
from typing import Any, NamedTuple

import click
from click.shell_completion import CompletionItem

from univip_stream.cli.options import with_checked_options
from univip_stream.cli.trouble import errors_reported
from univip_stream.suggest import did_you_mean


class Command(NamedTuple):
    """Import path of a subcommand, and its line in the list of commands."""

    target: str
    summary: str
    task: str = "Commands"
    """Heading of the list that shows it."""


class LazyGroup(click.Group):
    """A click group whose commands are imported on use, and which reports errors without a traceback."""

    def __init__(self, *arguments: Any, table: dict[str, Command], **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.table = table

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.table:
            return None
        module, _, attribute = self.table[cmd_name].target.partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return with_checked_options(command)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        # Click would ask every command for its help, and so import torch and Ray to print a list.
        for task in dict.fromkeys(command.task for command in self.table.values()):
            with formatter.section(task):
                formatter.write_dl([(name, command.summary) for name, command in self.table.items() if command.task == task])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        # As above: pressing Tab must not import torch.
        found = [
            CompletionItem(name, help=command.summary) for name, command in self.table.items() if name.startswith(incomplete)
        ]
        return found + click.Command.shell_complete(self, ctx, incomplete)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        # Click guesses only among commands that are already loaded, and none are.
        if name not in self.table and not name.startswith("-") and not ctx.resilient_parsing:
            guess = did_you_mean(name, self.table) or f"; expected one of {', '.join(self.table)}"
            ctx.fail(f"There is no command {name!r}{guess}")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        with errors_reported(ctx):
            try:
                return super().invoke(ctx)
            except click.NoSuchOption as error:
                raise _unknown_option(error) from error


def _unknown_option(error: click.NoSuchOption) -> click.UsageError:
    """Return the error with a suggestion of ours: for `--lr`, click itself would suggest `--help`."""
    command = error.ctx.command if error.ctx else None
    known = [name for option in command.params for name in option.opts if name[:2] == "--"] if command else []
    elsewhere = getattr(command, "elsewhere", lambda name: "")
    others = [name for name in _ALSO_CALLED.get(error.option_name.lstrip("-"), ()) if name in known]
    guess = f"; did you mean {others[0]}?" if others else did_you_mean(error.option_name, known)
    return click.UsageError(f"There is no option {error.option_name}{guess or elsewhere(error.option_name)}", ctx=error.ctx)


_ALSO_CALLED = {
    "lr": ("--lr", "--rate"),
    "learning-rate": ("--lr", "--rate"),
    "rate": ("--lr",),
    "source": ("--src",),
    "input": ("--src", "--shards"),
    "output": ("--out",),
    "gpu": ("--device",),
    "bs": ("--batch-size",),
    "size": ("--image-size",),
    "num-workers": ("--workers",),
}
"""Names that other programs give to our options, and that are spelt too differently to be guessed."""
