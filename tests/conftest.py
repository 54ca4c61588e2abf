"""Fixtures that the tests share: the development images, if they exist, and drawn images."""

import fcntl
import importlib
import os
import sys
import tempfile
import uuid
from collections.abc import Iterator
from importlib.abc import MetaPathFinder
from pathlib import Path

import cv2
import numpy as np
import pytest
from demo_images import SHAPES, draw_scene
from warm import Warm

# One thread in each process, as `make test` sets before numpy is imported: it runs a process more than cores, and networks as
# small as these are no faster with more threads. Tests about threads set their own number.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# The tests reach their own servers directly, even behind a proxy.
os.environ["no_proxy"] = ",".join(filter(None, (os.environ.get("no_proxy"), "127.0.0.1,localhost")))


class _LibrariesFirst(MetaPathFinder):
    """Imports torch, torchvision and timm before the first module that jaxtyping checks and that needs them.

    Inside jaxtyping's loader Python looks for compiled files with another name, also for modules that are imported there: all
    of torch would be compiled again, which takes five seconds of each start.
    """

    names = tuple(f"univip_stream.{name}" for name in ("losses", "transport", "networks", "methods", "augment"))

    def find_spec(self, fullname, path=None, target=None):
        if fullname in self.names:
            for library in ("torch", "torchvision", "timm"):
                importlib.import_module(library)


sys.meta_path.insert(0, _LibrariesFirst())

pytest_plugins = ["slow"]

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real development images beside the repository; without it, the test is skipped with a message."""
    if not SHARED_DATA.is_dir():
        pytest.skip("needs the development images in ../shared/data, which are not here")
    return SHARED_DATA


@pytest.fixture
def rng() -> np.random.Generator:
    """A fresh seeded numpy generator."""
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def drawn_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A flat folder of twelve drawn scenes, JPEG of 320 x 240 pixels. It is read-only: copy it before changing it."""
    folder = tmp_path_factory.mktemp("drawn")
    rng = np.random.default_rng(7)
    for index in range(12):
        scene = cv2.cvtColor(draw_scene(SHAPES[index % len(SHAPES)], rng), cv2.COLOR_RGB2BGR)
        cv2.imwrite(str(folder / f"scene{index:02d}.jpg"), scene)
    return folder


@pytest.fixture(scope="session")
def drawn_shards(tmp_path_factory: pytest.TempPathFactory, drawn_folder: Path) -> Path:
    """The drawn scenes mined into three shards with random boxes. They are read-only: copy them before changing them."""
    from univip_stream.mining import MiningConfig, mine

    out = tmp_path_factory.mktemp("shards") / "drawn"
    mine(MiningConfig(sources=(drawn_folder,), out=out, num_shards=3, proposals="naive", inline=True))
    return out


@pytest.fixture(scope="session")
def drawn_pairs(tmp_path_factory: pytest.TempPathFactory, drawn_shards: Path) -> Path:
    """Pairs of regions of the drawn shards: two pairs of each image with the next, three with the third after it."""
    import pyarrow.parquet as pq

    from univip_stream.methods.orl.pairs import pairs_table
    from univip_stream.shards import expand_shards, open_index

    index = open_index(expand_shards(str(drawn_shards)))
    rows = []
    for sample in range(len(index)):
        for step, count in ((1, 2), (3, 3)):
            other = (sample + step) % len(index)
            own, theirs = (np.resize(index.boxes_of(image), (count, 4)) for image in (sample, other))
            rows.append((sample, other, np.concatenate([own, theirs], axis=1)))
    path = tmp_path_factory.mktemp("pairs") / "pairs.parquet"
    pq.write_table(pairs_table(index, rows, {}), path)
    return path


@pytest.fixture(scope="session")
def labelled_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn scenes of three classes, eight of each in a folder of its own."""
    folder = tmp_path_factory.mktemp("labelled")
    rng = np.random.default_rng(11)
    for shape in SHAPES[:3]:
        (folder / shape).mkdir()
        for index in range(8):
            scene = cv2.cvtColor(draw_scene(shape, rng, 160, 120), cv2.COLOR_RGB2BGR)
            cv2.imwrite(str(folder / shape / f"{index}.jpg"), scene)
    return folder


@pytest.fixture(scope="session")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Compile our selective search once for all processes that share the suite; in a fresh checkout it takes half a minute."""
    from univip_stream.proposals import propose

    with open(tmp_path_factory.getbasetemp().parent / "kernels.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        propose(np.random.default_rng(0).integers(0, 255, (96, 96, 3), np.uint8))


@pytest.fixture(scope="session")
def warm(request: pytest.FixtureRequest) -> Iterator[Warm]:
    """A process that has imported everything: `warm.start` and `warm.run` fork commands from it."""
    run = getattr(request.config, "workerinput", {}).get("testrunuid", uuid.uuid4().hex)
    made = Warm(Path(tempfile.gettempdir()) / f"warm-{run[:12]}")  # short enough for a socket; processes of one run share it
    yield made
    made.close()


def _trained(folder: Path, backbone: str, shards: Path) -> Path:
    """Train a run of two steps on views of 32 pixels, and return its folder."""
    from univip_stream.pretrain import pretrain
    from univip_stream.pretrain.recipes import recipe
    from univip_stream.pretrain.settings import with_settings

    small = [
        f"method.backbone={backbone}", "method.hidden=32", "method.width=16", "views.scene_size=32", "views.instances=0",
        "stream.batch_size=4", "stream.workers=0", "steps=2",
    ]  # fmt: skip
    pretrain(with_settings(recipe("cpu-demo"), small), str(shards), folder)
    return folder


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory, drawn_shards: Path) -> Path:
    """A run with timm's ResNet for tests, a thirtieth of a ResNet-18. It is read-only: copy it before changing it."""
    return _trained(tmp_path_factory.mktemp("runs") / "run", "test_resnet", drawn_shards)


@pytest.fixture(scope="session")
def resnet_folder(tmp_path_factory: pytest.TempPathFactory, drawn_shards: Path) -> Path:
    """A run with torchvision's ResNet-18, which detectors and formats of other libraries need. It is read-only."""
    return _trained(tmp_path_factory.mktemp("resnets") / "run", "resnet18", drawn_shards)
