"""Groups of commands that are imported on use, and what every command does with an error."""

import importlib
import os
import sys
from typing import Any, NamedTuple

import click
from click.shell_completion import CompletionItem

from univip_stream.errors import InputError


class Command(NamedTuple):
    """Where a subcommand lives, and its line in the list of commands."""

    target: str
    says: str
    task: str = "Commands"
    """Heading that it stands under in the list."""


class LazyGroup(click.Group):
    """A click group whose commands are imported on use, and which prints people's errors without a traceback."""

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
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        # Click's own asks every command for its help, which would import torch and Ray to print a list.
        for task in dict.fromkeys(command.task for command in self.table.values()):
            with formatter.section(task):
                formatter.write_dl([(name, command.says) for name, command in self.table.items() if command.task == task])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        # As above: pressing Tab must not import torch.
        found = [
            CompletionItem(name, help=command.says) for name, command in self.table.items() if name.startswith(incomplete)
        ]
        return found + click.Command.shell_complete(self, ctx, incomplete)

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
        except RuntimeError as error:
            # torch tells of a loader worker's death in whatever call the process happens to be in.
            if "DataLoader worker" not in str(error):
                raise
            from univip_stream.workers import death

            if (told := death(error)) is None:
                raise
            click.echo(f"error: {told}", err=True)
            ctx.exit(1)
        except OSError as error:
            # The file system or network said no: the message names the file, the cause is not in our code.
            click.echo(f"error: {error}", err=True)
            ctx.exit(1)
