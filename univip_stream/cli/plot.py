"""`univip-stream plot`: parse, call, print."""

from pathlib import Path

import click


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("curves.html"),
    show_default=True,
    help="File to write: .html (a self-contained page), .png, .svg or .pdf.",
)
@click.option(
    "--smooth",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.0,
    show_default=True,
    help="Weight of earlier values in an exponential mean; the page has a slider for it.",
)
@click.option("-q", "--quiet", is_flag=True, help="Say nothing but errors.")
@click.option("--json", "as_json", is_flag=True, help="Print the last value of every metric as JSON.")
def plot(runs: tuple[Path, ...], out: Path, smooth: float, quiet: bool, as_json: bool) -> None:
    """Draw the curves of RUNS over each other, one panel per metric.

    RUNS are run folders, or folders of runs; runs may still be training. TensorBoard shows the same, with pictures of views:
    `tensorboard --logdir runs`. Of each run a line says what its records do without labels: whether its features collapsed, and
    since which step its loss is flat, if it is.

    \b
    univip-stream plot runs/coco runs/byol --out curves.html
    univip-stream plot runs/* --out curves.png --smooth 0.9
    """
    from univip_stream.files import written_by_one
    from univip_stream.pretrain.results import records_of, run_folders
    from univip_stream.pretrain.verdict import judge
    from univip_stream.report import curves

    with written_by_one(out):
        panels = curves.draw(runs, out, smooth=smooth)
    if as_json:
        click.echo(curves.as_json(panels))
    elif not quiet:
        lines = max(len(panel.lines) for panel in panels)
        click.echo(f"{out}: {len(panels)} metrics of {lines} {'run' if lines == 1 else 'runs'}")
        for run in run_folders(runs):
            if records := records_of(run):
                click.echo(f"{run.name}, without labels: {judge(records).sentence()}")
