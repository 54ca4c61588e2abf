"""Each format is read by loops written from its repository's rules, and holds what the candidates of the shards give."""

import json
import math
import pickle
import tracemalloc

import cv2
import numpy as np
import pytest
from click.testing import CliRunner
from demo_images import draw_scene
from PIL import Image
from pycocotools.coco import COCO
from servers import BUCKET, s3_server
from shard_rows import all_rows, rows_of

from univip_stream import storage
from univip_stream.boxes import filter_boxes
from univip_stream.cli import cli
from univip_stream.mining import MiningConfig, mine
from univip_stream.mining.job import write_manifest
from univip_stream.mining.output import Output
from univip_stream.shards.format import StoredImage
from univip_stream.shards.manifest import MadeBy, make_manifest
from univip_stream.shards.write import write_shard

SIZES = [(200, 160)] * 6 + [(160, 200), (100, 80), (90, 140), (110, 300)]
"""Of the images: 0007 has no candidates, 0008 and 0009 none that SoCo's first filter leaves."""


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    """A folder of images with annotations in an order of their own, one of them unreadable."""
    folder = tmp_path_factory.mktemp("export") / "coco"
    (folder / "train2017").mkdir(parents=True)
    (folder / "annotations").mkdir()
    rng = np.random.default_rng(5)
    for at, (width, height) in enumerate(SIZES):
        scene = draw_scene("disc", rng, width, height)
        cv2.imwrite(str(folder / "train2017" / f"{at:04d}.jpg"), scene)
    (folder / "train2017" / "broken.jpg").write_text("words")
    images = [
        {"id": 100 - at, "file_name": f"{at:04d}.jpg", "width": width, "height": height}
        for at, (width, height) in enumerate(SIZES)
    ]
    images = [images[at] for at in rng.permutation(len(images))]
    images.insert(3, {"id": 7, "file_name": "broken.jpg", "width": 64, "height": 48})
    content = {"info": {"words": "images: ]}"}, "images": images, "annotations": [], "categories": []}
    (folder / "annotations" / "instances_train2017.json").write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="module")
def shards(coco, tmp_path_factory):
    out = tmp_path_factory.mktemp("shards") / "shards"
    mine(
        MiningConfig(
            sources=(coco / "train2017",), out=out, num_shards=3, proposals="many_boxes:many_boxes", inline=True,
            max_failures="1",
        )
    )  # fmt: skip
    return out


@pytest.fixture(scope="module")
def rows(shards):
    """What the indexes say of the samples, by file name."""
    found = [row for row in all_rows(shards) if row["size"] is not None]
    return {row["source"].removeprefix("train2017/"): row for row in found}


