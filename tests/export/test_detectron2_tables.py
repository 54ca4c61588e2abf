"""Detectron2's configuration of each table is the model zoo's, key by key, but for what pre-training wants."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from click.testing import CliRunner

from univip_stream.cli import cli
from univip_stream.errors import UsageError
from univip_stream.export.backbone import export_backbone
from univip_stream.export.detectron2 import SCHEDULES, TABLES
from univip_stream.methods import UniVIPConfig
from univip_stream.networks import build_backbone
from univip_stream.pretrain import PretrainConfig

COCO = {"DATASETS.TRAIN": ["coco_2017_train"], "DATASETS.TEST": ["coco_2017_val"]}
SIDES = {"INPUT.MIN_SIZE_TRAIN": [640, 672, 704, 736, 768, 800]}
ZOO = {
    # facebookresearch/detectron2 @ 02b5c4e, configs/COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml, Base-RCNN-FPN.yaml.
    "fpn": {
        "MODEL.META_ARCHITECTURE": "GeneralizedRCNN", "MODEL.MASK_ON": True, "MODEL.BACKBONE.NAME": "build_resnet_fpn_backbone",
        "MODEL.RESNETS.DEPTH": 50, "MODEL.RESNETS.OUT_FEATURES": ["res2", "res3", "res4", "res5"],
        "MODEL.FPN.IN_FEATURES": ["res2", "res3", "res4", "res5"],
        "MODEL.ANCHOR_GENERATOR.SIZES": [[32], [64], [128], [256], [512]],
        "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": [[0.5, 1.0, 2.0]], "MODEL.RPN.IN_FEATURES": ["p2", "p3", "p4", "p5", "p6"],
        "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 2000, "MODEL.RPN.PRE_NMS_TOPK_TEST": 1000, "MODEL.RPN.POST_NMS_TOPK_TRAIN": 1000,
        "MODEL.RPN.POST_NMS_TOPK_TEST": 1000, "MODEL.ROI_HEADS.NAME": "StandardROIHeads",
        "MODEL.ROI_HEADS.IN_FEATURES": ["p2", "p3", "p4", "p5"], "MODEL.ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead",
        "MODEL.ROI_BOX_HEAD.NUM_FC": 2, "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 7,
        "MODEL.ROI_MASK_HEAD.NAME": "MaskRCNNConvUpsampleHead", "MODEL.ROI_MASK_HEAD.NUM_CONV": 4,
        "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": 14, "SOLVER.IMS_PER_BATCH": 16, "SOLVER.BASE_LR": 0.02,
        "SOLVER.STEPS": [60000, 80000], "SOLVER.MAX_ITER": 90000, "VERSION": 2, **COCO, **SIDES,
    },
    # configs/COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x.yaml with its Base-RCNN-C4.yaml.
    "c4": {
        "MODEL.META_ARCHITECTURE": "GeneralizedRCNN", "MODEL.MASK_ON": True, "MODEL.RESNETS.DEPTH": 50,
        "MODEL.RPN.PRE_NMS_TOPK_TEST": 6000, "MODEL.RPN.POST_NMS_TOPK_TEST": 1000, "MODEL.ROI_HEADS.NAME": "Res5ROIHeads",
        "SOLVER.IMS_PER_BATCH": 16, "SOLVER.BASE_LR": 0.02, "SOLVER.STEPS": [60000, 80000], "SOLVER.MAX_ITER": 90000, "VERSION": 2,
        **COCO, **SIDES,
    },
    # configs/PascalVOC-Detection/faster_rcnn_R_50_C4.yaml with the same.
    "voc": {
        "MODEL.META_ARCHITECTURE": "GeneralizedRCNN", "MODEL.MASK_ON": False, "MODEL.RESNETS.DEPTH": 50,
        "MODEL.RPN.PRE_NMS_TOPK_TEST": 6000, "MODEL.RPN.POST_NMS_TOPK_TEST": 1000, "MODEL.ROI_HEADS.NAME": "Res5ROIHeads",
        "MODEL.ROI_HEADS.NUM_CLASSES": 20, "SOLVER.IMS_PER_BATCH": 16, "SOLVER.BASE_LR": 0.02, "SOLVER.STEPS": [12000, 16000],
        "SOLVER.MAX_ITER": 18000, "SOLVER.WARMUP_ITERS": 100, "VERSION": 2, "INPUT.MIN_SIZE_TEST": 800,
        "INPUT.MIN_SIZE_TRAIN": [480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800],
        "DATASETS.TRAIN": ["voc_2007_trainval", "voc_2012_trainval"], "DATASETS.TEST": ["voc_2007_test"],
    },
    # configs/COCO-Detection/retinanet_R_50_FPN_1x.yaml with its Base-RetinaNet.yaml.
    "retinanet": {
        "MODEL.META_ARCHITECTURE": "RetinaNet", "MODEL.BACKBONE.NAME": "build_retinanet_resnet_fpn_backbone",
        "MODEL.RESNETS.DEPTH": 50, "MODEL.RESNETS.OUT_FEATURES": ["res3", "res4", "res5"],
        "MODEL.ANCHOR_GENERATOR.SIZES": [[x, x * 2 ** (1 / 3), x * 2 ** (2 / 3)] for x in (32, 64, 128, 256, 512)],
        "MODEL.FPN.IN_FEATURES": ["res3", "res4", "res5"], "MODEL.RETINANET.IOU_THRESHOLDS": [0.4, 0.5],
        "MODEL.RETINANET.IOU_LABELS": [0, -1, 1], "MODEL.RETINANET.SMOOTH_L1_LOSS_BETA": 0.0, "SOLVER.IMS_PER_BATCH": 16,
        "SOLVER.BASE_LR": 0.01, "SOLVER.STEPS": [60000, 80000], "SOLVER.MAX_ITER": 90000, "VERSION": 2, **COCO, **SIDES,
    },
}  # fmt: skip
"""The zoo's files, all but MODEL.WEIGHTS."""
DEFAULTS = {
    "MODEL.MASK_ON": False, "MODEL.RESNETS.RES2_OUT_CHANNELS": 256, "INPUT.MIN_SIZE_TEST": 800,
}  # fmt: skip
"""detectron2/config/defaults.py, of keys that we say although the zoo's files leave them to it."""
TORCHVISION = {
    "MODEL.PIXEL_MEAN": pytest.approx([123.675, 116.28, 103.53]), "MODEL.PIXEL_STD": pytest.approx([58.395, 57.12, 57.375]),
    "MODEL.RESNETS.STRIDE_IN_1X1": False, "INPUT.FORMAT": "RGB",
}  # fmt: skip
TUNED = {"MODEL.BACKBONE.FREEZE_AT": 0, "MODEL.RESNETS.NORM": "SyncBN", "TEST.PRECISE_BN.ENABLED": True}
"""Of ORL's, MoCo's and DetCo's configurations, all of them."""
ORL = {
    "MODEL.FPN.NORM": "SyncBN", "MODEL.ROI_BOX_HEAD.NUM_CONV": 4, "MODEL.ROI_BOX_HEAD.NUM_FC": 1,
    "MODEL.ROI_BOX_HEAD.NORM": "SyncBN", "MODEL.ROI_MASK_HEAD.NORM": "SyncBN",
}  # fmt: skip
"""Jiahao000/ORL @ 2ad64f7, benchmarks/detection/configs/R_50_FPN_1x.yaml."""
MOCO = {"MODEL.ROI_HEADS.NAME": "Res5ROIHeadsExtraNorm"}
"""xieenze/DetCo @ adf4947, benchmarks/detection/configs/Base-RCNN-C4-BN.yaml, MoCo's."""
DIFFERENT = {
    (2, "1x"): ("fpn", ORL),
    (3, "2x"): ("fpn", ORL | {"SOLVER.STEPS": [120000, 160000], "SOLVER.MAX_ITER": 180000}),
    (4, "1x"): ("fpn", ORL),
    (5, "1x"): ("fpn", ORL),
    (5, "2x"): ("fpn", ORL | {"SOLVER.STEPS": [120000, 160000], "SOLVER.MAX_ITER": 180000}),
    (5, "6x"): ("fpn", ORL | {"SOLVER.STEPS": [480000, 520000], "SOLVER.MAX_ITER": 540000}),
    (10, "1x"): ("c4", MOCO),
    (11, "2x"): ("c4", MOCO | {"SOLVER.STEPS": [120000, 160000], "SOLVER.MAX_ITER": 180000}),
    (12, "24k"): ("voc", MOCO | {"SOLVER.STEPS": [18000, 22000], "SOLVER.MAX_ITER": 24000}),
    (13, "1x"): ("retinanet", {"MODEL.FPN.NORM": "SyncBN"}),
}
"""The zoo's file of each configuration, and what its source has instead."""


