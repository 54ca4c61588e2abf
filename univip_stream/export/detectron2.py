"""Detectron2's configurations of the paper's tables: detector, schedule and data, each as the code that the paper follows has them.

The keys are the model zoo's (facebookresearch/detectron2 @ 02b5c4e, configs/), with these differences, which pre-training wants:
nothing frozen, SyncBN in the backbone and where the table's source has it, statistics measured anew before scoring (PRECISE_BN),
and, as torchvision's networks have them, RGB pixels with mean and deviation and the stride in the 3 x 3 convolution.
"""

from dataclasses import dataclass
from typing import Any

from univip_stream.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Detection:
    """What a table of the paper fine-tunes."""

    says: str
    """Detector, as the first line of its configuration has it."""
    model: str
    """fpn, c4 or retinanet."""
    schedules: tuple[str, ...]
    """Names in `SCHEDULES`."""
    masks: bool = True
    """Whether it learns outlines."""
    voc: bool = False
    """Whether it is of PASCAL VOC 07+12, not of COCO."""
    source: str
    """Whose configuration it is, for the documentation."""


_ORL = "ORL 2ad64f7 and InfoMin, R_50_FPN_1x_infomin.yaml and its 2x; 6x falls in its last 60k and 20k, as Detectron2's 3x and 9x"
_C4 = "DetCo adf4947 and MoCo, coco_R_50_C4_2x_moco.yaml and Base-RCNN-C4-BN.yaml"

SCHEDULES: dict[str, tuple[int, int, int]] = {
    "1x": (60_000, 80_000, 90_000),
    "2x": (120_000, 160_000, 180_000),
    "6x": (480_000, 520_000, 540_000),
    "24k": (18_000, 22_000, 24_000),
}
"""Iterations at batch 16 after which the rate falls to a tenth, twice, and all of them."""

TABLES: dict[int, Detection] = {
    2: Detection(says="Mask R-CNN R{depth}-FPN", model="fpn", schedules=("1x",), source=_ORL),
    3: Detection(says="Mask R-CNN R{depth}-FPN", model="fpn", schedules=("2x",), source=_ORL),
    4: Detection(says="Mask R-CNN R{depth}-FPN", model="fpn", schedules=("1x",), source=_ORL),
    5: Detection(says="Mask R-CNN R{depth}-FPN", model="fpn", schedules=("1x", "2x", "6x"), source=_ORL),
    10: Detection(says="Mask R-CNN R{depth}-C4", model="c4", schedules=("1x",), source=_C4),
    11: Detection(says="Mask R-CNN R{depth}-C4", model="c4", schedules=("2x",), source=_C4),
    12: Detection(
        says="Faster R-CNN R{depth}-C4, VOC07+12", model="c4", schedules=("24k",), masks=False, voc=True,
        source="DetCo adf4947 and MoCo, pascal_voc_R_50_C4_24k_moco.yaml",
    ),
    13: Detection(
        says="RetinaNet R{depth}-FPN", model="retinanet", schedules=("1x",), masks=False,
        source="DetCo adf4947, coco_R_50_RetinaNet_1x_moco.yaml",
    ),
}  # fmt: skip
"""The tables that Detectron2 makes."""

FIRST_WORDS = ("# Mask R-CNN R", "# Faster R-CNN R", "# RetinaNet R")
"""Beginnings of the configurations that are written."""

EXTRA_NORM = '''"""Train and score as Detectron2's tools/train_net.py does, with MoCo's box head: a normalisation behind res5.

python {name} --config-file {config} --num-gpus 8
"""

from detectron2.config import get_cfg
from detectron2.data import MetadataCatalog
from detectron2.engine import DefaultTrainer, default_argument_parser, default_setup, launch
from detectron2.evaluation import COCOEvaluator, PascalVOCDetectionEvaluator
from detectron2.layers import get_norm
from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY, Res5ROIHeads


@ROI_HEADS_REGISTRY.register()
class Res5ROIHeadsExtraNorm(Res5ROIHeads):
    """MoCo's (arXiv:1911.05722, section 4.2): a normalisation follows res5."""

    @classmethod
    def _build_res5_block(cls, cfg):
        block, channels = super()._build_res5_block(cfg)
        block.add_module("norm", get_norm(cfg.MODEL.RESNETS.NORM, channels))
        return block, channels


class Trainer(DefaultTrainer):
    """Scores VOC by its own rule, all else by COCO's."""

    @classmethod
    def build_evaluator(cls, cfg, dataset_name):
        if MetadataCatalog.get(dataset_name).evaluator_type == "pascal_voc":
            return PascalVOCDetectionEvaluator(dataset_name)
        return COCOEvaluator(dataset_name, output_dir=cfg.OUTPUT_DIR)


def main(arguments):
    """Train, or with --eval-only score what is in MODEL.WEIGHTS."""
    cfg = get_cfg()
    cfg.merge_from_file(arguments.config_file)
    cfg.merge_from_list(arguments.opts)
    cfg.freeze()
    default_setup(cfg, arguments)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=arguments.resume)
    return Trainer.test(cfg, trainer.model) if arguments.eval_only else trainer.train()


if __name__ == "__main__":
    given = default_argument_parser().parse_args()
    launch(main, given.num_gpus, given.num_machines, given.machine_rank, given.dist_url, args=(given,))
'''
"""The program beside a C4 configuration: Detectron2's own has no such head, and MoCo's and DetCo's programs register one."""


