"""`univip-stream train`: parse, call, print."""

import json
from pathlib import Path

import click

from univip_stream.api.training import TrainConfig
from univip_stream.api.training import train as run_training
from univip_stream.distributed import process_from_environment
from univip_stream.errors import InputError, UsageError
from univip_stream.methods import METHODS, method_class
from univip_stream.pretrain import RECIPES, Interrupted, PretrainConfig
from univip_stream.pretrain.ablations import ABLATIONS, PRINTED
from univip_stream.pretrain.ablations import ablation as ablation_named
from univip_stream.pretrain.meanings import HELP, as_text, settings_of
from univip_stream.pretrain.results import last_record
from univip_stream.pretrain.settings import flat
from univip_stream.shards import expand_shards
from univip_stream.shards.manifest import read_manifest
from univip_stream.storage import parent
from univip_stream.suggest import nearest


def _print_settings_help(context: click.Context, option: click.Parameter, texts: tuple[str, ...]) -> tuple[str, ...]:
    """For `--set help`, print every setting and exit; for `--set views.help` or `--set views.tries.help`, a part of them."""
    asked = [text for text in texts if text == HELP or text.endswith(f".{HELP}")]
    for text in asked:
        click.echo(as_text(settings_of(text.removesuffix(HELP).removesuffix("."))))
    if asked:
        context.exit()
    return texts


class _Train(click.Command):
    def elsewhere(self, option: str) -> str:
        """Return a hint for an option that does not exist: many settings are set by --set only."""
        found = nearest(option, flat(PretrainConfig()))
        return f"; did you mean --set {found[0]}=VALUE?" if found else ""


