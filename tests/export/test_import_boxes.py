"""Published boxes become shards without mining: what was exported comes back, and what does not match is named."""

import json
import os
import pickle
import unicodedata

import numpy as np
import pytest
from click.testing import CliRunner
from demo_images import draw_scene
from PIL import Image
from shard_rows import all_rows

from univip_stream.cli import cli
from univip_stream.formats.registry import FORMATS
from univip_stream.mining import MiningConfig, mine
from univip_stream.shards.verify import verify_folder
from univip_stream.sources import jsonstream
from univip_stream.sources.jsonstream import JsonStream

FILES = {"soco": "train_ratio3size0308post.json"}


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    """Eight photographs under COCO's names, one that EXIF turns, with annotations in an order of their own."""
    folder = tmp_path_factory.mktemp("import") / "coco"
    (folder / "train2017").mkdir(parents=True)
    (folder / "annotations").mkdir()
    rng = np.random.default_rng(9)
    exif = Image.Exif()
    exif[0x0112] = 6
    for at in range(8):
        picture = Image.fromarray(draw_scene("star", rng, 200, 160))
        picture.save(folder / "train2017" / f"{at:04d}.jpg", exif=exif if at == 3 else Image.Exif())
    images = [{"id": 50 + at, "file_name": f"{at:04d}.jpg", "width": 200, "height": 160} for at in (5, 2, 7, 0, 1, 3, 6, 4)]
    (folder / "annotations" / "instances_train2017.json").write_text(json.dumps({"images": images}))
    return folder


@pytest.fixture(scope="module")
def shards(coco, tmp_path_factory):
    out = tmp_path_factory.mktemp("shards") / "shards"
    mine(MiningConfig(sources=(coco / "train2017",), out=out, num_shards=2, proposals="many_boxes:many_boxes", inline=True))
    return out


def rows(folder):
    return all_rows(folder)


def called(*arguments):
    return CliRunner().invoke(cli, [*map(str, arguments)], catch_exceptions=False)


def imported(file, format, source, out, *more):
    done = called("import", "boxes", file, "--format", format, "--src", source, "--out", out, "--inline", "--json", *more)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


@pytest.mark.parametrize("format", FORMATS)
def test_what_was_exported_comes_back(format, coco, shards, tmp_path):
    annotations = ["--annotations", coco / "annotations" / "instances_train2017.json"] if format == "orl" else []
    assert called("export", "boxes", shards, "--format", format, "--out", tmp_path / "to", *annotations).exit_code == 0
    file = tmp_path / "to" / FILES[format] if format in FILES else tmp_path / "to"
    told = imported(file, format, coco / "train2017", tmp_path / "back", "--num-shards", 3)
    assert (told["entries"], told["images_without_entry"], told["entries_without_image"]) == (8, [], [])
    assert verify_folder(tmp_path / "back") == []
    before, after = rows(shards), rows(tmp_path / "back")
    same = ("source", "label", "image_id", "width", "height", "sha256", "converted")
    assert [[row[name] for name in same] for row in before] == [[row[name] for name in same] for row in after]
    if format in ("orl", "detreg", "siamesedetr", "detectron2"):  # the others filter when they are written
        assert [(row["candidates"], row["boxes"]) for row in before] == [(row["candidates"], row["boxes"]) for row in after]
    else:
        again = tmp_path / "again"
        assert called("export", "boxes", tmp_path / "back", "--format", format, "--out", again).exit_code == 0
        second = again / FILES[format] if format in FILES else again
        assert second.read_bytes() == file.read_bytes()
        assert any(row["candidates"] for row in after)


def test_an_import_goes_on_where_it_stopped_to_the_same_bytes(coco, shards, tmp_path):
    called("export", "boxes", shards, "--format", "detreg", "--out", tmp_path / "to")
    arguments = (tmp_path / "to", "detreg", coco / "train2017", tmp_path / "back", "--num-shards", 3)
    imported(*arguments)
    whole = {path.name: path.read_bytes() for path in (tmp_path / "back").iterdir()}
    for name in ("manifest.json", "001.tar", "001.parquet"):
        (tmp_path / "back" / name).unlink()
    imported(*arguments)
    assert {path.name: path.read_bytes() for path in (tmp_path / "back").iterdir()} == whole
    np.save(tmp_path / "to" / "0000.npy", np.ones((1, 4), np.float32))
    done = called("import", "boxes", tmp_path / "to", "--format", "detreg", "--src", coco / "train2017", "--out",
                  tmp_path / "back", "--inline", "--num-shards", 3)  # fmt: skip
    assert done.exit_code == 1
    assert "imported" in done.output  # other boxes are another job