def flat(settings, above=""):
    found = {}
    for key, value in settings.items():
        found |= flat(value, f"{above}{key}.") if isinstance(value, dict) else {f"{above}{key}": value}
    return found


@pytest.fixture(scope="module")
def network():
    return build_backbone("resnet50"), PretrainConfig(method=UniVIPConfig(backbone="resnet50"))


def written_for(network, table, folder):
    """The YAML files of a table by schedule, and all files."""
    written = export_backbone(*network, "detectron2", folder / "weights.pkl", table=table)
    schedules = TABLES[table].schedules
    return dict(zip(schedules, [path for path in written.files if path.suffix == ".yaml"], strict=True)), written


@pytest.mark.slow
def test_every_configuration_is_the_zoos_but_for_what_its_source_has(network, tmp_path):
    seen = set()
    for table in TABLES:
        folder = tmp_path / str(table)
        folder.mkdir()
        for schedule, path in written_for(network, table, folder)[0].items():
            found = flat(yaml.safe_load(path.read_text()))
            assert found.pop("MODEL.WEIGHTS") == str(folder / "weights.pkl")
            zoo, instead = DIFFERENT[table, schedule]
            expected = DEFAULTS | ZOO[zoo] | TORCHVISION | TUNED | instead
            assert found == expected, (table, schedule)
            seen.add((table, schedule))
    assert seen == set(DIFFERENT)
    assert {schedule for _, schedule in seen} == set(SCHEDULES)


