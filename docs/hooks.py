"""MkDocs calls these while it builds the site: pages made from what the code and the repository already say.

`python docs/hooks.py` writes reference/settings.md, tables.md and the tree in ARCHITECTURE.md, which are kept in the repository
to be read there too; tests hold them to the code.
"""

import ast
import re
import subprocess
from pathlib import Path

import click
from mkdocs.structure.files import File, Files

from univip_stream.cli import COMMANDS, cli
from univip_stream.pretrain.meanings import Setting, group_meanings, settings_of
from univip_stream.pretrain.paper_tables import NETWORKS, RATES, TABLES, commands_for

REPOSITORY = Path(__file__).resolve().parents[1]
TABLES_PAGE = REPOSITORY / "docs" / "tables.md"
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


def tables_page() -> str:
    """Every table of the paper: the numbers of its rows that are ours, BYOL's or a reference, and the commands that make them."""
    lines = [
        "# The tables of the paper",
        "",
        "Written by `python docs/hooks.py` from `univip_stream/pretrain/paper_tables.py`; do not edit it by hand.",
        "",
        "Each row of Tables 1 to 13 that is UniVIP's, BYOL's or a reference (random, supervised), with its command. `univip-stream",
        "results --paper N RUN...` prints a whole table, other methods too, with your runs beside it; a number that is not",
        "by the protocol, with the network and on the data of the table has a star and the reasons. With `torchrun",
        "--nproc-per-node 8 -m univip_stream` in place of `univip-stream`, training and judging use eight GPUs (but `eval svm`).",
        "",
        "UniVIP's networks are trained as our recipes are, with an instance in two augmentations and a plan that sums to K",
        "(docs/method.md). The ablations are those of the printed reading, one augmentation and a plan that sums to 1, which",
        "is `--ablation 7e`.",
        "",
        "**No row has been made at the paper's size here:** the numbers are the paper's; what was tried at small scale is said",
        "under each table.",
        "",
        f"Hours are derived. {RATES}.",
        "",
        "The rows of detection have two roads: Detectron2, as the paper, from a configuration of ours (`detectron2/` is a checkout",
        "of it, `$DETECTRON2_DATASETS` says where its data is), and `eval detect`, which needs no Detectron2 and differs from it",
        "as `DetectionProtocol` says.",
        "",
        "## The shards",
        "",
        "```bash",
        "univip-stream mine --src coco/train2017 --out shards-coco",
        "univip-stream mine --src coco/train2017 --src coco/unlabeled2017 --out shards-coco-plus",
        "univip-stream mine --src imagenet/train --out shards-imagenet",
        "# of Table 8 (b)",
        "univip-stream mine --src coco/train2017 --proposals ground-truth --annotations coco/annotations/instances_train2017.json"
        " --out shards-coco-gt",
        "```",
        "",
        "## The networks",
        "",
        "| network | hours on one H200, derived | command |",
        "|---|---|---|",
    ]
    for name, network in NETWORKS.items():
        hours = f"{network.hours():.0f}" if network.train else "-"
        lines.append(f"| `{name}` | {hours} | `{network.train or network.run}` |")
    for number, table in TABLES.items():
        own = [row for row in table.rows if row.network is not None]
        heads = ["method", "pre-trained on", "epochs", *(column.name for column in table.columns), "network"]
        lines += [
            "",
            f"## Table {number}: {table.title}",
            "",
            f"{table.protocol}.",
            "",
            f"Hours for judging one network: {table.hours}.",
        ]
        lines += ["", f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
        for row in own:
            numbers = ["-" if value is None else f"{value:.1f}" for value in row.numbers]
            cells = [row.method, row.data, "-" if row.epochs is None else str(row.epochs), *numbers, f"`{row.network}`"]
            lines.append(f"| {' | '.join(cells)} |")
        lines += ["", "```bash"]
        for network in dict.fromkeys(row.network for row in own):
            row = next(row for row in own if row.network == network)
            lines += [f"# {network}", *commands_for(table, row)]
        lines += ["```", "", f"Last tried at small scale: {table.tried}."]
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
    TABLES_PAGE.write_text(tables_page())
    ARCHITECTURE.write_text(with_tree(ARCHITECTURE.read_text()))