def run(*arguments):
    """The command's JSON result."""
    done = CliRunner().invoke(cli, [*map(str, arguments), "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def exported(shards, format, out, *more):
    return run("export", "boxes", shards, "--format", format, "--out", out, *more)


def overlap(a, b):
    """IoU of two x, y, w, h."""
    wide = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    high = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    both = max(wide, 0) * max(high, 0)
    return both / (a[2] * a[3] + b[2] * b[3] - both)


def test_orl_reads_a_list_of_boxes_for_each_image_of_the_annotations_in_their_order(coco, shards, rows, tmp_path):
    annotations = coco / "annotations" / "instances_train2017.json"
    told = exported(shards, "orl", tmp_path / "orl.json", "--annotations", annotations)
    bboxes = json.loads((tmp_path / "orl.json").read_text())["bbox"]
    images = json.loads(annotations.read_text())["images"]
    assert len(bboxes) == len(images) == told["images"]
    assert sorted(told["filled"]) == ["broken.jpg", "train2017/0007.jpg"]
    for image, boxes in zip(images, bboxes, strict=True):
        if image["file_name"] in ("broken.jpg", "0007.jpg"):
            assert boxes == [[0, 0, image["width"], image["height"]]]
        else:
            assert boxes == rows[image["file_name"]]["candidates"]


def test_orl_has_a_box_where_none_passes_the_filter_that_was_asked_for(coco, shards, rows, tmp_path):
    annotations = coco / "annotations" / "instances_train2017.json"
    exported(shards, "orl", tmp_path / "orl.json", "--annotations", annotations, "--min-scale", 5000)
    names = [image["file_name"] for image in json.loads(annotations.read_text())["images"]]
    boxes = dict(zip(names, json.loads((tmp_path / "orl.json").read_text())["bbox"], strict=True))
    assert boxes["0000.jpg"] == rows["0000.jpg"]["candidates"][:1]


def soco_rule(candidates, width, height, *, size=True, ratio=True):
    """SoCo's filter in a loop; its sides are the last pixel less the first."""
    kept = []
    for x, y, w, h in candidates:
        w, h = w - 1, h - 1
        if w < 32 or h < 32 or (ratio and not 1.0 / 3 <= w / h <= 3):
            continue
        if not size or 0.3 <= math.sqrt(w * h) / math.sqrt(width * height) <= 0.8:
            kept.append([x, y, w, h])
    return kept


def test_soco_finds_the_boxes_of_each_line_of_its_map_by_the_stem(shards, rows, tmp_path):
    exported(shards, "soco", tmp_path / "imagenet")
    boxes_of = json.loads((tmp_path / "imagenet" / "train_ratio3size0308post.json").read_text())
    lines = (tmp_path / "imagenet" / "train_map.txt").read_text().splitlines()
    paths = [line.split("\t")[0] for line in lines]
    assert paths == sorted(rows)
    assert all(int(line.split()[1]) == 0 for line in lines)  # no class
    for path in paths:
        row, boxes = rows[path], boxes_of[path.split("/")[-1].split(".")[0]]
        by_size = soco_rule(row["candidates"], row["width"], row["height"])
        by_ratio = soco_rule(row["candidates"], row["width"], row["height"], size=False)
        assert boxes == (by_size or by_ratio or soco_rule(row["candidates"], 1, 1, size=False, ratio=False))
    assert boxes_of["0000"]
    assert boxes_of["0007"] == []
    assert boxes_of["0008"], "no ratio fits, and the boxes of any ratio are taken"
    assert {tuple(box[2:]) for box in boxes_of["0009"]} == {(32, 32)}, "no size fits, and those of any size are taken"


def test_socos_coco_branch_finds_its_names_where_images_have_cocos_ids(shards, labelled_folder, tmp_path):
    """`prefix = 'trainunlabeled2017'`: prefix + "_map.txt", prefix + f"_{filter_strategy}.json"."""
    for _ in range(2):  # again into the same folder
        told = exported(shards, "soco", tmp_path / "coco")
        for name in ("map.txt", "ratio3size0308post.json"):
            both = [tmp_path / "coco" / f"{prefix}_{name}" for prefix in ("train", "trainunlabeled2017")]
            assert both[0].read_bytes() == both[1].read_bytes()
            assert {*map(str, both)} <= {*told["files"]}
    source = tmp_path / "own" / "star"
    source.mkdir(parents=True)
    (source / "a.jpg").symlink_to(next(labelled_folder.rglob("*.jpg")))
    mine(MiningConfig(sources=(tmp_path / "own",), out=tmp_path / "new", proposals="many_boxes:many_boxes", inline=True))
    exported(tmp_path / "new", "soco", tmp_path / "out")  # without ids
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["train_map.txt", "train_ratio3size0308post.json"]


def test_soco_numbers_the_classes_in_their_order(labelled_folder, tmp_path):
    mine(MiningConfig(sources=(labelled_folder,), out=tmp_path / "shards", proposals="many_boxes:many_boxes", inline=True))
    done = CliRunner().invoke(cli, ["export", "boxes", str(tmp_path / "shards"), "--format", "soco", "--out", str(tmp_path)])
    assert done.exit_code == 1  # disc/0.jpg and square/0.jpg
    assert "both '0' for soco" in done.output
    for shape in labelled_folder.iterdir():
        (tmp_path / "own" / shape.name).mkdir(parents=True)
        for image in shape.iterdir():
            (tmp_path / "own" / shape.name / f"{shape.name}_{image.name}").symlink_to(image)
    mine(MiningConfig(sources=(tmp_path / "own",), out=tmp_path / "new", proposals="many_boxes:many_boxes", inline=True))
    exported(tmp_path / "new", "soco", tmp_path / "out")
    classes = sorted(path.name for path in labelled_folder.iterdir())
    for line in (tmp_path / "out" / "train_map.txt").read_text().splitlines():
        path, label = line.split("\t")
        assert classes[int(label)] == path.split("/")[0]


def corners(boxes):
    return [[x, y, x + w, y + h] for x, y, w, h in boxes]


def test_detreg_finds_an_array_of_corners_for_each_file(shards, rows, tmp_path):
    exported(shards, "detreg", tmp_path / "cache")
    for path, row in rows.items():
        boxes = np.load(tmp_path / "cache" / (path.split("/")[-1].split(".")[0] + ".npy"))
        assert (boxes.dtype, boxes.shape[1]) == (np.float32, 4)
        assert boxes.tolist() == corners(row["candidates"])


def test_siamesedetr_finds_a_dictionary_below_the_same_folders_with_any_numpy(labelled_folder, tmp_path):
    mine(MiningConfig(sources=(labelled_folder,), out=tmp_path / "shards", proposals="many_boxes:many_boxes", inline=True))
    exported(tmp_path / "shards", "siamesedetr", tmp_path / "boxes", "--max-boxes", 7)
    table = rows_of(tmp_path / "shards" / "000.parquet")
    for row in table:
        path = row["source"].split("/", 1)[1]
        file = tmp_path / "boxes" / (path.split(".")[0] + ".npy")
        found = np.load(file, allow_pickle=True).tolist()
        assert found["box"].dtype == np.int64
        assert found["box"].tolist() == corners(row["candidates"][:7])
        assert found["score"].shape == (7, 1)
        assert found["box"].flags.writeable
        assert b"_core" not in file.read_bytes()  # numpy 1 has no such module
    assert len(table) == 24


def test_detectron2_takes_boxes_by_image_id_best_logit_first(shards, rows, tmp_path):
    exported(shards, "detectron2", tmp_path / "proposals.pkl")
    data = (tmp_path / "proposals.pkl").read_bytes()
    proposals = pickle.loads(data, encoding="latin1")
    assert b"_core" not in data
    assert proposals["bbox_mode"] == 0  # BoxMode.XYXY_ABS
    places = {str(image_id): at for at, image_id in enumerate(proposals["ids"])}
    for row in rows.values():
        at = places[str(row["image_id"])]
        order = proposals["objectness_logits"][at].argsort()[::-1]
        assert proposals["boxes"][at][order].tolist() == corners(row["candidates"])


def aligndet_rule(candidates, width, height):
    kept = []
    for box in candidates:
        w, h = box[2:]
        fits = w >= 32 and h >= 32 and w <= 3 * h and h <= 3 * w and math.sqrt(w * h) / math.sqrt(width * height) <= 0.8
        if fits and all(overlap(box, other) <= 0.5 for other in kept):
            kept.append(box)
    return kept


@pytest.mark.parametrize("format", ["aligndet", "coco"])
def test_pycocotools_reads_images_and_boxes_under_cocos_ids(format, shards, rows, tmp_path, capsys):
    told = exported(shards, format, tmp_path / "boxes.json")
    found = COCO(tmp_path / "boxes.json")
    assert {image["id"]: image["file_name"] for image in found.imgs.values()} == {
        row["image_id"]: path for path, row in rows.items()
    }
    assert found.loadCats(found.getCatIds(catNms=["selective_search"] if format == "aligndet" else ["object"]))
    for row in rows.values():
        image = found.imgs[row["image_id"]]
        assert (image["width"], image["height"]) == (row["width"], row["height"])
        boxes = [one["bbox"] for one in found.loadAnns(found.getAnnIds(imgIds=[row["image_id"]]))]
        rule = aligndet_rule(row["candidates"], row["width"], row["height"])
        assert boxes == (rule if format == "aligndet" else row["boxes"])
    whole = json.loads((tmp_path / "boxes.json").read_text())
    # pycocotools 2.0.9 and 2.0.10 copy these when they load results; without them they stop with a KeyError.
    assert (whole["licenses"], "univip-stream" in whole["info"]["description"]) == ([], True)
    result = [{"image_id": 100, "category_id": 1, "bbox": [0, 0, 9, 9], "score": 1.0}]
    assert found.loadRes(result).dataset["info"] == whole["info"]
    assert told["left_out"][0][0] == "train2017/broken.jpg"
    assert told["boxes"] == len(found.anns)


def test_another_filter_can_be_asked_for(shards, rows, tmp_path):
    exported(shards, "coco", tmp_path / "boxes.json", "--min-scale", 20, "--max-boxes", 5)
    found = json.loads((tmp_path / "boxes.json").read_text())["annotations"]
    for row in rows.values():
        boxes = [one["bbox"] for one in found if one["image_id"] == row["image_id"]]
        assert boxes == filter_boxes(row["candidates"], min_scale=20, max_boxes=5).tolist()


@pytest.mark.parametrize("orientation", [2, 5, 6, 8])
def test_boxes_are_in_the_frame_that_a_reader_sees(orientation, tmp_path):
    """A file that its EXIF turns: PIL shows it as stored, mmcv and Detectron2 turn it."""
    (tmp_path / "photos").mkdir()
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(draw_scene("disc", np.random.default_rng(1), 120, 90))
    stored.save(tmp_path / "photos" / "a.jpg", exif=exif, quality=100)
    shards = tmp_path / "shards"
    mine(MiningConfig(sources=(tmp_path / "photos",), out=shards, proposals="many_boxes:many_boxes", inline=True))
    [row] = rows_of(shards / "000.parquet")
    upright = cv2.imread(str(tmp_path / "photos" / "a.jpg"))[..., ::-1]  # turned
    exported(shards, "detreg", tmp_path / "detreg")
    exported(shards, "detectron2", tmp_path / "d2.pkl")
    as_stored = np.asarray(Image.open(tmp_path / "photos" / "a.jpg"))
    turned = pickle.loads((tmp_path / "d2.pkl").read_bytes())["boxes"][0]
    assert turned.tolist() == corners(row["candidates"])
    for box, other in zip(turned.astype(int), np.load(tmp_path / "detreg" / "a.npy").astype(int), strict=True):
        seen, same = (image[b[1] : b[3], b[0] : b[2]] for image, b in ((upright, box), (as_stored, other)))
        assert seen.size == same.size
        assert abs(seen.mean() - same.mean()) < 0.1  # the same pixels, laid otherwise


@pytest.mark.parametrize("orientation", [3, 6])
def test_cocos_json_is_of_the_upright_picture_or_of_the_stored_pixels_and_both_come_back(orientation, tmp_path):
    (tmp_path / "photos").mkdir()
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = Image.fromarray(draw_scene("disc", np.random.default_rng(1), 240, 180))
    picture.save(tmp_path / "photos" / "a.jpg", exif=exif, quality=100)
    mine(MiningConfig(sources=(tmp_path / "photos",), out=tmp_path / "s", proposals="many_boxes:many_boxes", inline=True))
    [row] = rows_of(tmp_path / "s" / "000.parquet")
    found = {}
    for frame in ("upright", "stored"):
        file = tmp_path / f"{frame}.json"
        exported(tmp_path / "s", "coco", file, "--box-frame", frame)
        found[frame] = json.loads(file.read_text())
        size = (row["width"], row["height"]) if frame == "upright" else (240, 180)
        assert (found[frame]["images"][0]["width"], found[frame]["images"][0]["height"]) == size
        back = ["import", "boxes", file, "--format", "coco", "--src", tmp_path / "photos", "--inline", "--max-iou", 1,
                "--max-aspect", 99, "--min-scale", 1]  # fmt: skip
        told = run(*back, "--box-frame", frame, "--out", tmp_path / frame)
        assert "notes" not in told
        [again] = rows_of(tmp_path / frame / "000.parquet")
        assert again["candidates"] == row["boxes"]
        parameters = json.loads((tmp_path / frame / "manifest.json").read_text())["parameters"]
        assert parameters.get("box_frame") == ("upright" if frame == "upright" else None)
    assert [one["bbox"] for one in found["upright"]["annotations"]] == row["boxes"]
    assert found["stored"]["annotations"] != found["upright"]["annotations"]
    exported(tmp_path / "s", "coco", tmp_path / "default.json")
    assert json.loads((tmp_path / "default.json").read_text()) == found["upright"]
    if orientation == 6:
        told = run(*back, "--box-frame", "upright", "--out", tmp_path / "contrary")  # of stored.json
        assert "has the width and height of the stored picture" in told["notes"][0]
    done = CliRunner().invoke(
        cli,
        [
            "export",
            "boxes",
            str(tmp_path / "s"),
            "--format",
            "orl",
            "--out",
            "x",
            "--annotations",
            "x",
            "--box-frame",
            "stored",
        ],
    )
    assert (done.exit_code, "for coco" in done.output) == (2, True)


def test_shards_in_an_object_store_give_the_same_bytes(shards, tmp_path):
    exported(shards, "coco", tmp_path / "local.json")
    with s3_server():
        for path in shards.iterdir():
            storage.copy_out(path, f"s3://{BUCKET}/shards/{path.name}")
        exported(f"s3://{BUCKET}/shards", "coco", tmp_path / "remote.json")
    assert (tmp_path / "remote.json").read_bytes() == (tmp_path / "local.json").read_bytes()


def test_an_index_that_was_changed_is_not_exported(shards, tmp_path):
    copy = tmp_path / "shards"
    copy.mkdir()
    for path in shards.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    (copy / "001.parquet").write_bytes((shards / "002.parquet").read_bytes())
    (tmp_path / "boxes.json").write_text("what stood there")
    done = CliRunner().invoke(cli, ["export", "boxes", str(copy), "--format", "coco", "--out", str(tmp_path / "boxes.json")])
    assert done.exit_code == 1
    assert "001.parquet is not the index that its manifest names" in done.output
    assert (tmp_path / "boxes.json").read_text() == "what stood there"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["boxes.json", "shards"]


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """A set of three thousand images that are a few bytes each, in two shards: what grows with the number of images shows."""
    folder = tmp_path_factory.mktemp("many")
    entries = []
    for shard in range(2):
        samples = (
            StoredImage(
                key=f"{number:09d}", source=f"many/folder/{number:040d}.jpg", status="ok", width=320, height=240, data=b"image",
                suffix="jpg", sha256="0" * 64, proposals="naive", boxes=np.array([[1, 2, 90, 80]]),
                candidates=np.array([[1, 2, 90, 80]]),
            )
            for number in range(1500 * shard, 1500 * (shard + 1))
        )  # fmt: skip
        entries.append(write_shard(samples, folder / f"{shard:03d}.tar", "many"))
    made_by = MadeBy(parameters={"sources": ["many"], "proposals": "naive"}, fingerprint="many")
    write_manifest(Output(folder), make_manifest(entries, made_by))
    return folder


@pytest.mark.parametrize("format", ["coco", "soco", "detectron2"])
@pytest.mark.slow
def test_no_image_is_held_while_its_boxes_are_written(format, many, tmp_path):
    """Peak of Python's memory: 0.3 MB; it was 1.3 MB when the facts of all images were held."""
    tracemalloc.start()
    try:
        done = CliRunner().invoke(
            cli, ["export", "boxes", str(many), "--format", format, "--out", str(tmp_path / "out"), "-q"]
        )
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert done.exit_code == 0, done.output
    assert "boxes of 3,000 images: 3000 in" in done.stdout
    assert peak < 700_000
