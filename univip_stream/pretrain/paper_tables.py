"""The paper's tables, 1 to 13: what they print, and how each row that is ours, BYOL's or a reference is made here.

`univip-stream results --paper N` prints a table with a user's runs beside it; `docs/tables.md` is written from here.
"""

from typing import Any

from univip_stream.errors import UsageError
from univip_stream.pretrain.ablations import ABLATIONS
from univip_stream.pretrain.paper import Network, Row, Table
from univip_stream.pretrain.paper_columns import ap, detect, fraction, linear, six

RATES = (
    "One H200 trains a supervised ResNet-50 on 3,079 images/s (lambdal/deeplearning-benchmark, synthetic images). An image of "
    "UniVIP costs as much as 3.64 of those (10.94 forward passes of the online network against 3), hence 844 images/s; one of BYOL "
    "as much as 2.66 (8 against 3), hence 1,156. Detection is Detectron2's model zoo: seconds an "
    "iteration on 8 V100, with frozen normalisations, where SyncBN costs more. None of this was measured here"
)
"""Where the hours come from."""

_BYOL = 1156
_COCO, _PLUS, _IMAGENET = 0.118287, 0.24169, 1.281167
"""Images, in millions."""


def _network(recipe: str, images: float, *, byol: bool = False) -> Network:
    run = f"runs/{recipe}{'-byol' if byol else ''}"
    return Network(
        run=run, images=images, rate=_BYOL if byol else 844,
        train=f"univip-stream train --recipe {recipe}{' --method byol' if byol else ''} "
        f"--shards shards-{recipe.split('-2')[0].split('-3')[0]} --out {run}",
    )  # fmt: skip


def _ablation(name: str) -> Network:
    shards = "shards-coco-gt" if name == "8b-ground-truth" else "shards-coco"
    return Network(
        run=f"runs/{name}", images=_COCO * 800, rate=_BYOL if name == "7a" else 844,
        train=f"univip-stream train --recipe coco --ablation {name} --shards {shards} --out runs/{name}",
    )  # fmt: skip


NETWORKS: dict[str, Network] = {
    "random": Network(run="--subject random:resnet50"),
    "supervised": Network(run="--subject torchvision:resnet50"),
    **{
        f"{recipe}{'-byol' if byol else ''}": _network(recipe, images, byol=byol)
        for recipe, images in (
            ("coco", _COCO * 800), ("coco-plus", _PLUS * 800), ("imagenet-200", _IMAGENET * 200), ("imagenet-300", _IMAGENET * 300),
        )
        for byol in (False, True)
    },
    **{name: _ablation(name) for name in ABLATIONS},
}  # fmt: skip
"""Networks by name; those of Tables 7 to 9 have their rows' names."""


_SETS = (
    "--train-json coco/annotations/instances_train2017.json --train-images coco/train2017 "
    "--val-json coco/annotations/instances_val2017.json --val-images coco/val2017"
)
_LINEAR = (
    "univip-stream eval linear {who} --protocol {linear} --train imagenet/train --val imagenet/val --out {out}linear.json"
)
_EXPORT = "univip-stream export backbone {who} --format detectron2 --table TABLE --out {stem}-table-TABLE.pkl"
_NO_DETECTRON2 = (
    f"univip-stream eval detect {{who}} {_SETS} --model MODEL --schedule SCHEDULE --out {{out}}MODEL-SCHEDULE.json"
)


def _detection(table: int, model: str, *schedules: str, program: str = "detectron2/tools/train_net.py") -> tuple[str, ...]:
    several = len(schedules) > 1
    weights = f"{{stem}}-table-{table}"
    own = program.replace("OWN", f"{weights}.py")
    trained = [
        f"python {own} --num-gpus 8 --config-file {weights}{f'-{schedule}' if several else ''}.yaml" for schedule in schedules
    ]
    without = [
        _NO_DETECTRON2.replace("MODEL", model).replace("SCHEDULE", schedule)
        for schedule in schedules
    ]  # fmt: skip
    return (_EXPORT.replace("TABLE", str(table)), *trained, *without)


def _rows(*rows: tuple[Any, ...]) -> tuple[Row, ...]:
    return tuple(Row(method=m, data=d, epochs=e, numbers=n, network=w) for m, d, e, n, w in rows)


