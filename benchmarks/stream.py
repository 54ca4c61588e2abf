"""The stream, beside the usual pipeline: CPU milliseconds an image for two views of 224 px and four instances of 96 px.

    python benchmarks/stream.py                                # images drawn here, 640 x 480
    python benchmarks/stream.py --images coco/val2017

The usual pipeline is webdataset, PIL and torchvision's v1 transforms, with torchvision's Gaussian blur or PIL's. Ours cuts and
resizes in the workers and leaves augmentation to the device; the last rows add it on the CPU, where all does everything. Counted
is the CPU time of workers and main process together, from the first to the last batch, collation and the way between processes
included, one worker, one thread each; the rows are taken in turn and the medians of the rounds printed. "decode" is what JPEG
decoding alone costs with the fastest decoder.
"""

import argparse
import io
import resource
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import simplejpeg
import torch
import webdataset
from PIL import Image, ImageFilter
from torch.utils.data import DataLoader
from torchvision import transforms

from univip_stream.augment import AugmentConfig
from univip_stream.methods.univip import UniVIPPlan
from univip_stream.mining import MiningConfig, mine
from univip_stream.pretrain.inputs import inputs_on
from univip_stream.shards import ShardIndex, expand_shards, open_index
from univip_stream.stream import Stream, StreamConfig
from univip_stream.stream.cut import cut
from univip_stream.stream.reader import Reader
from univip_stream.views import ViewConfig

BATCH = 32
IMAGES = 640
"""An image set that is small is copied until it has so many: a row must outlast its start."""


def cpu_seconds() -> float:
    """Of this process and of those it has waited for."""
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    )


class PilBlur:
    """SimCLR's and BYOL's blur as most repositories have it."""

    def __call__(self, image: Image.Image) -> Image.Image:
        return image.filter(ImageFilter.GaussianBlur(np.random.uniform(0.1, 2.0)))


def usual_augmentations(
    size: int, view: int, blur: Callable[[Image.Image], Image.Image]
) -> Callable[[Image.Image], torch.Tensor]:
    """BYOL's, on PIL images."""
    return transforms.Compose(
        [
            transforms.RandomHorizontalFlip(),
            transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.2, 0.1)], p=0.8),
            transforms.RandomGrayscale(p=0.2),
            transforms.RandomApply([blur], p=(1.0, 0.1)[view]),
            transforms.RandomSolarize(128, p=(0.0, 0.2)[view]),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )


class Usual:
    """A sample of webdataset to two views and four instances, one image at a time."""

    def __init__(self, blur: type | Callable[[int], Callable[[Image.Image], Image.Image]]):
        self.crop = transforms.RandomResizedCrop(224)
        self.scenes = [usual_augmentations(224, view, blur(23)) for view in range(2)]
        self.instance = usual_augmentations(96, 0, blur(9))

    def __call__(self, sample: dict[str, bytes]) -> tuple[torch.Tensor, torch.Tensor]:
        image = Image.open(io.BytesIO(sample["jpg"])).convert("RGB")
        scenes = torch.stack([change(self.crop(image)) for change in self.scenes])
        instances = []
        for _ in range(4):
            w, h = np.random.randint(64, 200, 2)
            x, y = np.random.randint(0, image.width - w), np.random.randint(0, image.height - h)
            instances.append(self.instance(image.crop((x, y, x + w, y + h)).resize((96, 96), Image.Resampling.BILINEAR)))
        return scenes, torch.stack(instances)


def torchvision_blur(width: int) -> Callable[[Image.Image], Image.Image]:
    return transforms.GaussianBlur(width, (0.1, 2.0))


def pil_blur(width: int) -> Callable[[Image.Image], Image.Image]:
    return PilBlur()


def usual(shards: str, blur: Callable[[int], Callable[[Image.Image], Image.Image]]) -> Iterator[int]:
    """Images of each batch."""
    data = webdataset.WebDataset(shards, shardshuffle=False, empty_check=False).map(Usual(blur))
    for scenes, _ in DataLoader(data, batch_size=BATCH, num_workers=1, drop_last=True):
        yield len(scenes)


def ours(index: ShardIndex, batches: int, *, on_cpu: bool = False, **settings: object) -> Iterator[int]:
    config = StreamConfig(batch_size=BATCH, workers=1, prefetch=1, **settings)
    stream = Stream(index, UniVIPPlan(ViewConfig(), AugmentConfig()), config, reuse=True)
    iterator = iter(stream)
    for _ in range(batches):
        batch = next(iterator)
        if on_cpu:
            inputs_on(torch.device("cpu"), batch, AugmentConfig())
        yield BATCH
    iterator.close()


