"""Shards with something of everything."""

import io
import json
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from demo_images import SHAPES, draw_scene

HOSTILE = 'x</script><script>owned=1</script><img src=x onerror=owned=1>"&amp;.jpg'
"""A source's name that must stay a name; its slashes are folders."""


@pytest.fixture(scope="session")
def odd_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten drawn scenes of which one has a hostile name, one without boxes, and two files that are no images."""
    from univip_stream.mining import MiningConfig, mine

    folder = tmp_path_factory.mktemp("odd") / "images"
    folder.mkdir()
    rng = np.random.default_rng(5)
    for at in range(10):
        scene = draw_scene(SHAPES[at % len(SHAPES)], rng, 320 if at else 240, 240)
        done, data = cv2.imencode(".jpg", cv2.cvtColor(scene, cv2.COLOR_RGB2BGR))
        assert done
        name = folder / (f"scene{at}.jpg" if at else HOSTILE)
        name.parent.mkdir(parents=True, exist_ok=True)
        name.write_bytes(data.tobytes())
    cv2.imwrite(str(folder / "small.png"), np.full((40, 40, 3), 90, np.uint8))  # no box of 64 pixels fits
    (folder / "broken.jpg").write_bytes(b"no image")
    (folder / "cut <b>off.jpg").write_bytes((folder / "scene1.jpg").read_bytes()[:900])
    out = folder.parent / "shards"
    mine(MiningConfig(sources=(folder,), out=out, num_shards=3, proposals="naive", inline=True, max_failures="5"))
    return out


@pytest.fixture
def foreign_tar(tmp_path: Path) -> Path:
    """A WebDataset shard of another program: a sample with a hostile key and boxes, one without boxes."""
    rng = np.random.default_rng(2)
    path = tmp_path / "others.tar"
    with tarfile.open(path, "w") as tar:
        for key, boxes in ((HOSTILE.removesuffix(".jpg"), [[10, 10, 90, 80]]), ("plain", None)):
            done, data = cv2.imencode(".jpg", draw_scene(SHAPES[0], rng, 300, 240))
            assert done
            fields = {"label": "</script><b>", "boxes": boxes} if boxes else {}
            for suffix, content in (("jpg", data.tobytes()), ("json", json.dumps(fields).encode())):
                member = tarfile.TarInfo(f"{key}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return path