def test_what_does_not_match_is_counted_and_named(coco, tmp_path):
    boxes = {f"{at:04d}": [[10, 10, 99, 79]] for at in range(6)} | {"0042": [[0, 0, 50, 50]]}
    (tmp_path / "soco.json").write_text(json.dumps(boxes))
    told = imported(tmp_path / "soco.json", "soco", coco / "train2017", tmp_path / "out")
    assert told["images_without_entry"] == ["train2017/0006.jpg", "train2017/0007.jpg"]
    assert told["entries_without_image"] == ["0042"]
    assert (told["ok"], told["no_boxes"]) == (6, 2)
    found = {row["source"]: row for row in rows(tmp_path / "out")}
    assert found["train2017/0006.jpg"]["reason"] == "the file of boxes has no entry for it"
    assert found["train2017/0000.jpg"]["candidates"] == [[10, 10, 100, 80]]
    facts = json.loads((tmp_path / "out" / "manifest.json").read_text())["imported"]
    assert facts == {"entries": 7, "images_without_entry": 2, "entries_without_image": 1, "such_as": ["0042"]}


def test_cocos_list_of_results_is_ranked_by_its_scores(coco, tmp_path):
    """By image id, of any category, the best first; of equal scores the earlier."""
    results = [
        {"image_id": 50, "category_id": 1, "bbox": [1, 2, 90, 80], "score": 0.2},
        {"image_id": 51, "category_id": 2, "bbox": [0, 0, 70, 70], "score": 0.5},
        {"image_id": 50.0, "category_id": 2, "bbox": [3.5, 4, 100, 90.25], "score": 0.9},
        {"image_id": 50, "category_id": 1, "bbox": [5, 6, 80, 80], "score": 0.2},
        {"image_id": 52, "category_id": 1, "segmentation": {"size": [160, 200], "counts": "x"}, "score": 0.7},
        {"image_id": 4711, "category_id": 1, "bbox": [0, 0, 70, 70], "score": 1},
    ]
    (tmp_path / "results.json").write_text("\n " + json.dumps(results))
    told = imported(tmp_path / "results.json", "coco", coco / "train2017", tmp_path / "out")
    found = {row["image_id"]: row["candidates"] for row in rows(tmp_path / "out")}
    assert found[50] == [[3, 4, 101, 91], [1, 2, 90, 80], [5, 6, 80, 80]]
    assert found[51] == [[0, 0, 70, 70]]
    assert told["entries_without_image"] == ["4711"]
    assert len(told["images_without_entry"]) == 6
    assert told["notes"] == ["1 object of the annotations left out: without a bbox"]
    # Elsewhere the file that says the ids can be given; without one, nothing tells whose boxes these are.
    (tmp_path / "photos").mkdir()
    for path in (coco / "train2017").iterdir():
        (tmp_path / "photos" / path.name).write_bytes(path.read_bytes())
    arguments = (tmp_path / "results.json", "--format", "coco", "--src", tmp_path / "photos", "--inline", "--out",
                 tmp_path / "o")  # fmt: skip
    done = called("import", "boxes", *arguments)
    assert (done.exit_code, "names images by COCO's ids" in done.output) == (1, True)
    ids = coco / "annotations" / "instances_train2017.json"
    assert called("import", "boxes", *arguments, "--annotations", ids).exit_code == 0
    assert {row["image_id"]: row["candidates"] for row in rows(tmp_path / "o")} == found


def test_accents_match_in_either_unicode_form(tmp_path):
    (tmp_path / "photos").mkdir()
    Image.fromarray(draw_scene("disc", np.random.default_rng(1), 80, 80)).save(
        tmp_path / "photos" / unicodedata.normalize("NFD", "café.jpg")
    )
    (tmp_path / "soco.json").write_text(json.dumps({unicodedata.normalize("NFC", "café"): [[0, 0, 69, 69]]}))
    told = imported(tmp_path / "soco.json", "soco", tmp_path / "photos", tmp_path / "out")
    assert (told["ok"], told["images_without_entry"], told["entries_without_image"]) == (1, [], [])


def test_orls_only_box_may_be_flattened(coco, tmp_path):
    boxes = [[[at, at, 100, 100], [0, 0, 70, 70]] for at in range(8)]
    boxes[2] = [5, 6, 90, 80]
    (tmp_path / "orl.json").write_text(json.dumps({"bbox": boxes}))
    imported(tmp_path / "orl.json", "orl", coco / "train2017", tmp_path / "out")  # ../annotations says the order
    found = {row["source"]: row["candidates"] for row in rows(tmp_path / "out")}
    assert found["train2017/0007.jpg"] == [[5, 6, 90, 80]]  # the third that the annotations list
    assert found["train2017/0005.jpg"] == boxes[0]


