"""PASCAL VOC 2007 by linear SVMs on frozen features, as ORL and its forerunners have it: a classifier for each class, mean AP.

Shape letters: N images, D width of a feature, C classes.
"""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as TF

from univip_stream.augment import normalised
from univip_stream.errors import InputError
from univip_stream.evaluation.detection.data import DetectionSet, read_voc
from univip_stream.evaluation.detection.voc import area_under
from univip_stream.evaluation.layers import LayerFeatures, has_stages
from univip_stream.evaluation.subject import Subject
from univip_stream.extras import require
from univip_stream.failures import Failure
from univip_stream.images import BadImageError
from univip_stream.probe.crops import batches, require_readable
from univip_stream.probe.labelled import LabelledImage

COSTS = (1.0, 10.0, 100.0, *(0.5**power for power in range(4, 20)))
"""Costs that each class chooses from (ORL 2ad64f7, benchmarks/svm_tools: `costs` of eval_svm_full.sh, and `parse_cost_list`)."""
FOLDS = 3
"""Parts of the training images, each of which is once what a cost is chosen by."""

Presence = Literal[-1, 0, 1]
"""Of a class in an image: 1 there, 0 not there, -1 there only as difficult objects."""


def voc_svm(
    subject: Subject,
    devkit: Path,
    *,
    costs: Sequence[float] = COSTS,
    batch_size: int = 32,
    workers: int = 0,
    device: torch.device,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Judge by linear SVMs on VOC07: trained on `trainval`, mean AP over the classes on `test`.

    ORL's protocol (2ad64f7, benchmarks/dist_test_svm_pretrain.sh): images of 256 px, squeezed to a square of the subject's size;
    res5 pooled to 2 x 2, 8,192 features of a ResNet-50, divided by their length; for each class scikit-learn's LinearSVC with
    squared hinge, class weights 2 : 1, 2,000 iterations; its cost the best mean AP of three folds; AP is the area under the
    curve. Images whose objects of a class are all difficult train as negatives and are not judged. Different here: a network that
    is no ResNet gives its pooled output; a class with fewer than three images in either set is left out and named, where ORL
    would fail.

    Args:
        subject: network to judge.
        devkit: VOCdevkit with VOC2007.
        costs: costs that each class chooses from.
        batch_size: images per forward pass.
        workers: processes that read images, and that train.
        device: device of the network.
        say: called with lines for people.

    Returns:
        `mAP`, 0 to 1, AP and cost of each class, those left out, and what was done.

    Raises:
        InputError: lists or annotations are missing, an image cannot be read, or no class can be judged.
        ModuleNotFoundError: scikit-learn is not installed.

    """
    require("sklearn")
    sets = {part: read_voc(devkit, [("2007", part)]) for part in ("trainval", "test")}
    network: nn.Module = subject.backbone.eval()
    if has_stages(subject.backbone):
        network = LayerFeatures(subject.backbone, subject.size, subject.config.method.backbone)
    features, presence = {}, {}
    for part, known in sets.items():
        say(f"features of {len(known)} images of {known.name}")
        features[part] = _features(subject, network, known, batch_size, workers, device)
        presence[part] = _presence(known)
    names = [category["name"] for category in sets["test"].categories]
    enough = [
        at for at in range(len(names)) if all(_learnable(presence[part][:, at]) for part in ("trainval", "test"))
    ]  # fmt: skip
    if not enough:
        raise InputError(
            f"no class of {devkit} has {FOLDS} images with it and {FOLDS} without it in trainval and in test of 2007"
        )
    say(f"{len(enough) * len(costs)} classifiers on {features['trainval'].shape[1]} features")
    rows = []
    for at in enough:
        ap, cost = _judged(features, {part: of[:, at] for part, of in presence.items()}, costs, workers)
        rows.append({"class": names[at], "AP": ap, "cost": cost})
        say(f"{names[at]}: AP {ap:.3f} (cost {cost:g})")
    return {
        **subject.facts(),
        "protocol": "svm",
        "train": sets["trainval"].facts(),
        "val": sets["test"].facts(),
        "features": features["trainval"].shape[1],
        "costs": list(costs),
        "mAP": float(np.mean([row["AP"] for row in rows])),
        "classes": rows,
        "left_out": [name for at, name in enumerate(names) if at not in enough],
    }


class _Pictures:
    """The images of a detection set, as `batches` reads them."""

    def __init__(self, known: DetectionSet) -> None:
        self.known = known

    def __len__(self) -> int:
        return len(self.known)

    def __getitem__(self, number: int) -> LabelledImage:
        return LabelledImage(image=self.known.pixels(number), label=None, key=self.known.images[number]["file_name"])

    def failure(self, number: int, error: BadImageError) -> Failure:
        return Failure(self.known.images[number]["file_name"], error.status, str(error))


class Squeezed:
    """ORL's crop for SVMs: the short side to size * 256 / 224, then the whole image to a square of `size`, in two steps."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, image: np.ndarray, number: int) -> tuple[Tensor, Tensor]:
        tensor = torch.tensor(np.ascontiguousarray(image)).permute(2, 0, 1)
        for sides in ([round(self.size * 256 / 224)], [self.size, self.size]):
            tensor = TF.resize(tensor, sides, InterpolationMode.BILINEAR, antialias=True)
        return tensor, torch.empty(0)


@torch.inference_mode()
def _features(
    subject: Subject, network: nn.Module, known: DetectionSet, batch_size: int, workers: int, device: torch.device
) -> np.ndarray:
    """Return float32 N x D, each row of length 1."""
    network.to(device)
    pictures: Any = _Pictures(known)
    found = []
    for crops in require_readable(
        batches(pictures, np.arange(len(known)), Squeezed(subject.size), batch_size=batch_size, workers=workers)
    ):
        made = network(normalised(crops.images.to(device), subject.config.augment)).float()
        if isinstance(network, LayerFeatures):
            channels, places = network.shapes[-1]
            made = made[:, -channels * places :]  # res5 alone
        found.append(made.cpu().numpy())
    vectors_ND = np.concatenate(found)
    normal: np.ndarray = vectors_ND / (np.linalg.norm(vectors_ND, axis=1, keepdims=True) + 1e-5)
    return normal


def _presence(known: DetectionSet) -> np.ndarray:
    """Return int N x C, each a `Presence`."""
    found = np.zeros((len(known), len(known.categories)), int)
    for number, rows in enumerate(known.annotations):
        for row in sorted(rows, key=lambda row: not row.get("iscrowd")):  # difficult ones first, so that any other wins
            found[number, known.label_of[row["category_id"]]] = -1 if row.get("iscrowd") else 1
    return found


def _learnable(presence_N: np.ndarray) -> bool:
    there = int((presence_N == 1).sum())
    return there >= FOLDS and len(presence_N) - there >= FOLDS


def _judged(
    features: dict[str, np.ndarray], presence: dict[str, np.ndarray], costs: Sequence[float], workers: int
) -> tuple[float, float]:
    """Return AP on the test images and the cost that was chosen on the others."""
    from joblib import Parallel, delayed

    labels = np.where(presence["trainval"] == 1, 1, -1)
    jobs = (delayed(_cross_validated)(cost, features["trainval"], labels) for cost in costs)
    scores = Parallel(n_jobs=max(1, workers))(jobs)
    cost = costs[int(np.argmax(scores))]
    judged = presence["test"] != -1
    decisions = _trained(cost, features["trainval"], labels).decision_function(features["test"][judged])
    return _precision(presence["test"][judged] == 1, decisions), cost


def _classifier(cost: float) -> Any:
    from sklearn.svm import LinearSVC

    return LinearSVC(C=cost, class_weight={1: 2, -1: 1}, dual=True, tol=1e-4, max_iter=2000, random_state=0)


def _cross_validated(cost: float, vectors_ND: np.ndarray, labels_N: np.ndarray) -> float:
    from sklearn.model_selection import cross_val_score

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # large costs stop at 2,000 iterations, as ORL's do
        return float(cross_val_score(_classifier(cost), vectors_ND, labels_N, cv=FOLDS, scoring="average_precision").mean())


def _trained(cost: float, vectors_ND: np.ndarray, labels_N: np.ndarray) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _classifier(cost).fit(vectors_ND, labels_N)


def _precision(there_N: np.ndarray, decisions_N: np.ndarray) -> float:
    """Return the area under the curve of precision over recall, each precision the highest of its recall or a larger one."""
    right = there_N[np.argsort(-decisions_N, kind="stable")].cumsum()
    return area_under(right / there_N.sum(), right / np.arange(1, len(right) + 1))
