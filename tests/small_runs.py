"""Runs as small as they go, for the tests of training."""

import json

from univip_stream.pretrain.recipes import recipe
from univip_stream.pretrain.settings import with_settings

# A network and images as small as they go, in float32, so that a step takes a blink.
TINY = [
    "method.backbone=test_resnet", "method.hidden=32", "method.width=16", "views.scene_size=32", "views.instance_size=32",
    "views.instances=2", "views.min_scale=32", "stream.batch_size=4", "stream.workers=1", "precision=fp32",
    "steps=8", "checkpoint_every=3", "record_every=1",
]  # fmt: skip


def tiny(*settings):
    return with_settings(recipe("cpu-demo"), [*TINY, *settings])


def records(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def losses(run):
    names = ("step", "loss", "loss_scene", "loss_scene_instance", "loss_instance", "lr", "momentum", "filled")
    return [[row[name] for name in names] for row in records(run)]


def command(shards, run, *settings):
    texts = [argument for setting in (*TINY, *settings) for argument in ("--set", setting)]
    return ["-m", "univip_stream", "train", "--shards", f"{shards}/<000..002>.tar", "--out", str(run),
            "--recipe", "cpu-demo", *texts]  # fmt: skip