class Harmful:
    def __reduce__(self):
        return os.mkdir, ("harm",)


@pytest.mark.parametrize("format", ["detectron2", "siamesedetr"])
def test_a_pickle_that_asks_for_more_than_arrays_is_refused_and_does_nothing(format, coco, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "boxes").mkdir()
    if format == "detectron2":
        file = tmp_path / "boxes" / "x.pkl"
        file.write_bytes(pickle.dumps({"ids": [1], "boxes": [Harmful()], "objectness_logits": [0]}))
    else:
        file = tmp_path / "boxes"
        np.save(file / "0000.npy", {"box": Harmful()}, allow_pickle=True)
    done = called("import", "boxes", file, "--format", format, "--src", coco / "train2017", "--out", tmp_path / "out")
    assert done.exit_code == 1
    assert "asks for posix.mkdir" in done.output
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_proposals_of_any_pickle_protocol_in_detectrons_own_names(protocol, coco, tmp_path):
    boxes = [np.array([[0, 0, 80, 80], [10.5, 20, 99.25, 100]], np.float32), np.asfortranarray(np.ones((1, 4), ">f8"))]
    fields = {"indexes": [np.int64(50), "51"], "boxes": boxes, "scores": [np.array([0.1, 0.9]), np.array([1.0])]}
    (tmp_path / "p.pkl").write_bytes(pickle.dumps(fields, protocol=protocol))
    told = imported(tmp_path / "p.pkl", "detectron2", coco / "train2017", tmp_path / "out")
    assert len(told["images_without_entry"]) == 6
    assert rows(tmp_path / "out")[0]["candidates"] == [[10, 20, 90, 80], [0, 0, 80, 80]]  # the better one first