def decoding(index: ShardIndex, count: int) -> Iterator[int]:
    for sample in range(count):
        with open(index.shards[index.shard[sample]], "rb") as file:
            file.seek(index.offset[sample])
            data = file.read(index.size[sample])
        simplejpeg.decode_jpeg(data)
        yield 1


def measured(work: Iterator[int]) -> float:
    """CPU milliseconds an image."""
    began = cpu_seconds()
    images = sum(work)
    del work
    return (cpu_seconds() - began) / images * 1e3


def difference_from_pil(index: ShardIndex, *, antialias: bool) -> tuple[float, float]:
    """Mean and 99.9th percentile of |ours - PIL's| in grey levels, over the same 224 px crops of 40 images."""
    rng, found = np.random.default_rng(0), []
    reader = Reader(index)
    for sample in range(40):
        image = reader.image(sample)
        height, width = image.shape[:2]
        w, h = int(rng.integers(100, width + 1)), int(rng.integers(100, height + 1))
        x, y = int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1))
        out = np.empty((224, 224, 3), np.uint8)
        cut(image, np.array([x, y, w, h]), out, "bilinear", antialias=antialias)
        theirs = Image.fromarray(image[y : y + h, x : x + w]).resize((224, 224), Image.Resampling.BILINEAR)
        found.append(np.abs(out.astype(int) - np.asarray(theirs).astype(int)).ravel())
    reader.close()
    return float(np.concatenate(found).mean()), float(np.percentile(np.concatenate(found), 99.9))


def make_shards(folder: Path | None, place: Path) -> str:
    source = place / "images"
    source.mkdir()
    if folder:
        files = sorted(folder.glob("*.jpg"))
        for number in range(max(IMAGES, len(files))):
            (source / f"{number:06d}.jpg").symlink_to(files[number % len(files)].resolve())
    else:
        from selective_search import drawn_images

        drawn = [cv2.cvtColor(image, cv2.COLOR_RGB2BGR) for image in drawn_images(40).values()]
        for number in range(IMAGES):
            cv2.imwrite(str(source / f"{number:06d}.jpg"), drawn[number % len(drawn)], [cv2.IMWRITE_JPEG_QUALITY, 90])
    mine(MiningConfig(sources=(source,), out=place / "shards", num_shards=4, inline=True))
    return str(place / "shards" / "{000..003}.tar")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, help="folder of JPEGs, each at least 200 pixels a side; drawn ones without it")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as place:
        shards = make_shards(options.images, Path(place))
        index = open_index(expand_shards(shards))
        batches = 3 * len(index) // BATCH  # the worker is a batch or two ahead when it is stopped: that is to weigh little
        rows: dict[str, Callable[[], Iterator[int]]] = {
            "usual: webdataset, PIL, torchvision": lambda: usual(shards, torchvision_blur),
            "usual, PIL's blur": lambda: usual(shards, pil_blur),
            "decode alone, simplejpeg": lambda: decoding(index, len(index)),
            "ours to uint8, not antialiased": lambda: ours(index, batches, antialias=False),
            "ours to uint8, antialiased (default)": lambda: ours(index, batches),
            "decoded before, not antialiased": lambda: ours(
                index, batches, antialias=False, decoded_cache=f"{place}/decoded"
            ),
            "decoded before, antialiased": lambda: ours(index, batches, decoded_cache=f"{place}/decoded"),
            "ours, not antialiased, augmented": lambda: ours(index, batches, antialias=False, on_cpu=True),
            "ours, augmented": lambda: ours(index, batches, on_cpu=True),
        }
        accuracy = {antialias: difference_from_pil(index, antialias=antialias) for antialias in (False, True)}
        list(ours(index, len(index) // BATCH + 1, decoded_cache=f"{place}/decoded"))  # the first epoch, which fills it
        seconds: dict[str, list[float]] = {name: [] for name in rows}
        for _ in range(options.rounds):
            for name, work in rows.items():
                seconds[name].append(measured(work()))
    middle = {name: float(np.median(values)) for name, values in seconds.items()}
    first, second, decode = list(middle)[:3]
    print(f"{len(index)} images, {options.rounds} rounds, one worker; CPU ms an image of worker and main process")
    print(f"{'':40}{'ms':>7}{'faster than usual':>19}{'PIL blur':>10}{'x decode':>10}")
    for name, value in middle.items():
        print(
            f"{name:40}{value:7.2f}{middle[first] / value:19.1f}{middle[second] / value:10.1f}{value / middle[decode]:10.2f}"
        )
    for antialias, (mean, tail) in accuracy.items():
        print(
            f"resized {'' if antialias else 'not '}antialiased, beside PIL: {mean:.2f} grey levels apart, 99.9 % within {tail:.0f}"
        )


if __name__ == "__main__":
    main()
