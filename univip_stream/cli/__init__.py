"""The command `univip-stream`. Each subcommand is imported only when it is used."""

import io
import os
import sys

import click

from univip_stream import __version__
from univip_stream.cli.lazy import Command, LazyGroup
from univip_stream.errors import in_words

# Lazy, so that `mine` runs without torch, `train` without Ray, and `--help` at once.
COMMANDS = {
    "mine": Command("univip_stream.cli.mine:mine", "Images -> shards of images and boxes.", "Make shards"),
    "join": Command("univip_stream.cli.join:join", "Parts of a mining job -> one set.", "Make shards"),
    "import": Command("univip_stream.cli.imports:imports", "Boxes that others published -> shards.", "Make shards"),
    "refilter": Command("univip_stream.cli.refilter:refilter", "Other boxes from the candidates of shards.", "Make shards"),
    "upgrade": Command("univip_stream.cli.upgrade:upgrade", "Shards of format 1 in format 2.", "Make shards"),
    "verify": Command("univip_stream.cli.verify:verify", "Read shards back against their manifest.", "Make shards"),
    "inspect": Command(
        "univip_stream.cli.inspect:inspect", "Look at shards: numbers, boxes, views, what is odd.", "Make shards"
    ),
    "train": Command("univip_stream.cli.train:train", "Pre-train from shards; run again, it continues.", "Train"),
    "retrieve": Command("univip_stream.cli.retrieve:retrieve", "Regions that look alike, for ORL.", "Train"),
    "plot": Command("univip_stream.cli.plot:plot", "Curves of runs over each other.", "Train"),
    "results": Command("univip_stream.cli.results:results", "Compare runs: settings, losses, evaluations.", "Train"),
    "eval": Command(
        "univip_stream.cli.evaluate:evaluate", "Judge a representation: knn, linear, finetune, detect.", "Judge and use"
    ),
    "embed": Command("univip_stream.cli.embed:embed", "Features of any images, as Parquet.", "Judge and use"),
    "export": Command("univip_stream.cli.export:export", "Weights and boxes as other software reads them.", "Judge and use"),
    "explain": Command("univip_stream.cli.explain:explain", "One image through the method, as a figure.", "Understand"),
    "doctor": Command("univip_stream.cli.doctor:doctor", "Try what this machine has; say what is missing.", "Understand"),
}


@click.group(
    cls=LazyGroup, table=COMMANDS, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(__version__, prog_name="univip-stream")
def cli() -> None:
    """Mine region proposals into WebDataset shards, and train UniVIP from them.

    \b
    univip-stream mine  --src coco/train2017 --out shards/
    univip-stream inspect shards/ --html report.html
    univip-stream train --shards 'shards/<000..127>.tar' --out runs/coco
    univip-stream eval knn runs/coco --train imagenet/train --val imagenet/val
    univip-stream export backbone runs/coco --format torchvision --out backbone.pth

    Exit status: 0 done, 1 failed, 2 called wrongly; 75 a training was asked to stop, and the same command goes on.
    """


def main() -> None:
    """Entry point of the installed command."""
    # Before torch is loaded: threads that wait for each other sleep instead of spinning. Where other programs want the same
    # cores, a spinning wait made single training steps ten times as long; alone, sleeping costs 2 to 4 % (docs/log.md).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    _open_standard_streams()
    try:
        os.getcwd()
    except OSError as error:  # torch's libraries would end the process here, with a message about themselves
        sys.exit(f"error: {in_words(error)}")
    try:
        sys.exit(cli.main(prog_name="univip-stream"))
    except SystemExit as end:
        # Requests that never end are left behind, and the process with them: its status must be known by then.
        if (limit := sys.modules.get("univip_stream.storage.limit")) is not None:
            limit.ends_with(end.code if isinstance(end.code, int) else int(end.code is not None))
        raise


def _open_standard_streams() -> None:
    """Make standard input, output and error usable, whatever state the process was started in.

    If one is closed (`>&-`, some schedulers), the first file opened would take its number, and what libraries print would be
    written into that file. File names must be printable even where the terminal's encoding lacks a character.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w" if number else "r", encoding="utf-8", closefd=False))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