@click.command(cls=_Train)
# What to read, where to write.
@click.option(
    "--src",
    "sources",
    multiple=True,
    metavar="SOURCE",
    help="Photographs, as for `mine`: mined first into the run folder, or into the folder that --shards names.",
)
@click.option(
    "--max-failures",
    default="10%",
    show_default=True,
    metavar="N|N%",
    help="Photographs of --src that cannot be read and are put up with; each is named.",
)
@click.option(
    "--shards",
    multiple=True,
    metavar="SPEC",
    help="'shards/<000..127>.tar', '{000..127}', a glob, a folder, a manifest; local, s3://, gs:// or http(s)://; may repeat.",
)
@click.option("--out", required=True, metavar="DIR", type=click.Path(path_type=Path, file_okay=False), help="The run folder.")
# What to train.
@click.option(
    "--recipe",
    metavar="NAME",
    help=f"Where to begin: {', '.join(RECIPES)}; auto chooses by images and machine.  [default: coco; with --src auto]",
)
@click.option("--time", "length", metavar="TIME", help="How long recipe auto may take, such as 2h or 90m.")
@click.option("--ablation", metavar="ROW", help=f"A row of the paper's tables 7 to 9: {', '.join(ABLATIONS)}.")
@click.option("--method", metavar="NAME", help=f"{', '.join(METHODS)}, or your own module:Class, with its own views.")
@click.option("--backbone", metavar="NAME", help="A torchvision ResNet or any timm model.  [default: the recipe's]")
@click.option(
    "--epochs", type=click.FloatRange(min=0, min_open=True), help="Passes over the images.  [default: the recipe's]"
)
@click.option("--steps", type=click.IntRange(min=1), help="Updates, instead of --epochs.")
@click.option(
    "--batch-size", type=click.IntRange(min=1), help="Images of an update, over all ranks.  [default: the recipe's]"
)
@click.option(
    "--init",
    metavar="WEIGHTS",
    help="Begin with these weights: a run folder, a checkpoint, safetensors, or a file of torchvision or timm.",
)
@click.option(
    "--freeze",
    "frozen",
    multiple=True,
    metavar="PART",
    help="Keep a part of the backbone as it is: stem, layer1, blocks.0; may repeat.",
)
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), help="Decides every random choice.  [default: the recipe's]")
@click.option(
    "--set",
    "settings",
    multiple=True,
    is_eager=True,  # so that `--set help` works without the required options
    callback=_print_settings_help,
    metavar="KEY=VALUE",
    help="Any setting, such as optim.lr=0.2; may be repeated. `--set help` tells what there is, `--set views.help` a part.",
)
@click.option(
    "--log",
    "logs",
    multiple=True,
    type=click.Choice(["tensorboard", "wandb", "mlflow"]),
    help="Where metrics go beside metrics.jsonl; may repeat. TensorBoard's events are written wherever it is installed.",
)
# Where to run.
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--workers", type=click.IntRange(min=0), help="Loader processes of a rank.  [default: the recipe's]")
@click.option("--cache", metavar="DIR", help="Where remote shards are kept.  [default: ~/.cache/univip-stream/shards]")
@click.option(
    "--decoded-cache",
    metavar="DIR",
    help="Keep decoded images here, 0.9 MB each: later epochs read them instead of decoding JPEGs again.",
)
@click.option(
    "--launcher",
    type=click.Choice(["torchrun", "ray"]),
    default="torchrun",
    show_default=True,
    help="Who starts the ranks: torchrun around this command (or nobody: one rank), or Ray Train from inside.",
)
@click.option("--ranks", type=click.IntRange(min=1), help="With --launcher ray.  [default: one a GPU of the cluster, or one]")
@click.option(
    "--address",
    metavar="ADDRESS",
    help="With --launcher ray: address of a running cluster.  [default: a local one is started]",
)
@click.option("-q", "--quiet", is_flag=True, help="Say nothing but errors and the result.")
@click.option("--json", "as_json", is_flag=True, help="Print the last record as JSON.")
def train(
    sources: tuple[str, ...],
    max_failures: str,
    shards: tuple[str, ...],
    out: Path,
    recipe: str | None,
    length: str | None,
    ablation: str | None,
    method: str | None,
    backbone: str | None,
    epochs: float | None,
    steps: int | None,
    batch_size: int | None,
    init: str | None,
    frozen: tuple[str, ...],
    seed: int | None,
    settings: tuple[str, ...],
    logs: tuple[str, ...],
    device: str,
    workers: int | None,
    cache: str | None,
    decoded_cache: str | None,
    launcher: str,
    ranks: int | None,
    address: str | None,
    quiet: bool,
    as_json: bool,
) -> None:  # fmt: skip
    """Pre-train from photographs or shards into a run folder. The same command continues a run that was stopped.

    \b
    univip-stream train --src photos/ --out runs/first
    univip-stream train --shards 'shards/<000..127>.tar' --out runs/coco
    univip-stream train --shards shards/ --out runs/small --recipe cpu-demo --set optim.lr=0.02
    univip-stream train --shards shards/ --out runs/longer --init runs/coco --epochs 400
    torchrun --nproc-per-node 8 -m univip_stream train --shards shards/ --out runs/coco
    univip-stream train --shards s3://bucket/shards --out /shared/runs/coco --launcher ray --address auto

    The run folder holds config.json, metrics.jsonl, checkpoints/, TensorBoard events, and at the end
    backbone.safetensors. On SIGTERM it saves and exits with status 75.
    """
    if init is not None:
        settings = (f"init_from={json.dumps(init)}", *settings)
    if frozen:
        settings = (f"freeze={json.dumps(frozen)}", *settings)
    if logs:
        settings = (f"log={json.dumps(logs)}", *settings)
    caches = (cache, decoded_cache)
    config = TrainConfig(
        sources=sources,
        shards=shards,
        out=out,
        recipe=recipe,
        time=length,
        settings=tuple(_texts(ablation, method, backbone, epochs, steps, batch_size, seed, workers, caches, settings)),
        max_failures=max_failures,
        device=device,
        launcher=launcher,  # type: ignore[arg-type]
        ranks=ranks,
        address=address,
    )
    if ablation is not None:
        _check_boxes(ablation, sources, shards)
    process = process_from_environment()
    try:
        values = run_training(config, quiet=quiet)
    except Interrupted as stop:
        if process.is_first and not quiet:
            click.echo(str(stop), err=True)
        raise SystemExit(Interrupted.exit_status) from None
    if process.is_first:
        if as_json:
            click.echo(json.dumps({"run": str(out), **(values or last_record(out) or {})}))
        else:
            click.echo(f"done: {out}" if values else f"{out} was finished before: nothing to do")


def _texts(
    ablation: str | None,
    method: str | None,
    backbone: str | None,
    epochs: float | None,
    steps: int | None,
    batch_size: int | None,
    seed: int | None,
    workers: int | None,
    caches: tuple[str | None, str | None],
    settings: tuple[str, ...],
) -> list[str]:
    """Return what overrides the recipe, in order: the method's settings, the ablation, the options, then --set."""
    if epochs is not None and steps is not None:
        raise UsageError(f"--epochs {epochs:g} and --steps {steps} both say how long to train; expected one of them")
    given = {
        "method.name": method,
        "method.backbone": backbone,
        "epochs": epochs,
        "steps": steps,
        "stream.batch_size": batch_size,
        "seed": seed,
        "stream.workers": workers,
        "stream.cache": caches[0],
        "stream.decoded_cache": caches[1],
    }
    texts = [f"{key}={value}" for key, value in given.items() if value is not None]
    of_method = [f"{key}={json.dumps(value)}" for key, value in method_class(method).settings.items()] if method else []
    if epochs is not None:
        texts.append("steps=null")
    changes = ablation_named(ablation).settings if ablation is not None else ()
    if method not in (None, "univip"):  # the printed reading is UniVIP's; other methods take the row's views
        changes = tuple(text for text in changes if text not in PRINTED)
    return [*of_method, *changes, *texts, *settings]


def _check_boxes(ablation: str, sources: tuple[str, ...], shards: tuple[str, ...]) -> None:
    """Raise UsageError if a row that only its boxes tell from others is asked for on shards with others' boxes."""
    wanted = ablation_named(ablation).proposals
    if wanted is None:
        return
    mined = {"--src, which mines with selective-search": "selective-search"} if sources else {}
    for folder in [] if sources else dict.fromkeys(parent(shard) for shard in expand_shards(list(shards))):
        try:
            of = str(read_manifest(folder).parameters.get("proposals"))
        except InputError:
            continue  # shards of other programs; what is wrong with ours, training says itself
        mined[f"{folder}, mined with --proposals {of}"] = of
    for where, of in mined.items():
        if of != wanted and (wanted == "ground-truth" or of in ("ground-truth", "naive", "grid", "none")):
            raise UsageError(
                f"--ablation {ablation} differs from other rows in its shards alone, and the boxes are those of {where}; expected "
                f"--shards that `univip-stream mine --proposals {wanted}` made"
            )
