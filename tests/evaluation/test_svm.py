"""VOC07 by linear SVMs: ORL's costs, labels, features and AP."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from small_voc import voc07

from univip_stream.cli import cli
from univip_stream.errors import InputError
from univip_stream.evaluation import svm as module
from univip_stream.evaluation.detection.data import read_voc
from univip_stream.evaluation.subject import open_subject


@pytest.fixture(scope="module")
def devkit(tmp_path_factory):
    return voc07(tmp_path_factory.mktemp("voc"))


def test_the_costs_are_orls():
    """eval_svm_full.sh's 1, 10 and 100, and what parse_cost_list adds: one half to the powers 4 to 19."""
    assert (1.0, 10.0, 100.0, *(2.0**-power for power in range(4, 20))) == module.COSTS


def test_ap_is_the_curves_of_orls_helper():
    """svm_helper.py, get_precision_recall and calculate_ap, transcribed."""
    rng = np.random.default_rng(0)
    there, decisions = rng.random(40) < 0.3, rng.normal(size=40)
    order = np.argsort(decisions)[::-1]
    right = np.cumsum(there[order])
    precision, recall = right / (right + np.cumsum(~there[order])), right / there.sum()
    mrec, mpre = [0, *recall, 1], [0, *precision, 0]
    for at in range(len(mpre) - 2, -1, -1):
        mpre[at] = max(mpre[at], mpre[at + 1])
    expected = sum((mrec[at + 1] - mrec[at]) * mpre[at + 1] for at in range(len(mrec) - 1))
    assert module._precision(there, decisions) == pytest.approx(expected)


def test_images_with_difficult_objects_alone_are_negatives_and_not_judged(devkit):
    known = read_voc(devkit, [("2007", "test")])
    dog = known.label_of[next(row["id"] for row in known.categories if row["name"] == "dog")]
    found = module._presence(known)
    assert sorted(found[:, dog].tolist()) == [-1, 0, 0, 0, 0, 1, 1, 1, 1]
    # A difficult object beside another one of its class takes nothing away.
    known.annotations[0] = [{**row, "iscrowd": hard} for row in known.annotations[0] for hard in (0, 1)]
    assert module._presence(known)[0].tolist() == found[0].tolist()


def test_images_are_squeezed_in_two_steps():
    """ORL's pipeline: Resize(256), then Resize((224, 224)): all of the image is seen, its shape is not."""
    image = np.zeros((60, 120, 3), np.uint8)
    image[:, 60:] = 255
    crop, _ = module.Squeezed(56)(image, 0)
    assert crop.shape == (3, 56, 56)
    row = crop[0, 28].float()
    assert row[:26].max() < 10
    assert row[30:].min() > 245


def test_drawn_classes_are_told_apart_and_the_result_says_how(devkit, tmp_path):
    out = tmp_path / "svm.json"
    how = ["--cost", "1", "--cost", "10", "--image-size", "32", "--workers", "0", "--device", "cpu", "--out", str(out)]
    done = CliRunner().invoke(cli, ["eval", "svm", "--subject", "random:test_resnet", "--voc", str(devkit), *how])
    assert done.exit_code == 0, done.output
    result = json.loads(out.read_text())
    assert result["mAP"] > 0.9
    assert [row["class"] for row in result["classes"]] == ["cat", "dog"]
    assert len(result["left_out"]) == 18
    assert "left out, with too few images: aeroplane" in done.output
    assert result["protocol"] == "svm"
    subject = open_subject("random:test_resnet", image_size=32)
    assert result["features"] == 4 * subject.backbone.width  # res5 on 2 x 2 places


def test_features_are_res5s_of_length_one(devkit):
    subject = open_subject("random:test_resnet", image_size=32)
    network = module.LayerFeatures(subject.backbone.eval(), 32, "test_resnet")
    known = read_voc(devkit, [("2007", "test")])
    found = module._features(subject, network, known, 4, 0, torch.device("cpu"))
    assert found.shape == (9, network.shapes[-1][0] * 4)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-3)


def test_a_devkit_with_too_few_images_is_told(tmp_path):
    few = voc07(tmp_path, each=1)
    with pytest.raises(InputError, match=r"no class of .* has 3 images with it and 3 without it"):
        module.voc_svm(open_subject("random:test_resnet", image_size=32), few, device=torch.device("cpu"))
    (tmp_path / "VOC2007/ImageSets/Main/test.txt").unlink()
    with pytest.raises(InputError, match=r"there is trainval; expected .*test\.txt"):
        module.voc_svm(open_subject("random:test_resnet", image_size=32), few, device=torch.device("cpu"))