def detection_of(table: int) -> Detection:
    """Return what a table fine-tunes.

    Raises:
        UsageError: no detection is in that table.

    """
    if table not in TABLES:
        raise UsageError(
            f"--table {table}: Detectron2 makes the tables {', '.join(map(str, TABLES))}; `univip-stream results --paper "
            f"{table if 0 < table < 14 else 'N'}` says how the others are made"
        )
    return TABLES[table]


def settings_of(
    detection: Detection, schedule: str, *, weights: str, depth: int, mean: list[float], std: list[float]
) -> dict[str, Any]:
    """Return the configuration of a table as nested dictionaries.

    Args:
        detection: the table's.
        schedule: one of its schedules.
        weights: place of the weights.
        depth: 18 to 152.
        mean: mean of the training's pixels, grey levels, red first.
        std: their standard deviation.

    """
    fpn, retinanet, c4 = (detection.model == name for name in ("fpn", "retinanet", "c4"))
    resnets: dict[str, Any] = {
        "DEPTH": depth, "RES2_OUT_CHANNELS": 64 if depth < 50 else 256, "STRIDE_IN_1X1": False, "NORM": "SyncBN",
    }  # fmt: skip
    backbone: dict[str, Any] = {"FREEZE_AT": 0}
    model: dict[str, Any] = {
        "META_ARCHITECTURE": "RetinaNet" if retinanet else "GeneralizedRCNN", "WEIGHTS": weights, "PIXEL_MEAN": mean,
        "PIXEL_STD": std, "MASK_ON": detection.masks, "BACKBONE": backbone, "RESNETS": resnets,
    }  # fmt: skip
    if c4:
        model["RPN"] = {"PRE_NMS_TOPK_TEST": 6000, "POST_NMS_TOPK_TEST": 1000}
        model["ROI_HEADS"] = {"NAME": "Res5ROIHeadsExtraNorm", **({"NUM_CLASSES": 20} if detection.voc else {})}
    if fpn:
        backbone["NAME"] = "build_resnet_fpn_backbone"
        stages = ["res2", "res3", "res4", "res5"]
        resnets["OUT_FEATURES"] = stages
        model["FPN"] = {"IN_FEATURES": stages, "NORM": "SyncBN"}
        model["ANCHOR_GENERATOR"] = {"SIZES": [[32], [64], [128], [256], [512]], "ASPECT_RATIOS": [[0.5, 1.0, 2.0]]}
        model["RPN"] = {
            "IN_FEATURES": ["p2", "p3", "p4", "p5", "p6"], "PRE_NMS_TOPK_TRAIN": 2000, "PRE_NMS_TOPK_TEST": 1000,
            "POST_NMS_TOPK_TRAIN": 1000, "POST_NMS_TOPK_TEST": 1000,
        }  # fmt: skip
        model["ROI_HEADS"] = {"NAME": "StandardROIHeads", "IN_FEATURES": ["p2", "p3", "p4", "p5"]}
        model["ROI_BOX_HEAD"] = {
            "NAME": "FastRCNNConvFCHead", "NUM_CONV": 4, "NUM_FC": 1, "NORM": "SyncBN", "POOLER_RESOLUTION": 7,
        }  # fmt: skip
        model["ROI_MASK_HEAD"] = {
            "NAME": "MaskRCNNConvUpsampleHead", "NUM_CONV": 4, "NORM": "SyncBN", "POOLER_RESOLUTION": 14,
        }  # fmt: skip
    if retinanet:
        backbone["NAME"] = "build_retinanet_resnet_fpn_backbone"
        stages = ["res3", "res4", "res5"]
        resnets["OUT_FEATURES"] = stages
        model["FPN"] = {"IN_FEATURES": stages, "NORM": "SyncBN"}
        model["ANCHOR_GENERATOR"] = {
            "SIZES": [[x, x * 2 ** (1.0 / 3), x * 2 ** (2.0 / 3)] for x in (32, 64, 128, 256, 512)]
        }  # fmt: skip
        model["RETINANET"] = {"IOU_THRESHOLDS": [0.4, 0.5], "IOU_LABELS": [0, -1, 1], "SMOOTH_L1_LOSS_BETA": 0.0}
    first, second, last = SCHEDULES[schedule]
    solver: dict[str, Any] = {
        "IMS_PER_BATCH": 16, "BASE_LR": 0.01 if retinanet else 0.02, "STEPS": [first, second], "MAX_ITER": last,
    }  # fmt: skip
    if detection.voc:
        solver["WARMUP_ITERS"] = 100
    sides = range(480, 801, 32) if detection.voc else range(640, 801, 32)
    train = ["voc_2007_trainval", "voc_2012_trainval"] if detection.voc else ["coco_2017_train"]
    return {
        "MODEL": model,
        "INPUT": {"FORMAT": "RGB", "MIN_SIZE_TRAIN": [*sides], "MIN_SIZE_TEST": 800},
        "DATASETS": {"TRAIN": train, "TEST": ["voc_2007_test" if detection.voc else "coco_2017_val"]},
        "SOLVER": solver,
        "TEST": {"PRECISE_BN": {"ENABLED": True}},
        "VERSION": 2,
    }


def as_yaml(settings: dict[str, Any], indent: str = "") -> str:
    """Return nested dictionaries of numbers, texts and lists as YAML, a key a line."""
    lines = []
    for key, value in settings.items():
        if isinstance(value, dict):
            lines.append(f"{indent}{key}:\n{as_yaml(value, indent + '  ')}")
        else:
            lines.append(f"{indent}{key}: {_scalar(value)}\n")
    return "".join(lines)


def _scalar(value: Any) -> str:
    import json

    # JSON's lists, numbers, truth values and quoted texts are YAML's.
    return json.dumps(value, ensure_ascii=False)
