"""The protocol as data: sets of images, budgets, rows and seeds. It was written down before any of its results was looked at.

docs/results.md tells it in words. A cell is (set, row, seed); its settings are those of the set, then of the row.
"""

import hashlib
import json
from dataclasses import dataclass, field

CHOSEN: tuple[str, ...] = ("optim.lr=0.01", "ema=0.996")
"""Of the rows of `tuning`, the best by its kNN: for every row of the sets of real images."""
SEEDS = (0, 1, 2)
"""Of weights, order, views and augmentations; the images stay."""

_SMALL = ("views.scene_size=64", "views.instance_size=32", "method.backbone=resnet10t", "precision=bf16", "stream.workers=0")
"""ResNet-10-T on 64 px: many images seen, a small network. bf16 as on GPUs; on a CPU without it torch emulates it, slowly."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A way to train."""

    settings: tuple[str, ...] = ()
    """As after --set."""
    method: str | None = None
    """As after --method: with the method's own views."""
    says: str
    """For the table."""
    by_lightly: bool = False
    """Trained by lightly's own parts, `by_lightly.py`."""
    longer: float = 1.0
    """Times the set's epochs."""
    after: str | None = None
    """The row whose run of the same seed finds the pairs of regions to train on (ORL's first stage)."""
    proposals: str | None = None
    """As after --proposals, for shards of its own; None for the set's."""


@dataclass(frozen=True, kw_only=True)
class ImageSet:
    """Images to learn from, labelled ones to judge by, and a budget."""

    images: str
    """Folder of the images, below the work folder."""
    epochs: float
    """Passes over the images."""
    settings: tuple[str, ...]
    """As after --set, over the recipe cpu-demo."""
    probe: tuple[str, str]
    """Folders of labelled images, those that vote or are learned from and those that are judged: below the work folder, or a
    split of Imagenette."""
    rows: tuple[str, ...]
    """In the order in which they are run, every row for a seed, then the next seed."""
    later: tuple[str, ...] = ()
    """Rows that come after all sets' first rows are done."""
    seeds: dict[str, int] = field(default_factory=dict)
    """Rows with fewer seeds than all, or more: how many."""


_DEFAULTS = ("method.mass=1", "views.instance_augmentations=1")
"""UniVIP as printed."""
_K = "method.mass=4"
_TWO = "views.instance_augmentations=2"
_SCENE_ONLY = ("method.scene_instance=false", "method.instance=false")
_BYOL = ("method.name=byol", "views.overlap=false", "views.instances=0")

