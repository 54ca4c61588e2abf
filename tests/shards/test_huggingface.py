"""Hugging Face `datasets` reads sets whose first samples do not show what comes later."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from univip_stream.mining import MiningConfig, mine
from univip_stream.shards.format import StoredImage
from univip_stream.shards.huggingface import FIELDS, IMAGES


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """Eight plain JPEGs without boxes, then a PNG, a WebP, one that EXIF turns and one with COCO's id; and their folder."""
    root = tmp_path_factory.mktemp("mixed")
    (root / "photos").mkdir()
    rng = np.random.default_rng(0)
    exif = Image.Exif()
    exif[0x0112] = 6
    names = [*(f"{at:02d}.jpg" for at in range(8)), "08.png", "09.webp", "10.jpg", "11.jpg"]
    for name in names:
        side = 40 if int(name[:2]) < 8 else 120
        picture = Image.fromarray(rng.integers(0, 255, (side, side + 10, 3), dtype=np.uint8))
        picture.save(root / "photos" / name, **({"exif": exif} if name == "10.jpg" else {}))
    images = {"images": [{"id": 7, "file_name": "11.jpg"}], "annotations": [], "categories": []}
    (root / "ids.json").write_text(json.dumps(images))
    config = MiningConfig(
        sources=(root / "photos",), annotations=(root / "ids.json",), out=root / "shards", num_shards=2, proposals="naive",
        inline=True,
    )  # fmt: skip
    mine(config)
    return root / "shards"


def test_the_types_are_of_all_fields_that_a_sample_can_have():
    boxes = np.array([[1, 2, 3, 4]])
    sample = StoredImage(
        key="000000000", source="a/b.jpg", status="ok", label="x", image_id=1, width=9, height=9, sha256="0", converted="CMYK",
        proposals="naive", boxes=boxes,
    )  # fmt: skip
    fields = json.loads(sample.as_json())
    assert fields.keys() == FIELDS.keys()
    kinds = {"string": str, "int64": int, "boxes": list}
    assert all(type(fields[name]) is kinds[kind] for name, kind in FIELDS.items())


def test_datasets_reads_a_mixed_set_whole_without_streaming(mixed, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    datasets = pytest.importorskip("datasets", reason="Hugging Face datasets is not installed")
    from univip_stream import huggingface_features

    found = datasets.load_dataset(
        "webdataset", data_files=str(mixed / "*.tar"), split="train", cache_dir=str(tmp_path), features=huggingface_features()
    )
    assert len(found) == 12
    source = Path(mixed).parent / "photos"
    for at, row in enumerate(found):
        [kept] = [suffix for suffix in IMAGES if row[suffix] is not None]
        assert row["json"]["source"] == f"photos/{sorted(path.name for path in source.iterdir())[at]}"
        assert kept == row["json"]["source"].rpartition(".")[2]
        assert row[kept].size == (row["json"]["width"], row["json"]["height"])
    assert [row["json"]["converted"] for row in found].count("EXIF orientation 6") == 1
    assert [row["json"]["image_id"] for row in found] == [None] * 11 + [7]
    assert found[0]["json"]["boxes"] == []
    assert len(found[8]["json"]["boxes"][0]) == 4