WRONG = {
    "no annotations": ("orl", '{"bbox": []}', "names no images"),
    "other annotations": ("orl", '{"bbox": [[[0, 0, 1, 1]]]}', "has boxes of 1 images and"),
    "coco as orl": ("orl", '{"images": []}', "has no list `bbox`"),
    "cut off": ("soco", '{"0000": [[1, 2, 3', "is not usable JSON"),
    "orl as soco": ("soco", '{"bbox": [[[0, 0, 9, 9]]]}', "has boxes of shape (1, 1, 4)"),
    "other images": ("soco", '{"n01440764_18": [[0, 0, 9, 9]]}', "none for the 8 images"),
    "twice": ("soco", '{"0000": [], "0000": []}', "has two entries '0000'"),
    "words": ("soco", '{"0000": [["a", 2, 3, 4]]}', "holds no boxes"),
    "no text": ("soco", '{"\\ud800": []}', "which is not text"),
    "no number": ("soco", '{"0000": [[1, 2, 3, NaN]]}', "expected N x 4 numbers"),
    "json as pickle": ("detectron2", "{}", "is not a readable pickle"),
    "file for a folder": ("detreg", "{}", "is not a folder"),
    "results without scores": ("coco", '[{"image_id": 50, "bbox": [0, 0, 9, 9]}]', "has image_id 50 and score None"),
    "results of words": ("coco", '["a"]', "expected a list of results"),
    "results of three": ("coco", '[{"image_id": 50, "bbox": [0, 0, 9], "score": 1}]', "expected four numbers"),
    "no result": ("coco", "[]", "has no entry"),
    "soco as coco": ("coco", '{"0000": [[0, 0, 9, 9]]}', "is not a COCO annotation file"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_imported_is_said_in_words(case, coco, tmp_path):
    format, text, said = WRONG[case]
    (tmp_path / "file").write_text(text)
    source = coco / "train2017"
    if case == "no annotations":
        source = tmp_path / "photos"
        source.mkdir()
    done = called("import", "boxes", tmp_path / "file", "--format", format, "--src", source, "--out", tmp_path / "out")
    assert done.exit_code in (1, 2)
    assert said in done.output
    assert not (tmp_path / "out").exists()


def test_fields_of_another_kind_in_a_pickle_are_said_in_words(coco, tmp_path):
    for fields in ([1], {"ids": 3}, {"ids": [1], "boxes": [[]], "objectness_logits": ["x"]}, {"ids": [], "boxes": [1]},
                   {"ids": [1], "boxes": [np.zeros((2, 4))], "objectness_logits": [[1.0]]},
                   {"ids": [1], "boxes": [np.array([[None] * 4])], "objectness_logits": [[1.0]]}):  # fmt: skip
        (tmp_path / "p.pkl").write_bytes(pickle.dumps(fields))
        done = called("import", "boxes", tmp_path / "p.pkl", "--format", "detectron2", "--src", coco / "train2017", "--out",
                      tmp_path / "out")  # fmt: skip
        assert done.exit_code == 1
        assert done.output.startswith(f"error: {tmp_path / 'p.pkl'}"), done.output


def test_coco_plus_is_two_folders_and_two_annotation_files_in_orls_order(coco, tmp_path):
    more = tmp_path / "unlabeled2017"
    more.mkdir()
    for at in range(3):
        Image.fromarray(draw_scene("ring", np.random.default_rng(at), 150, 120)).save(more / f"u{at}.jpg")
    images = [{"id": 900 + at, "file_name": f"u{at}.jpg", "width": 150, "height": 120} for at in (2, 0, 1)]
    second = tmp_path / "image_info_unlabeled2017.json"
    second.write_text(json.dumps({"images": images}))
    first = coco / "annotations" / "instances_train2017.json"
    both = (coco / "train2017", more)
    mine(MiningConfig(sources=both, annotations=(first, second), out=tmp_path / "s", proposals="many_boxes:many_boxes",
                      inline=True))  # fmt: skip
    order = ["--annotations", first, "--annotations", second]
    assert called("export", "boxes", tmp_path / "s", "--format", "orl", "--out", tmp_path / "orl.json", *order).exit_code == 0
    boxes = json.loads((tmp_path / "orl.json").read_text())["bbox"]
    candidates = {row["source"].split("/")[1]: row["candidates"] for row in rows(tmp_path / "s")}
    names = [image["file_name"] for file in (first, second) for image in json.loads(file.read_text())["images"]]
    unturned = [at for at, name in enumerate(names) if name != "0003.jpg"]
    assert [boxes[at] for at in unturned] == [candidates[names[at]] for at in unturned]
    imported(tmp_path / "orl.json", "orl", both[0], tmp_path / "back", "--src", more, *order)
    assert [row["candidates"] for row in rows(tmp_path / "back")] == [row["candidates"] for row in rows(tmp_path / "s")]


def test_two_images_of_one_stem_are_named(tmp_path):
    for name in ("a", "b"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        Image.fromarray(draw_scene("disc", np.random.default_rng(1), 80, 80)).save(tmp_path / "photos" / name / "1.jpg")
    (tmp_path / "soco.json").write_text('{"1": [[0, 0, 63, 63]]}')
    done = called("import", "boxes", tmp_path / "soco.json", "--format", "soco", "--src", tmp_path / "photos", "--out",
                  tmp_path / "out")  # fmt: skip
    assert done.exit_code == 1
    assert "photos/a/1.jpg and photos/b/1.jpg are both '1'" in done.output


def test_exports_that_cannot_be_are_said_in_words(coco, shards, tmp_path):
    (tmp_path / "other.json").write_text('{"images": [{"id": 1, "file_name": "x.jpg", "width": 9, "height": 9}]}')
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("")
    mine(MiningConfig(sources=(coco / "train2017",), out=tmp_path / "none", proposals="none", inline=True))
    for arguments, status, said in (
        ((shards, "--format", "orl", "--out", tmp_path / "o"), 2, "needs --annotations"),
        (
            (shards, "--format", "orl", "--out", tmp_path / "o", "--annotations", tmp_path / "other.json"),
            1,
            "1 of them are not",
        ),
        ((shards, "--format", "soco", "--out", tmp_path / "o", "--annotations", tmp_path / "other.json"), 2, "leave it out"),
        ((shards, "--format", "coco", "--out", tmp_path / "full"), 1, "is a folder; coco reads one file"),
        ((shards, "--format", "detreg", "--out", tmp_path / "full"), 1, "holds files"),
        ((tmp_path / "none", "--format", "coco", "--out", tmp_path / "o"), 1, "mined with --proposals none"),
        ((tmp_path / "full", "--format", "coco", "--out", tmp_path / "o"), 1, "no manifest.json"),
        ((shards / "000.tar", "--format", "coco", "--out", tmp_path / "o"), 1, "expected a folder of finished shards"),
        ((shards, "--format", "coco", "--out", "s3://bucket/o"), 2, "expected a local path"),
    ):
        done = called("export", "boxes", *arguments)
        assert (done.exit_code, said in done.output) == (status, True), done.output
        assert not (tmp_path / "o").exists()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_json_in_pieces_is_the_same_as_in_one(tmp_path, monkeypatch):
    monkeypatch.setattr(jsonstream, "_PIECE", 3)
    content = {"a": [1, [2.5, -3e-7], "ü]\u2028", None, {}], "empty": [], 'b\\"': {"c": [True]}, "n": 1234567890}
    path = tmp_path / "x.json"
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False))
    with path.open("rb") as file:
        stream = JsonStream(file, "x")
        found = {key: list(stream.elements()) if stream.at_array() else stream.value() for key in stream.members()}
        stream.finish()
    assert found == content