ROWS: dict[str, Row] = {
    "untrained": Row(says="the network as it begins"),
    "byol": Row(settings=_BYOL, says="BYOL, random views: Table 7 (a)"),
    "scene": Row(settings=_SCENE_ONLY, says="overlapping views: Table 7 (b)"),
    "scene+si": Row(settings=("method.instance=false",), says="and scene-instance: Table 7 (c)"),
    "scene+ii": Row(settings=("method.scene_instance=false",), says="and instance-instance: Table 7 (d)"),
    "printed": Row(says="UniVIP as printed, mass 1: Table 7 (e)"),
    "K": Row(settings=(_K,), says="mass K"),
    "two": Row(settings=(_TWO,), says="two augmentations of an instance"),
    "K+two": Row(settings=(_K, _TWO), says="mass K, two augmentations"),
    "K+two, no si": Row(settings=(_K, _TWO, "method.scene_instance=false"), says="mass K, two augmentations, (d)"),
    "K+two, no scene": Row(settings=(_K, _TWO, "method.scene=false"), says="mass K, two augmentations, no scene term"),
    "K+two, either": Row(settings=(_K, _TWO, "views.instance_draws=either"), says="and each drawn as either view"),
    "K, either": Row(settings=(_K, "views.instance_draws=either"), says="mass K, one augmentation, drawn as either view"),
    "K, eps .05": Row(settings=(_K, "method.epsilon=0.05"), says="mass K, epsilon 0.05"),
    "K, eps .02": Row(settings=(_K, "method.epsilon=0.02"), says="mass K, epsilon 0.02"),
    "K+two, eps .05": Row(settings=(_K, _TWO, "method.epsilon=0.05"), says="and epsilon 0.05"),
    "K+two, eps .02": Row(settings=(_K, _TWO, "method.epsilon=0.02"), says="and epsilon 0.02"),
    "K, plan": Row(settings=(_K, "method.through_plan=true"), says="mass K, gradient through the plan"),
    "K+two, plan": Row(settings=(_K, _TWO, "method.through_plan=true"), says="and gradient through the plan"),
    "K+two, 2-2cos": Row(settings=(_K, _TWO, "method.loss_scale=2"), says="and 2 - 2 cos"),
    "byol, 2-2cos": Row(settings=(*_BYOL, "method.loss_scale=2"), says="BYOL with 2 - 2 cos"),
    "K+two, kaiming": Row(settings=(_K, _TWO, "method.init=kaiming"), says="and Kaiming's initialisation"),
    "byol, kaiming": Row(settings=(*_BYOL, "method.init=kaiming"), says="BYOL with Kaiming's initialisation"),
    "K+two, naive": Row(settings=(_K, _TWO, "views.regions=naive"), says="and random boxes: Table 8 (b)"),
    "K+two, any views": Row(settings=(_K, _TWO, "views.overlap=false"), says="and random views: Table 8 (a)"),
    "byol, longer": Row(settings=_BYOL, longer=1.5, says="BYOL, 1.5 times the images: nine tenths of UniVIP's CPU time"),
    "byol by lightly": Row(by_lightly=True, says="BYOL by lightly 1.6.0: same pictures, sizes, budget"),
    "byol, whole blur": Row(
        settings=(*_BYOL, "augment.blur_kernel=0.2"),
        says="BYOL, blur of 13 taps, not 7: three deviations, as lightly has",
    ),
    "simclr": Row(method="simclr", says="SimCLR"),
    "moco-v2": Row(method="moco-v2", settings=("method.queue=4096",), says="MoCo v2, 4,096 keys"),
    "densecl": Row(method="densecl", settings=("method.queue=4096",), says="DenseCL, 4,096 keys"),
    "scrl": Row(method="scrl", says="SCRL"),
    "soco": Row(method="soco", settings=("views.third_size=32",), says="SoCo, third view at 32 px"),
    "orl": Row(method="orl", after="byol", says="ORL, pairs of regions found by the BYOL above, which comes on top"),
    "K+two, true boxes": Row(
        settings=(_K, _TWO), proposals="ground-truth", says="and where the photographs are, not mined boxes: an upper bound"
    ),
}
"""Name -> what it is. A row that says "and" is K+two with one thing changed."""

_CHOICES = (
    "K", "two", "K+two, either", "K, either", "K, eps .05", "K, eps .02", "K+two, eps .05", "K+two, eps .02", "K, plan",
    "K+two, plan", "K+two, 2-2cos", "byol, 2-2cos", "K+two, kaiming", "byol, kaiming",
)  # fmt: skip
_TRIED = [(lr, ema) for lr in (0.03, 0.1, 0.3) for ema in (0.97, 0.99)]
_BEYOND = [(0.01, 0.97), (0.01, 0.99), (0.01, 0.996), (0.03, 0.996)]
"""Round the best of those, 0.03 and 0.99, which lay in a corner."""
_TUNED = {f"lr {lr}, ema {ema}": (f"optim.lr={lr}", f"ema={ema}") for lr, ema in _TRIED + _BEYOND}
ROWS |= {name: Row(settings=(*_BYOL, *settings), says="BYOL, to choose by") for name, settings in _TUNED.items()}
_OTHERS = ("simclr", "moco-v2", "densecl", "scrl", "soco", "orl")

_REAL = ("stream.batch_size=64", "views.min_scale=32", "optim.warmup_epochs=1")

