"""Every command of the program with arguments that work, and what each of its options takes: the table that walks go by."""

import json
from dataclasses import dataclass, field

import click

from univip_stream.cli import cli


@dataclass(frozen=True)
class Walked:
    """How a command is called, and what its options are."""

    base: dict[str, list[str]]
    """Parameter -> values. Words in braces are places that `places` makes; `{out}` is free in every call."""
    inputs: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Parameters that name what is read, each with the suffixes that it looks for (`/`: a folder)."""
    outputs: dict[str, str] = field(default_factory=dict)
    """Parameters that name what is written, each with a suffix, or `/` for a folder."""
    texts: frozenset[str] = frozenset()
    """Parameters that are names or expressions."""
    long: frozenset[str] = frozenset()
    """Numbers that are allowed to be large, and then mean work without end: only their refusals are walked."""


SHARDS = ("/", ".tar", ".json")
IMAGES = ("/", ".tar", ".txt", ".csv", ".parquet")
RUN = ("/", ".pt", ".safetensors")
RAY = frozenset({"address"})
WEB = frozenset({"http_headers", "user_agent"})
DEVICE = frozenset({"device", "max_failures"})
LABELLED = {
    "run": ["{run}"], "train": ["{labelled}"], "val": ["{labelled}"], "workers": ["0"], "device": ["cpu"], "image_size": ["32"],
    "out": ["{out}.json"],
}  # fmt: skip
SUBJECT = DEVICE | {"subject"}
JUDGED = {"inputs": {"run": RUN, "train": ("/", ".tar"), "val": ("/", ".tar")}, "texts": SUBJECT}
IMPORT = {"sources": ["{coco}/train2017"], "out": ["{out}"], "inline": []}
IMPORTED = {
    "inputs": {"sources": IMAGES, "annotations": (".json",)}, "outputs": {"out": "/"},
    "texts": frozenset({"max_failures"}) | RAY | WEB,
}  # fmt: skip

TABLE: dict[str, Walked] = {
    "mine": Walked(
        {"sources": ["{images}"], "out": ["{out}"], "proposals": ["none"], "inline": []},
        inputs={"sources": IMAGES, "annotations": (".json",)},
        outputs={"out": "/"},
        texts=frozenset({"proposals", "options", "max_failures", "part"}) | RAY | WEB,
    ),
    "join": Walked({"shards": ["{shards}"]}, inputs={"shards": ("/", ".json")}),
    "import boxes": Walked(
        {"file": ["{boxes.json}"], "format": ["coco"], **IMPORT},
        **IMPORTED | {"inputs": {"file": (".json", "/"), **IMPORTED["inputs"]}},
    ),
    "refilter": Walked(
        {"shards": ["{shards}"], "out": ["{out}"], "inline": []},
        inputs={"shards": SHARDS, "rank_by": RUN},
        outputs={"out": "/"},
        texts=RAY,
    ),
    "upgrade": Walked({"shards": ["{shards}"]}, inputs={"shards": ("/", ".json")}),
    "verify": Walked(
        {"named": ["{shards}"], "inline": []}, inputs={"named": SHARDS}, texts=RAY | {"elsewhere"}
    ),
    "inspect": Walked(
        {"shards": ["{shards}"], "html": ["{out}.html"], "samples": ["1"]},
        inputs={"shards": SHARDS},
        outputs={"html": ".html", "png": "/"},
        texts=frozenset({"cache"}),  # of remote shards
    ),
    "train": Walked(
        {
            "shards": ["{shards}"], "out": ["{out}"], "recipe": ["cpu-demo"], "backbone": ["test_resnet"], "steps": ["1"],
            "batch_size": ["4"], "workers": ["0"], "device": ["cpu"],
            "settings": ["method.hidden=32", "method.width=16", "views.scene_size=32", "views.instances=0"],
        },
        # With --src, which is walked below, --shards is where they go.
        inputs={"shards": SHARDS, "sources": IMAGES, "init": RUN},
        outputs={"out": "/", "decoded_cache": "/"},
        texts=frozenset({"recipe", "ablation", "method", "backbone", "settings", "device", "cache", "max_failures", "length"})
        | {"frozen"} | RAY,
        long=frozenset({"epochs", "steps", "workers"}),
    ),
    "retrieve": Walked(
        {
            "run": ["{run}"], "shards": ["{shards}"], "features": ["{features}"], "out": ["{out}.parquet"], "workers": ["0"],
            "device": ["cpu"], "max_boxes": ["1"],
        },
        inputs={"run": RUN, "shards": SHARDS, "features": (".parquet",)},
        outputs={"out": ".parquet"},
        texts=DEVICE,
        long=frozenset({"workers", "max_boxes", "image_size"}),
    ),
    "plot": Walked({"runs": ["{run}"], "out": ["{out}.html"]}, inputs={"runs": ("/",)}, outputs={"out": ".html"}),
    "results": Walked({"runs": ["{run}"]}, inputs={"runs": ("/",)}, texts=frozenset({"paper"})),
    "eval knn": Walked(
        LABELLED, outputs={"out": ".json", "cache": "/"}, long=frozenset({"workers", "image_size"}), **JUDGED
    ),
    "eval linear": Walked(
        {**LABELLED, "epochs": ["1"], "rates": ["0.1"], "batch_size": ["8"]},
        outputs={"out": ".json", "cache": "/"},
        **JUDGED | {"texts": SUBJECT | {"protocol"}},
        long=frozenset({"epochs", "workers", "image_size"}),
    ),
    "eval finetune": Walked(
        {**LABELLED, "epochs": ["1"], "rates": ["0.1"], "multipliers": ["1"], "batch_size": ["8"], "fraction": ["50%"]},
        outputs={"out": ".json"},
        inputs=JUDGED["inputs"] | {"subset": (".txt",)},
        texts=SUBJECT | {"fraction"},
        long=frozenset({"epochs", "workers", "image_size"}),
    ),
    "eval svm": Walked(
        {
            "run": ["{run}"], "devkit": ["{voc07}"], "costs": ["1"], "workers": ["0"], "device": ["cpu"], "image_size": ["32"],
            "out": ["{out}.json"],
        },
        inputs={"run": RUN, "devkit": ("/",)},
        outputs={"out": ".json"},
        texts=SUBJECT,
        long=frozenset({"workers", "image_size"}),
    ),
    "eval detect": Walked(
        {
            "run": ["{resnet}"], "train_json": ["{coco}/annotations/instances_train2017.json"],
            "train_images": ["{coco}/train2017"],
            "val_json": ["{coco}/annotations/instances_train2017.json"], "val_images": ["{coco}/train2017"],
            "model": ["retinanet"], "iterations": ["1"], "batch_size": ["2"], "sides": ["64"], "workers": ["0"],
            "device": ["cpu"], "out": ["{out}.json"],
        },
        inputs={
            "run": RUN, "train_json": (".json",), "train_images": ("/",), "val_json": (".json",), "val_images": ("/",),
        },
        outputs={"out": ".json"},
        texts=SUBJECT,
        long=frozenset({"iterations", "workers", "batch_size", "sides"}),
    ),
    "embed": Walked(
        {"run": ["{run}"], "source": ["{images}"], "out": ["{out}.parquet"], "workers": ["0"], "device": ["cpu"]},
        inputs={"run": RUN, "source": IMAGES},
        outputs={"out": ".parquet"},
        texts=DEVICE,
        long=frozenset({"workers", "image_size"}),
    ),
    "export backbone": Walked(
        {"run": ["{run}"], "format": ["timm"], "out": ["{out}.pth"]}, inputs={"run": RUN}, outputs={"out": ".pth"},
        texts=frozenset({"subject"}),
    ),
    "export card": Walked({"run": ["{run}"], "out": ["{out}.md"]}, inputs={"run": ("/",)}, outputs={"out": ".md"}),
    "export boxes": Walked(
        {"shards": ["{shards}"], "format": ["coco"], "out": ["{out}.json"]},
        inputs={"shards": SHARDS, "annotations": (".json",)},
        outputs={"out": ".json"},
    ),
    "explain": Walked(
        {"image": ["{image}"], "out": ["{out}.png"], "proposals": ["naive"]},
        inputs={"image": (".jpg",), "run": RUN, "features": RUN},
        outputs={"out": ".png"},
    ),
    "doctor": Walked({"ray": ["--no-ray"]}, inputs={"folder": ("/",)}),
}  # fmt: skip

MORE: dict[str, Walked] = {
    # The other kinds of file that these commands read.
    **{
        f"import boxes {name}": Walked(
            {"file": [file], "format": [name], **IMPORT}, inputs={"file": (suffix,)}, outputs={}, texts=frozenset()
        )
        for name, file, suffix in (
            ("orl", "{orl.json}", ".json"), ("soco", "{soco}", ".json"), ("detreg", "{detreg}", "/"),
            ("siamesedetr", "{siamesedetr}", "/"), ("aligndet", "{boxes.json}", ".json"),
            ("detectron2", "{detectron2.pkl}", ".pkl"),
        )
    },
    "eval detect voc": Walked(
        {"run": ["{resnet}"], "voc": ["{missing}"], "device": ["cpu"], "workers": ["0"]}, inputs={"voc": ("/",)}
    ),
    "verify run": Walked({"named": ["{run}"], "inline": []}, inputs={"elsewhere": ("/",)}),
    "train pairs": Walked(
        {**TABLE["train"].base, "method": ["orl"]}, inputs={"settings:views.pairs=": (".parquet",)}
    ),
}  # fmt: skip


def every_command() -> dict[str, click.Command]:
    """Name -> command, of the whole tree."""
    found: dict[str, click.Command] = {}

    def below(group: click.Group, words: str) -> None:
        for name in group.list_commands(None):
            command = group.get_command(None, name)
            if isinstance(command, click.Group):
                below(command, f"{words}{name} ")
            else:
                found[words + name] = command

    below(cli, "")
    return found


def command_of(name: str) -> tuple[str, click.Command]:
    """The words that call a row of the tables, and its command."""
    commands = every_command()
    words = name if name in commands else " ".join(name.split()[:2])
    words = words if words in commands else words.split()[0]
    return words, commands[words]


def line(name: str, places: dict[str, str], **instead: list[str]) -> list[str]:
    """The words of a call: the base arguments of a row of the tables, with some of them replaced."""
    walked = TABLE.get(name) or MORE[name]
    words, command = command_of(name)
    values = {**walked.base, **instead}
    told, arguments = words.split(), []
    for option in command.params:
        if option.name not in values:
            continue
        given = [_filled(value, places) for value in values[option.name]]
        if isinstance(option, click.Argument):
            arguments += given
        elif option.is_flag:
            told += given or [option.opts[0]]
        else:
            told += [word for value in given for word in (option.opts[0], value)]
    return [*told, "--", *arguments] if arguments else told


def _filled(value: str, places: dict[str, str]) -> str:
    for name, place in places.items():
        value = value.replace(f"{{{name}}}", place)
    return value


def coco_of(folder, images):
    """COCO's annotations of pictures: a box and an outline each, in two categories."""
    content = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "bar"}, {"id": 2, "name": "block"}]}
    for at, (path, width, height) in enumerate(images, 1):
        content["images"].append({"id": at, "file_name": path, "width": width, "height": height})
        x, y, w, h = 10, 10, 100, 80
        content["annotations"].append(
            {"id": at, "image_id": at, "category_id": 1 + at % 2, "bbox": [x, y, w, h], "area": w * h, "iscrowd": 0,
             "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]]}
        )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "instances_train2017.json").write_text(json.dumps(content))