def test_the_tables_without_a_pyramid_bring_the_program_that_knows_their_head(network, tmp_path):
    _, written = written_for(network, 12, tmp_path)
    (program,) = [path for path in written.files if path.suffix == ".py"]
    assert str(program) in written.use
    names = {node.name for node in ast.parse(program.read_text()).body if isinstance(node, ast.ClassDef)}
    assert names == {"Res5ROIHeadsExtraNorm", "Trainer"}
    again = export_backbone(*network, "detectron2", tmp_path / "weights.pkl", table=12)  # it replaces its own
    assert again.files == written.files
    assert not any(path.suffix == ".py" for path in written_for(network, 2, tmp_path)[1].files)


def test_a_small_network_says_its_width(tmp_path):
    network = build_backbone("resnet18"), PretrainConfig(method=UniVIPConfig(backbone="resnet18"))
    (path,) = written_for(network, 13, tmp_path)[0].values()
    assert flat(yaml.safe_load(path.read_text()))["MODEL.RESNETS.RES2_OUT_CHANNELS"] == 64
    assert path.read_text().startswith("# RetinaNet R18-FPN, 1x")


def test_a_table_that_detectron2_does_not_make_is_told(network, tmp_path):
    with pytest.raises(UsageError, match="Detectron2 makes the tables 2, 3, 4, 5, 10, 11, 12, 13"):
        export_backbone(*network, "detectron2", tmp_path / "w.pkl", table=6)
    with pytest.raises(UsageError, match="--table is for --format detectron2"):
        export_backbone(*network, "timm", tmp_path / "new" / "w.pth", table=2)
    for format, table in (("timm", 2), ("huggingface", 3), ("detectron2", 7)):  # before weights are looked for
        done = CliRunner().invoke(cli, ["export", "backbone", "--subject", "torchvision:resnet18=nowhere.pth", "--format", format,
                                        "--table", str(table), "--out", str(tmp_path / "new" / "out.pkl")])  # fmt: skip
        assert done.exit_code == 2, done.output
        assert "--table" in done.output + done.stderr
    assert not (tmp_path / "new").exists()
    assert not list(tmp_path.iterdir())


def test_references_go_the_same_way(tmp_path):
    done = CliRunner().invoke(cli, ["export", "backbone", "--subject", "random:resnet18", "--format", "detectron2", "--table", "5",
                                    "--out", str(tmp_path / "rand.pkl"), "--json"])  # fmt: skip
    assert done.exit_code == 0, done.output
    names = sorted(Path(name).name for name in json.loads(done.stdout)["files"])
    assert names == ["rand-1x.yaml", "rand-2x.yaml", "rand-6x.yaml", "rand.pkl"]


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # Detectron2 uses what torch and Pillow have deprecated since
@pytest.mark.parametrize("table", [2, 10, 12, 13])
def test_detectron2_builds_it_and_finds_all_its_weights(table, network, tmp_path):
    """Where Detectron2 is installed (it has no wheels; it builds for CPUs from its source)."""
    pytest.importorskip("detectron2", reason="needs Detectron2, built from source")
    from detectron2.checkpoint import DetectionCheckpointer
    from detectron2.config import get_cfg
    from detectron2.modeling import build_model
    from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY

    class Checkpointer(DetectionCheckpointer):
        def _load_model(self, checkpoint):
            self.incompatible = super()._load_model(checkpoint)
            return self.incompatible

    configurations, written = written_for(network, table, tmp_path)
    for program in (path for path in written.files if path.suffix == ".py"):
        ROI_HEADS_REGISTRY._obj_map.pop("Res5ROIHeadsExtraNorm", None)  # of another case
        exec(compile(program.read_text(), str(program), "exec"), {"__name__": "program"})
    (path,) = configurations.values()
    cfg = get_cfg()
    cfg.merge_from_file(str(path))
    cfg.MODEL.DEVICE = "cpu"
    checkpointer = Checkpointer(build_model(cfg))
    checkpointer.load(cfg.MODEL.WEIGHTS)
    assert not [name for name in checkpointer.incompatible.missing_keys if OF_THE_RESNET.search(name)]
    # Only ImageNet's classifier has no place in a detector, and nothing else is left over.
    assert [name for name in checkpointer.incompatible.unexpected_keys if not name.startswith("stem.fc")] == []
    held = checkpointer.model.state_dict()
    arrived = [name for name in held if OF_THE_RESNET.search(name) and not name.endswith("num_batches_tracked")]
    ours = network[0].trunk.state_dict()
    assert len(arrived) == len([name for name in ours if not name.endswith("num_batches_tracked")])
    first = next(name for name in arrived if name.endswith("stem.conv1.weight"))
    assert held[first].equal(ours["conv1.weight"])


