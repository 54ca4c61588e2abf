"""COCO: image ids and ground-truth boxes out of its annotation files."""

import io
import json
import shutil

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from mined import column, mined
from PIL import Image, ImageOps

from univip_stream.boxes import BoxFilter
from univip_stream.cli import cli
from univip_stream.errors import InputError, UsageError
from univip_stream.mining import RefilterConfig, refilter
from univip_stream.sources import list_sources


def annotate(path, images, annotations=(), size=(320, 240)):
    """An instances file; annotations are (image id, bbox, iscrowd)."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({
        "info": {}, "licenses": [{"id": 1, "name": "any"}], "categories": [{"id": 1, "name": "thing"}],
        "images": [{"file_name": name, "id": number, "width": size[0], "height": size[1]} for name, number in images],
        "annotations": [
            {"id": n, "image_id": image, "bbox": box, "iscrowd": crowd, "segmentation": {"counts": [1, 2], "size": [3, 4]}}
            for n, (image, box, crowd) in enumerate(annotations)
        ],
    }))  # fmt: skip
    return path


@pytest.fixture
def coco(drawn_folder, tmp_path):
    """COCO in small: scene05 is not named, z-gone and a-gone are not there."""
    folder = tmp_path / "coco" / "train2017"
    shutil.copytree(drawn_folder, folder)
    names = [(path.name, 100 + n) for n, path in enumerate(sorted(folder.iterdir())) if n != 5]
    names += [("z-gone.jpg", 900), ("a-gone.jpg", 901)]
    annotate(tmp_path / "coco" / "annotations" / "instances_train2017.json", names, [
        (101, [10.4, 20.6, 100.2, 90.9], 0), (100, [200.5, 100.25, 130.0, 150.0], 0), (101, [0, 0, 320, 240], 1),
        (101, [5, 5, 70, 70], 0), (100, [-3.0, 1.0, 80.0, 80.0], 0), (102, [400, 10, 70, 70], 0), (100, [10, 10, 5, 5], 0),
    ])  # fmt: skip
    return folder


def test_image_ids_are_kept_and_what_is_missing_is_a_row(coco, tmp_path):
    rows, _ = mined(tmp_path / "out", coco)
    present = [(f"train2017/scene{n:02d}.jpg", None if n == 5 else 100 + n, "no_boxes") for n in range(12)]
    assert column(rows, "source", "image_id", "status") == [
        ("train2017/a-gone.jpg", 901, "unreadable"), *present, ("train2017/z-gone.jpg", 900, "unreadable")
    ]  # fmt: skip
    assert rows[0]["reason"] == "instances_train2017.json names it, and it is not there"
    # Put back, the missing one is mined alone: nothing else has moved.
    shutil.copy(coco / "scene00.jpg", coco / "a-gone.jpg")
    again, report = mined(tmp_path / "out", coco, retry_failed=True)
    assert report.manifest.totals["unreadable"] == 1
    assert column(again, "key", "source", "image_id") == column(rows, "key", "source", "image_id")


def test_ground_truth_boxes_are_the_candidates_and_the_filter_applies(coco, tmp_path):
    rows, _ = mined(tmp_path / "out", coco, proposals="ground-truth")
    found = {row["image_id"]: (row["candidates"], row["boxes"]) for row in rows if row["data"]}
    # Rounded outwards, clipped to 320 x 240, in the file's order, without the crowd and what lies outside.
    assert found[101] == ([[10, 20, 101, 92], [5, 5, 70, 70]], [[10, 20, 101, 92], [5, 5, 70, 70]])
    assert found[100] == ([[200, 100, 120, 140], [0, 1, 77, 80], [10, 10, 5, 5]], [[200, 100, 120, 140], [0, 1, 77, 80]])
    assert found[102] == ([], [])
    assert found[None] == ([], [])
    refilter(RefilterConfig(shards=tmp_path / "out", out=tmp_path / "new", inline=True, min_scale=5))
    again, _ = mined(tmp_path / "again", coco, proposals="ground-truth", filter=BoxFilter(min_scale=5))
    for name in ("000.tar", "001.tar"):
        assert (tmp_path / "new" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    assert [row["boxes"] for row in again if row["image_id"] == 100] == [found[100][0]]
    assert json.loads(again[1]["json"])["image_id"] == 100


@pytest.mark.parametrize("frame", ["upright", "stored"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_of_either_frame_lie_on_an_image_that_is_stored_turned(orientation, frame, tmp_path):
    """A white box on black, found again by its pixels in the upright image of the shard."""
    folder = tmp_path / "val"
    folder.mkdir()
    picture = Image.new("RGB", (320, 240))
    picture.paste("white", (40, 80, 168, 176))
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture.save(folder / "turned.jpg", exif=exif, quality=95)
    seen = picture if frame == "stored" else ImageOps.exif_transpose(Image.open(folder / "turned.jpg"))
    left, top, right, bottom = seen.convert("L").point(lambda value: 255 * (value > 127)).getbbox()
    box = [left, top, right - left, bottom - top]
    annotate(tmp_path / "annotations" / "instances_val.json", [("turned.jpg", 1)], [(1, box, 0)], seen.size)
    rows, report = mined(tmp_path / "out", folder, proposals="ground-truth", num_shards=1, box_frame=frame)
    assert report.notes == []
    upright = Image.open(io.BytesIO(rows[0]["data"])).convert("L").point(lambda value: 255 * (value > 127))
    left, top, right, bottom = upright.getbbox()
    assert rows[0]["boxes"] == [[left, top, right - left, bottom - top]]


def test_ground_truth_without_annotations_is_an_error_and_a_file_can_be_given(coco, tmp_path):
    runner = CliRunner()
    elsewhere = tmp_path / "elsewhere.json"
    shutil.move(coco.parent / "annotations" / "instances_train2017.json", elsewhere)
    arguments = ["mine", "--src", str(coco), "--out", str(tmp_path / "out"), "--inline", "--proposals", "ground-truth"]
    done = runner.invoke(cli, arguments)
    assert done.exit_code == 1
    assert "has no annotations" in done.output
    done = runner.invoke(cli, [*arguments, "--annotations", str(elsewhere), "--max-failures", "2", "--min-scale", "60"])
    assert done.exit_code == 0, done.output
    assert pq.read_table(tmp_path / "out" / "000.parquet").column("image_id").to_pylist().count(None) == 1


def test_several_annotation_files_belong_to_the_folders_they_name(coco, drawn_folder, tmp_path):
    other = tmp_path / "unlabeled2017"
    shutil.copytree(drawn_folder, other)
    info = annotate(tmp_path / "image_info_unlabeled2017.json", [("scene00.jpg", 7)])
    with list_sources([coco, other], annotations=[info]) as listing:
        ids = [image.image_id for image in listing]
    assert (ids[14], ids[15:]) == (7, [None] * 11)
    (tmp_path / "some.txt").write_text(str(drawn_folder / "scene00.jpg"))
    with pytest.raises(UsageError, match="not a folder of images"):
        list_sources([tmp_path / "some.txt"], annotations=[info])
    with pytest.raises(UsageError, match="does not belong to exactly one"):
        list_sources([coco, other], annotations=[annotate(tmp_path / "all.json", [("scene00.jpg", 7)])])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is not a COCO annotation file"),
        ("[1, 2]", "expected JSON with `images`"),
        ('{"images": [{"file_name": "../up.jpg", "id": 1}]}', "leads outside its folder"),
        ('{"images": [{"file_name": "a.jpg", "id": "x"}]}', "the id 'x'; expected a whole number"),
        ('{"images": [{"file_name": "other.jpg", "id": 1}]}', "none of them is in"),
        (
            '{"images": [{"file_name": "scene00.jpg", "id": 1}], "annotations": [{"image_id": 1, "bbox": [NaN, 1, 2, 3]}]}',
            "expected four numbers",
        ),
        ('{"images": [{"file_name": "scene00.jpg", "id": 1}]}', "has no `annotations`"),
    ],
)
def test_a_wrong_annotation_file_is_said(text, words, drawn_folder, tmp_path):
    (tmp_path / "wrong.json").write_text(text)
    with pytest.raises(InputError, match=words):
        list_sources([drawn_folder], annotations=[tmp_path / "wrong.json"], with_boxes="NaN" in text or "has no" in words)
