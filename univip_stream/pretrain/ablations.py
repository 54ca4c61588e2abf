"""The rows of the paper's ablation tables, each a name for the settings in which it differs from a recipe.

All but BYOL's begin with the paper's printed reading, 7e: our defaults differ from it by what docs/results.md measured.
"""

from typing import NamedTuple

from univip_stream.errors import UsageError
from univip_stream.suggest import did_you_mean


class Ablation(NamedTuple):
    """A row of a table."""

    settings: tuple[str, ...]
    """As after --set."""
    top1: float
    """The paper's linear top-1 on ImageNet after 800 epochs on COCO, per cent."""
    box_ap: float
    """The paper's COCO box AP, Mask R-CNN R50-FPN 1x, after the same."""
    says: str
    """What the row is."""
    proposals: str | None = None
    """What its shards must have been mined with, where that alone tells it from another row."""


PRINTED = ("method.mass=1", "views.instance_augmentations=1")
"""UniVIP as printed: the plan sums to one, and both networks see an instance in one augmentation."""
_SCENE_ONLY = ("method.scene_instance=false", "method.instance=false")

ABLATIONS: dict[str, Ablation] = {
    "7a": Ablation(("method.name=byol", "views.overlap=false", "views.instances=0"), 57.3, 39.5, "BYOL: random views"),
    "7b": Ablation((*PRINTED, *_SCENE_ONLY), 57.7, 39.6, "scene"),
    "7c": Ablation((*PRINTED, "method.instance=false"), 58.1, 40.4, "scene, scene-instance"),
    "7d": Ablation((*PRINTED, "method.scene_instance=false"), 59.6, 40.5, "scene, instance"),
    "7e": Ablation(PRINTED, 60.2, 40.8, "all three terms"),
    "8a-no": Ablation((*PRINTED, "views.overlap=false"), 59.3, 40.3, "random views"),
    "8a-yes": Ablation((*PRINTED, "views.overlap=true"), 60.2, 40.8, "overlapping views"),
    "8b-none": Ablation((*PRINTED, "views.instances=0", "views.regions=none"), 57.7, 39.6, "no regions"),
    "8b-ground-truth": Ablation(PRINTED, 58.5, 40.3, "from shards mined with --proposals ground-truth", "ground-truth"),
    # The views are chosen by Algorithm 1 as in the other rows, so that nothing but the boxes differs.
    "8b-naive": Ablation((*PRINTED, "views.regions=naive-candidates"), 58.9, 40.5, "random boxes, as many as were mined"),
    "8b-selective-search": Ablation(
        PRINTED, 60.2, 40.8, "from shards mined with --proposals selective-search", "selective-search"
    ),
    "8c-0": Ablation((*PRINTED, "views.instances=0"), 57.7, 39.6, "K = 0"),
    "8c-2": Ablation((*PRINTED, "views.instances=2"), 59.8, 40.4, "K = 2"),
    "8c-4": Ablation((*PRINTED, "views.instances=4"), 60.2, 40.8, "K = 4"),
    "8c-8": Ablation((*PRINTED, "views.instances=8"), 59.7, 40.6, "K = 8"),
    "9-10": Ablation((*PRINTED, "views.tries=10"), 60.0, 40.7, "10 pairs of views tried"),
    "9-20": Ablation((*PRINTED, "views.tries=20"), 60.2, 40.8, "20 pairs of views tried"),
    "9-30": Ablation((*PRINTED, "views.tries=30"), 60.2, 40.8, "30 pairs of views tried"),
}
"""Table, then row. Some rows are the same run under the names of several tables, as in the paper."""


def ablation(name: str) -> Ablation:
    """Return the row of the paper that a name stands for.

    Raises:
        UsageError: no row has that name.

    """
    if name not in ABLATIONS:
        guess = did_you_mean(name, ABLATIONS) or "."
        raise UsageError(
            f"there is no ablation {name!r}{guess} They are the rows of the paper's tables: {', '.join(ABLATIONS)}"
        )
    return ABLATIONS[name]