OF_THE_RESNET = re.compile(r"\b(stem|res[2-5])\.(?!norm\.)")
"""Names of what a ResNet brings; a normalisation behind res5 is the head's."""
ON_CPU = {
    "MODEL.DEVICE": "cpu", "MODEL.RESNETS.NORM": "BN", "MODEL.FPN.NORM": "BN", "MODEL.ROI_BOX_HEAD.NORM": "BN",
    "MODEL.ROI_MASK_HEAD.NORM": "BN", "SOLVER.MAX_ITER": "2", "SOLVER.STEPS": "(1,)", "SOLVER.IMS_PER_BATCH": "2",
    "SOLVER.BASE_LR": "0.0001", "INPUT.MIN_SIZE_TRAIN": "(64,)", "INPUT.MIN_SIZE_TEST": "64", "DATALOADER.NUM_WORKERS": "0",
    "TEST.PRECISE_BN.NUM_ITER": "2",
}  # fmt: skip
"""What two iterations on a CPU need otherwise: one process has no SyncBN."""


@pytest.mark.filterwarnings("default")  # Detectron2 uses what torch and Pillow have deprecated since
@pytest.mark.parametrize("table", [2, 10])
def test_detectron2_trains_and_scores_by_the_configuration(table, network, tmp_path):
    """With the program that we write for the tables without a pyramid: Detectron2's tools/train_net.py but for its head."""
    pytest.importorskip("detectron2", reason="needs Detectron2, built from source")
    from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES

    names = []
    rng = np.random.default_rng(0)
    for part in ("train2017", "val2017"):
        (tmp_path / "coco" / part).mkdir(parents=True)
        for number in range(4):
            names.append(f"{number:012d}.jpg")
            cv2.imwrite(str(tmp_path / "coco" / part / names[-1]), rng.integers(0, 255, (96, 128, 3), np.uint8))
    square = [20, 20, 80, 20, 80, 80, 20, 80]
    content = {
        "images": [{"id": at, "file_name": names[at], "width": 128, "height": 96} for at in range(4)],
        "annotations": [
            {"id": at + 1, "image_id": at, "category_id": 1, "bbox": [20, 20, 60, 60], "area": 3600, "iscrowd": 0,
             "segmentation": [square]} for at in range(4)
        ],
        "categories": [{"id": kind["id"], "name": kind["name"]} for kind in COCO_CATEGORIES if kind["isthing"]],
    }  # fmt: skip
    (tmp_path / "coco" / "annotations").mkdir()
    for part in ("train2017", "val2017"):
        (tmp_path / "coco" / "annotations" / f"instances_{part}.json").write_text(json.dumps(content))
    (tmp_path / "other").mkdir()
    (program,) = [path for path in written_for(network, 10, tmp_path / "other")[1].files if path.suffix == ".py"]
    (path,) = written_for(network, table, tmp_path)[0].values()
    more = [word for pair in ON_CPU.items() for word in pair]
    done = subprocess.run(
        [sys.executable, program, "--config-file", path, "--num-gpus", "0", *more, "OUTPUT_DIR", tmp_path / "run"],
        capture_output=True, text=True, cwd=tmp_path, env=os.environ | {"DETECTRON2_DATASETS": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.json").read_text().splitlines()]
    assert any("bbox/AP" in record for record in records)
    assert (tmp_path / "run" / "model_final.pth").exists()