_FPN = (
    "Mask R-CNN R50-FPN, {} at batch 16, nothing frozen, SyncBN in backbone, pyramid and heads, statistics measured anew: ORL's "
    "and InfoMin's configuration in Detectron2. `eval detect` is torchvision's; what differs: DetectionProtocol's docstring"
)
_C4 = (
    "Mask R-CNN R50-C4, {} at batch 16, nothing frozen, SyncBN and MoCo's normalisation behind res5, statistics measured anew: "
    "MoCo's and DetCo's configuration in Detectron2 (DetCo's limits the long side to 1200 px, MoCo's does not; here 1333)"
)
_ABLATED = "ORL's linear probe as in Table 1, and Mask R-CNN as in Table 2, after 800 epochs on COCO at each row's settings"
_TRIED_DETECTOR = (
    "drawn images, ResNet-18: losses agree in training and in evaluation mode (tests/evaluation/test_detection.py), and eight "
    "images are learnt by heart to an AP above .5 by each detector (tests/evaluation/test_overfit.py, asked for by name: Faster "
    "R-CNN .76, its C4 .93, RetinaNet .77). Detectron2 "
    "built for the CPU: Tables 2, 10, 12 and 13 built with all weights, 2 and 10 trained for two iterations and scored "
    "(tests/export/test_detectron2_tables.py, skipped where there is none). COCO and VOC at their size never"
)
_TRIED_PROBE = (
    "ORL's pooling, heads and lighting agree with its code (tests/evaluation/test_layers_probed.py); ImageNet never"
)


def _ablated(table: str) -> tuple[Row, ...]:
    return tuple(
        Row(method=row.says, data="COCO", epochs=800, numbers=(row.top1, row.box_ap), network=name)
        for name, row in ABLATIONS.items()
        if name.startswith(table)
    )


def _ablation_table(number: int, title: str) -> Table:
    return Table(
        title=title, columns=(linear(), *ap("mask-rcnn", 90_000, "bbox")), rows=_ablated(str(number)), protocol=_ABLATED,
        judge=(_LINEAR, *_detection(2, "mask-rcnn", "1x")), hours="1.1 (linear, one H200) and 6.5 (detection, 8 V100), derived",
        tried="with ResNet-10 on 4,000 composed pictures: [What was learned](results.md)",
    )  # fmt: skip


