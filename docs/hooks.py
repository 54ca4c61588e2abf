"""MkDocs calls these while it builds the site: pages made from what the code and the repository already say.

`python docs/hooks.py` writes reference/settings.md and the tree in ARCHITECTURE.md, which are kept in the repository to be read
there too; a test holds them to the code.
"""

import ast
import re
import subprocess
from pathlib import Path

import click
from mkdocs.structure.files import File, Files

from univip_stream.cli import COMMANDS, cli
from univip_stream.pretrain.meanings import Setting, group_meanings, settings_of

REPOSITORY = Path(__file__).resolve().parents[1]
SETTINGS = REPOSITORY / "docs" / "reference" / "settings.md"
ARCHITECTURE = REPOSITORY / "ARCHITECTURE.md"
_TREE = ("<!-- tree begins -->", "<!-- tree ends -->")


def on_files(files: Files, config) -> Files:
    """Add the pages that no one writes by hand."""
    files.append(File.generated(config, "reference/commands.md", content=commands_page()))
    files.append(File.generated(config, "format.md", content=format_page()))
    return files


def on_page_markdown(markdown: str, page, **_) -> str:
    """Point links that leave docs/ at the repository's files, which are not part of the site, by name."""
    return re.sub(r"\[([^\]]+)\]\((?:\.\./)+(?!how-to|reference|decisions)[\w./#-]+\)", r"\1", markdown)


def commands_page() -> str:
    """Every command with its own help text."""
    lines = ["# Commands", "", "What `--help` prints. Exit status everywhere: 0 done, 1 failed, 2 called wrongly."]
    context = click.Context(cli, info_name="univip-stream")
    for name in COMMANDS:
        lines += help_of(cli.get_command(context, name), f"univip-stream {name}", 2)
    return "\n".join(lines) + "\n"


def help_of(command: click.Command, name: str, level: int) -> list[str]:
    """The help of a command and of those below it."""
    context = click.Context(command, info_name=name, terminal_width=80, max_content_width=80)
    lines = ["", f"{'#' * level} {name}", "", "```text", command.get_help(context), "```"]
    if isinstance(command, click.Group):
        for child in command.list_commands(context):
            lines += help_of(command.get_command(context, child), f"{name} {child}", level + 1)
    return lines


def format_page() -> str:
    """shards/README.md, where the format is described once."""
    return (REPOSITORY / "shards" / "README.md").read_text()


def settings_page() -> str:
    """Every setting of a training, from the classes that hold them."""
    lines = [
        "# Settings of a training",
        "",
        "Written by `python docs/hooks.py` from the classes of the configuration; do not edit it by hand.",
        "",
        "`train --set KEY=VALUE` changes a setting; a value is written as in JSON, a text without quotes.",
        "`train --set help` prints this list, `train --set views.help` one group, `train --set views.tries.help` one setting.",
        "The default is the code's; recipes that have another value are named under it. Where no source is named, the choice is",
        "this program's. A run may be continued with another value of a setting marked (c); any other change is another run.",
    ]
    for group, meaning in group_meanings().items():
        title = group or "Without a group"
        lines += [
            "",
            f"## {title}",
            "",
            meaning,
            "",
            "| setting | meaning | default | allowed | source |",
            "|---|---|---|---|---|",
        ]
        lines += [_row(setting) for setting in settings_of() if setting.group == group]
    return "\n".join(lines) + "\n"


def _row(setting: Setting) -> str:
    others = "".join(f"<br>{recipe}: `{value}`" for recipe, value in setting.recipes.items())
    cells = [
        f"`{setting.key}`{' (c)' * setting.may_change}",
        f"{', '.join(f'`{name}`' for name in setting.methods)}: {setting.meaning}" if setting.methods else setting.meaning,
        f"`{setting.default}`{others}",
        setting.allowed.replace("<", "&lt;"),
        setting.source,
    ]
    return "| " + " | ".join(cells) + " |"


def with_tree(text: str) -> str:
    """ARCHITECTURE.md with the tree as it is: every file of ours with the first sentence it says of itself."""
    head, rest = text.split(_TREE[0])
    tail = rest.split(_TREE[1])[1]
    return f"{head}{_TREE[0]}\n```\n{tree()}```\n{_TREE[1]}{tail}"


def tree() -> str:
    """A line a file, folder by folder."""
    asked = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "univip_stream", "pipelines", "benchmarks"]
    listed = subprocess.run(asked, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout.split()
    lines, folder = [], None
    for path in sorted((Path(name) for name in listed), key=lambda path: (str(path.parent), path.name)):
        if path.suffix not in (".py", ".sh", ".yaml") or not (REPOSITORY / path).is_file():
            continue
        if path.parent != folder:
            folder = path.parent
            lines.append(f"{folder}/")
        lines.append(f"  {path.name:24}{_first_sentence(REPOSITORY / path)}".rstrip())
    return "\n".join(lines) + "\n"


def _first_sentence(path: Path) -> str:
    text = path.read_text()
    if path.suffix == ".py":
        said = ast.get_docstring(ast.parse(text)) or ""
    else:
        said = next((line.lstrip("# ") for line in text.splitlines() if line.startswith("# ")), "")
    return said.split("\n\n")[0].replace("\n", " ")


if __name__ == "__main__":
    SETTINGS.write_text(settings_page())
    ARCHITECTURE.write_text(with_tree(ARCHITECTURE.read_text()))