SETS: dict[str, ImageSet] = {
    "tuning": ImageSet(
        images="composed",
        epochs=10,
        settings=_REAL,
        probe=("tuning/probe/train", "tuning/probe/val"),
        rows=tuple(_TUNED),
        seeds=dict.fromkeys(_TUNED, 1),
    ),
    "drawn": ImageSet(
        images="drawn",
        epochs=12,
        settings=("stream.batch_size=32",),
        probe=("drawn/probe/train", "drawn/probe/val"),
        rows=("untrained", "byol", "scene", "scene+si", "scene+ii", "printed", "K+two"),
        later=(
            *_CHOICES,
            "K+two, no si",
            "K+two, no scene",
            "K+two, naive",
            "K+two, any views",
            "byol, longer",
            "byol by lightly",
            "byol, whole blur",
            *_OTHERS,
        ),
        seeds=dict.fromkeys(("byol", "printed", "K+two", "byol by lightly"), 6),
    ),
    "composed": ImageSet(
        images="composed",
        epochs=30,
        settings=(*_REAL, *CHOSEN),
        probe=("imagenette:train", "imagenette:val"),
        rows=("untrained", "byol", "K+two", "printed", "scene", "scene+si", "scene+ii"),
        later=(
            *_CHOICES,
            "K+two, no si",
            "K+two, no scene",
            "K+two, naive",
            "K+two, any views",
            "K+two, true boxes",
            "byol, longer",
            "byol by lightly",
            *_OTHERS,
        ),
        seeds=dict.fromkeys(_OTHERS, 1),
    ),
    "single": ImageSet(
        images="single",
        epochs=13,
        settings=(*_REAL, *CHOSEN),
        probe=("imagenette:train", "imagenette:val"),
        rows=("untrained", "byol", "K+two", "printed", "scene"),
        later=("byol by lightly", "byol, longer"),
    ),
}
"""Name -> what it is. `data.py` makes them."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run."""

    set: str
    row: str
    seed: int

    @property
    def name(self) -> str:
        """For files: the row in letters, digits and dashes."""
        row = "".join(letter if letter.isalnum() or letter in "+-." else "-" for letter in self.row).replace("--", "-")
        return f"{self.set}/{row}-s{self.seed}"

    @property
    def settings(self) -> list[str]:
        """As after --set, in order: a later one wins."""
        kind, row = SETS[self.set], ROWS[self.row]
        if self.row == "untrained":
            return [*_SMALL, *kind.settings, "steps=1"]
        return [*_SMALL, *kind.settings, *row.settings, f"epochs={kind.epochs * row.longer:g}"]

    @property
    def trained(self) -> list[str]:
        """`settings` after what the package's defaults were when the protocol was written; they are others since its results."""
        row = ROWS[self.row]
        return self.settings if row.method is not None or "method.name=byol" in row.settings else [*_DEFAULTS, *self.settings]

    @property
    def fingerprint(self) -> str:
        """Of everything that the protocol says of this cell."""
        row = ROWS[self.row]
        said: list[object] = [self.set, self.row, self.seed, row.method, self.settings, SETS[self.set].probe]
        said += ["lightly"] if row.by_lightly else []
        said += [told for told in (row.after, row.proposals) if told is not None]
        return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:16]


def cells(only: str | None = None) -> list[Cell]:
    """All cells in the order in which they are run: first rows of every set, seed by seed, then the later ones."""
    found: list[Cell] = []
    for rows_of in (lambda kind: kind.rows, lambda kind: kind.later):
        for name, kind in SETS.items():
            if name in ("composed", "single") and not CHOSEN:
                continue
            for seed in range(max(len(SEEDS), *kind.seeds.values(), 0)):
                found += [
                    Cell(set=name, row=row, seed=seed) for row in rows_of(kind) if seed < kind.seeds.get(row, len(SEEDS))
                ]
    return [cell for cell in found if only is None or cell.name.startswith(only)]