TABLES: dict[int, Table] = {
    1: Table(
        title="Linear classification on ImageNet",
        columns=(linear(),),
        rows=_rows(
            ("Random", "-", None, (13.7,), "random"), ("Supervised", "ImageNet", 90, (75.9,), "supervised"),
            ("SimCLR", "COCO", 800, (50.9,), None), ("MoCo v2", "COCO", 800, (55.1,), None),
            ("BYOL", "COCO", 800, (57.8,), "coco-byol"), ("ORL", "COCO", 800, (59.0,), None),
            ("UniVIP", "COCO", 800, (60.2,), "coco"), ("BYOL", "COCO+", 800, (59.6,), "coco-plus-byol"),
            ("ORL", "COCO+", 800, (60.7,), None), ("UniVIP", "COCO+", 800, (63.0,), "coco-plus"),
            ("InstDis", "ImageNet", 200, (58.5,), None), ("MoCo", "ImageNet", 200, (60.6,), None),
            ("CPC v2", "ImageNet", 200, (63.8,), None), ("SimCLR", "ImageNet", 200, (66.5,), None),
            ("MoCo v2", "ImageNet", 200, (67.7,), None), ("SwAV", "ImageNet", 200, (69.1,), None),
            ("SimSiam", "ImageNet", 200, (70.0,), None), ("InfoMin", "ImageNet", 200, (70.1,), None),
            ("BYOL", "ImageNet", 200, (70.6,), "imagenet-200-byol"), ("UniVIP", "ImageNet", 200, (73.1,), "imagenet-200"),
            ("UniVIP", "ImageNet", 300, (74.2,), "imagenet-300"),
        ),
        protocol="ORL's for COCO and COCO+ (28 epochs, a head on each depth, res5 is the result), BYOL's for ImageNet (80 epochs, "
        "five rates): appendix A.1 of the paper. The row Random is of other work and its best layer",
        judge=(_LINEAR,),
        hours="1.1 (orl) or 3.1 (byol), one H200, derived: forward passes at 9,237 images/s",
        tried=_TRIED_PROBE,
    ),
    2: Table(
        title="Mask R-CNN R50-FPN on COCO, 1x",
        columns=ap("mask-rcnn", 90_000, "bbox", "segm"),
        rows=_rows(
            ("Rand Init", "-", None, (31.0, 28.5), "random"), ("Supervised", "ImageNet", 90, (38.9, 35.4), "supervised"),
            ("SimCLR", "COCO", 800, (37.0, 33.7), None), ("MoCov2", "COCO", 800, (38.5, 34.8), None),
            ("BYOL", "COCO", 800, (39.5, 35.6), "coco-byol"), ("ORL", "COCO", 800, (40.3, 36.3), None),
            ("UniVIP", "COCO", 800, (40.8, 36.8), "coco"), ("BYOL", "COCO+", 800, (40.0, 36.2), "coco-plus-byol"),
            ("ORL", "COCO+", 800, (40.6, 36.7), None), ("UniVIP", "COCO+", 800, (41.1, 37.1), "coco-plus"),
            ("InsDis", "ImageNet", 200, (37.4, 34.1), None), ("PIRL", "ImageNet", 200, (37.5, 34.0), None),
            ("SwAV", "ImageNet", 200, (38.5, 35.4), None), ("MoCo", "ImageNet", 200, (38.5, 35.1), None),
            ("MoCov2", "ImageNet", 200, (38.9, 35.5), None), ("BYOL", "ImageNet", 200, (40.7, 36.9), "imagenet-200-byol"),
            ("UniVIP", "ImageNet", 200, (41.6, 37.6), "imagenet-200"),
        ),
        protocol=_FPN.format("1x (90k, rate falls at 60k and 80k)"),
        judge=_detection(2, "mask-rcnn", "1x"),
        hours="6.5 on 8 V100, derived (0.261 s an iteration)",
        tried=_TRIED_DETECTOR,
    ),
    3: Table(
        title="Mask R-CNN R50-FPN on COCO, 2x",
        columns=ap("mask-rcnn", 180_000, "bbox", "segm"),
        rows=_rows(
            ("Rand Init", "-", None, (36.7, 33.7), "random"), ("Supervised", "ImageNet", 90, (40.6, 36.8), "supervised"),
            ("BYOL", "COCO", 800, (40.8, 37.0), "coco-byol"), ("UniVIP", "COCO", 800, (42.2, 38.2), "coco"),
            ("BYOL", "COCO+", 800, (41.4, 37.4), "coco-plus-byol"), ("UniVIP", "COCO+", 800, (42.8, 38.6), "coco-plus"),
            ("MoCo", "ImageNet", 200, (40.8, 36.9), None), ("MoCov2", "ImageNet", 200, (40.9, 37.0), None),
            ("BYOL", "ImageNet", 200, (42.2, 38.0), "imagenet-200-byol"), ("UniVIP", "ImageNet", 200, (43.1, 38.8), "imagenet-200"),
        ),
        protocol=_FPN.format("2x (180k, rate falls at 120k and 160k)"),
        judge=_detection(3, "mask-rcnn", "2x"),
        hours="13 on 8 V100, derived (0.261 s an iteration)",
        tried=_TRIED_DETECTOR,
    ),
    4: Table(
        title="Mask R-CNN R50-FPN on COCO, 1x, beside methods made for detection",
        columns=ap("mask-rcnn", 90_000, "bbox", "segm"),
        rows=_rows(
            ("Rand Init", "-", None, (31.0, 28.5), "random"), ("Supervised", "ImageNet", 90, (38.9, 35.4), "supervised"),
            ("Self-EMD", "COCO", 800, (39.3, None), None), ("DenseCL", "COCO", 800, (39.6, 35.7), None),
            ("Resim-FPN", "ImageNet", 200, (39.8, 36.0), None), ("DetCo", "ImageNet", 200, (40.1, 36.4), None),
            ("DenseCL", "ImageNet", 200, (40.3, 36.4), None), ("Resim-FPN", "ImageNet", 400, (40.3, 36.4), None),
            ("BYOL", "ImageNet", 300, (40.9, 37.0), "imagenet-300-byol"), ("SCRL", "ImageNet", 200, (41.0, 37.5), None),
            ("SCRL", "ImageNet", 1000, (41.4, 37.9), None), ("InsLoc-FPN", "ImageNet", 200, (41.4, 37.1), None),
            ("InsLoc-FPN", "ImageNet", 400, (42.0, 37.6), None), ("UniVIP", "COCO", 800, (40.8, 36.8), "coco"),
            ("UniVIP", "COCO+", 800, (41.1, 37.1), "coco-plus"), ("UniVIP", "ImageNet", 200, (41.6, 37.6), "imagenet-200"),
            ("UniVIP", "ImageNet", 300, (42.2, 38.2), "imagenet-300"),
        ),
        protocol="As Table 2",
        judge=_detection(4, "mask-rcnn", "1x"),
        hours="6.5 on 8 V100, derived (0.261 s an iteration)",
        tried=_TRIED_DETECTOR,
    ),
    5: Table(
        title="Mask R-CNN R50-FPN on COCO, longer schedules",
        columns=tuple(
            detect(name, "bbox.AP", "mask-rcnn", count, only=True)
            for name, count in (("1x box AP", 90_000), ("2x box AP", 180_000), ("6x box AP", 540_000))
        ),
        rows=_rows(
            ("Random", "-", None, (31.0, 36.7, 42.7), "random"), ("Supervised", "ImageNet", 90, (38.9, 40.6, 42.6), "supervised"),
            ("BYOL", "ImageNet", 300, (40.9, 42.3, 42.6), "imagenet-300-byol"),
            ("UniVIP", "ImageNet", 300, (42.2, 43.5, 44.0), "imagenet-300"),
        ),
        protocol=_FPN.format("1x, 2x and 6x (540k; the paper names no falls, ours are in the last 60k and 20k iterations)")
        + ". The table does not name BYOL's epochs; its 1x is that of Table 4's 300",
        judge=_detection(5, "mask-rcnn", "1x", "2x", "6x"),
        hours="6.5, 13 and 39 on 8 V100, derived (0.261 s an iteration)",
        tried=_TRIED_DETECTOR,
    ),
    6: Table(
        title="Semi-supervised classification on ImageNet",
        columns=(fraction(0.01, "top1"), fraction(0.01, "top5"), fraction(0.1, "top1"), fraction(0.1, "top5")),
        rows=_rows(
            ("Random", "-", None, (1.6, 5.0, 21.8, 44.2), "random"),
            ("Supervised", "ImageNet", 90, (25.4, 48.4, 56.4, 80.4), None),
            ("SimCLR", "COCO", 800, (23.4, 46.4, 52.2, 77.4), None), ("MoCo v2", "COCO", 800, (28.2, 54.7, 57.1, 81.7), None),
            ("BYOL", "COCO", 800, (28.4, 55.9, 58.4, 82.7), "coco-byol"), ("ORL", "COCO", 800, (31.0, 58.9, 60.5, 84.2), None),
            ("UniVIP", "COCO", 800, (31.6, 59.7, 61.3, 85.6), "coco"),
            ("BYOL", "COCO+", 800, (28.3, 56.0, 59.4, 83.6), "coco-plus-byol"),
            ("ORL", "COCO+", 800, (31.8, 60.1, 60.9, 84.4), None), ("UniVIP", "COCO+", 800, (32.3, 60.9, 61.7, 85.7), "coco-plus"),
            ("BYOL", "ImageNet", 200, (51.5, 76.7, 64.7, 86.6), "imagenet-200-byol"),
            ("UniVIP", "ImageNet", 200, (53.0, 78.8, 67.1, 88.5), "imagenet-200"),
        ),
        protocol="ORL's: everything trains for 20 epochs at batch 256, rates falling to a fifth at 12 and 16, three rates of the "
        "backbone by three multipliers of the head's, SimCLR's lists of images. Ours chooses the pair on held-out labelled images "
        "and trains once more on all, where ORL chooses by the validation set. The row Supervised trains on the few labels alone: "
        "nothing here makes it",
        judge=(
            "univip-stream eval finetune {who} --fraction 1% --subset 1percent.txt --train imagenet/train --val imagenet/val "
            "--out {out}finetune-1.json",
            "univip-stream eval finetune {who} --fraction 10% --subset 10percent.txt --train imagenet/train --val imagenet/val "
            "--out {out}finetune-10.json",
        ),
        hours="0.2 and 2.3, one H200, derived (ten trainings at 3,079 images/s)",
        tried="drawn classes (tests/evaluation/test_finetune.py); ImageNet never",
    ),
    7: _ablation_table(7, "Ablation of the levels"),
    8: _ablation_table(8, "Ablations of scene similarity, region candidates and their number"),
    9: _ablation_table(9, "Ablation of the pairs of views that are tried"),
    10: Table(
        title="Mask R-CNN R50-C4 on COCO, 1x",
        columns=six("mask-rcnn-c4", 90_000),
        rows=_rows(
            ("Rand Init", "-", None, (26.4, 44.0, 27.8, 29.3, 46.9, 30.8), "random"),
            ("Supervised", "ImageNet", 90, (38.2, 58.2, 41.2, 33.3, 54.7, 35.2), "supervised"),
            ("DetCo", "ImageNet", None, (39.8, 59.7, 43.0, 34.7, 56.3, 36.7), None),
            ("SimCLR", "COCO", 800, (34.4, 54.0, 36.4, 30.7, 50.6, 32.6), None),
            ("MoCov2", "COCO", 800, (37.6, 57.0, 40.4, 33.0, 53.8, 34.9), None),
            ("BYOL", "COCO", 800, (38.1, 57.4, 40.5, 33.5, 54.2, 35.5), "coco-byol"),
            ("UniVIP", "COCO", 800, (39.3, 58.9, 42.2, 34.4, 55.7, 36.5), "coco"),
            ("BYOL", "COCO+", 800, (38.8, 58.8, 42.0, 34.1, 55.5, 36.5), "coco-plus-byol"),
            ("UniVIP", "COCO+", 800, (40.1, 60.0, 43.2, 35.2, 56.7, 37.6), "coco-plus"),
        ),
        protocol=_C4.format("1x (90k, rate falls at 60k and 80k)"),
        judge=_detection(10, "mask-rcnn-c4", "1x", program="OWN"),
        hours="14.6 on 8 V100, derived (0.584 s an iteration)",
        tried=_TRIED_DETECTOR,
    ),
    11: Table(
        title="Mask R-CNN R50-C4 on COCO, 2x",
        columns=six("mask-rcnn-c4", 180_000),
        rows=_rows(
            ("Rand Init", "-", None, (35.6, 54.6, 38.2, 31.4, 51.5, 33.5), "random"),
            ("Supervised", "ImageNet", 90, (40.0, 59.9, 43.1, 34.7, 56.5, 36.9), "supervised"),
            ("DetCo", "ImageNet", None, (41.3, 61.2, 45.0, 35.8, 57.9, 38.2), None),
            ("BYOL", "COCO", 800, (39.0, 58.6, 42.1, 34.0, 55.0, 36.1), "coco-byol"),
            ("UniVIP", "COCO", 800, (41.0, 60.6, 44.6, 35.6, 57.4, 37.8), "coco"),
            ("BYOL", "COCO+", 800, (40.6, 60.3, 44.0, 35.4, 57.2, 37.7), "coco-plus-byol"),
            ("UniVIP", "COCO+", 800, (41.5, 61.3, 45.0, 36.3, 58.0, 38.7), "coco-plus"),
        ),
        protocol=_C4.format("2x (180k, rate falls at 120k and 160k)"),
        judge=_detection(11, "mask-rcnn-c4", "2x", program="OWN"),
        hours="29.2 on 8 V100, derived (0.584 s an iteration)",
        tried=_TRIED_DETECTOR,
    ),
    12: Table(
        title="Faster R-CNN R50-C4 on PASCAL VOC07+12",
        columns=tuple(detect(name, f"voc.{name}", "faster-rcnn-c4", 24_000) for name in ("AP", "AP50", "AP75")),
        rows=_rows(
            ("Rand Init", "-", None, (33.8, 60.2, 33.1), "random"),
            ("Supervised", "ImageNet", 90, (53.5, 81.3, 58.8), "supervised"),
            ("InsDis", "ImageNet", 200, (55.2, 80.9, 61.2), None), ("PIRL", "ImageNet", 200, (55.5, 81.0, 61.3), None),
            ("SwAV", "ImageNet", 800, (56.1, 82.6, 62.7), None), ("MoCo", "ImageNet", 200, (55.9, 81.5, 62.6), None),
            ("MoCov2", "ImageNet", 800, (57.4, 82.5, 64.0), None), ("DetCo", "ImageNet", 200, (57.8, 82.6, 64.2), None),
            ("DetCo", "ImageNet", 800, (58.2, 82.7, 65.0), None), ("BYOL", "COCO", 800, (53.8, 79.9, 59.1), "coco-byol"),
            ("UniVIP", "COCO", 800, (56.5, 82.3, 62.6), "coco"), ("BYOL", "COCO+", 800, (56.4, 81.9, 62.6), "coco-plus-byol"),
            ("UniVIP", "COCO+", 800, (58.2, 83.3, 65.2), "coco-plus"),
        ),
        protocol="Faster R-CNN R50-C4 on trainval of 2007 and 2012, 24k iterations at batch 16, warm-up of 100, short side 480 to "
        "800, SyncBN and MoCo's normalisation behind res5, scored on test 2007 by VOC's own AP (eleven points): MoCo's and DetCo's "
        "in Detectron2",
        judge=(
            _EXPORT.replace("TABLE", "12"),
            "python {stem}-table-12.py --num-gpus 8 --config-file {stem}-table-12.yaml",
            "univip-stream eval detect {who} --voc VOCdevkit --model faster-rcnn-c4 --out {out}voc.json",
        ),
        hours="3.6 on 8 V100, derived (0.537 s an iteration)",
        tried=_TRIED_DETECTOR,
    ),
    13: Table(
        title="RetinaNet R50-FPN on COCO, 1x",
        columns=tuple(detect(name, f"bbox.{name}", "retinanet", 90_000) for name in ("AP", "AP50", "AP75")),
        rows=_rows(
            ("Rand Init", "-", None, (24.5, 39.0, 25.7), "random"),
            ("Supervised", "ImageNet", 90, (37.4, 56.5, 39.7), "supervised"),
            ("InsDis", "ImageNet", 200, (35.5, 54.1, 38.2), None), ("PIRL", "ImageNet", 200, (35.7, 54.2, 38.4), None),
            ("SwAV", "ImageNet", 200, (35.2, 54.9, 37.5), None), ("MoCo", "ImageNet", 200, (36.3, 55.0, 39.0), None),
            ("MoCov2", "ImageNet", 200, (37.2, 56.2, 39.6), None), ("DetCo", "ImageNet", 200, (38.4, 57.8, 41.2), None),
            ("BYOL", "COCO", 800, (36.0, 54.5, 38.5), "coco-byol"), ("UniVIP", "COCO", 800, (38.0, 57.4, 40.6), "coco"),
            ("BYOL", "COCO+", 800, (37.0, 56.2, 39.5), "coco-plus-byol"), ("UniVIP", "COCO+", 800, (38.5, 58.0, 41.0), "coco-plus"),
        ),
        protocol="RetinaNet R50-FPN, 1x at batch 16, rate 0.01, nothing frozen, SyncBN in backbone and pyramid, none in the heads: "
        "DetCo's configuration in Detectron2",
        judge=_detection(13, "retinanet", "1x"),
        hours="5.1 on 8 V100, derived (0.205 s an iteration)",
        tried=_TRIED_DETECTOR,
    ),
}  # fmt: skip
"""The tables by number."""


def table_of(number: int) -> Table:
    """Return a table.

    Raises:
        UsageError: the paper has none of that number.

    """
    if number not in TABLES:
        raise UsageError(f"the paper has no Table {number}; expected 1 to {max(TABLES)}")
    return TABLES[number]


def commands_for(table: Table, row: Row) -> list[str]:
    """Return the commands that judge a row's network as the table does; none for a row that nothing here makes."""
    if row.network is None:
        return []
    network = NETWORKS[row.network]
    probe = "byol" if row.data == "ImageNet" and network.train else "orl"
    out = f"{network.run}/eval/" if network.train else f"references/{row.network}/"  # where `results` looks
    words = {"who": network.run, "out": out, "stem": row.network, "linear": probe}
    return [command.format(**words) for command in table.judge]
