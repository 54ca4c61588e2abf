"""Regions of different images that look alike: stage 2 of ORL (Xie et al. 2021, arXiv:2106.11952, section 3.2).

For every image its nearest images by the cosine of whole-image features; then, of each such pair of images, the pairs of regions
with the greatest cosine, a tenth as many as the image has regions. Numbers as in the paper and its code (Jiahao000/ORL @ 2ad64f7):
10 neighbours, a share of 0.1 (at least one pair), regions resized to 224 px, features of the last stage, averaged over space.

Each region goes through the network once; ORL's code runs it again for every image it is a neighbour of.

Shape letters: N images, R regions of all images, D width of a feature, K neighbours, S side of a region, P pairs.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from univip_stream.errors import InputError
from univip_stream.evaluation.subject import Subject
from univip_stream.files import written_atomically
from univip_stream.probe.features import normalised
from univip_stream.shards import ShardIndex
from univip_stream.stream.cut import cut
from univip_stream.stream.pairs import write_pairs
from univip_stream.stream.reader import Reader

SIDE = 224
"""Pixels, of a region before the network. ORL's `patch_size`."""
_CHUNK = 256
"""Images between two notes of how far it is."""
_ROWS = 1024
"""Images whose similarities to all others are in memory at a time."""


def retrieve(
    subject: Subject,
    index: ShardIndex,
    features: Path,
    out: Path,
    *,
    neighbours: int = 10,
    share: float = 0.1,
    max_boxes: int = 100,
    batch_size: int = 128,
    workers: int = 0,
    device: torch.device,
    progress: Callable[[int], None] = lambda images: None,
) -> int:
    """Write the pairs of regions that ORL trains on.

    Features of regions lie in `OUT.parts/` meanwhile, two bytes a number (2048 x 2 x regions: 24 GB for COCO at 50 an image);
    called again after it was killed, it goes on there.

    Args:
        subject: whose backbone looks at regions.
        index: of the shards, with their boxes; an image without any is one region.
        features: what `univip-stream embed` wrote for the same shards.
        out: the Parquet file; see `stream.pairs`.
        neighbours: nearest images of each.
        share: pairs kept of two images, as a share of the first one's regions; at least one.
        max_boxes: regions of an image, the best.
        batch_size: regions a forward pass.
        workers: processes that read images.
        device: where the network runs.
        progress: called as images are done, with their number.

    Returns:
        Pairs that were written.

    Raises:
        InputError: features of other images, or fewer images than neighbours.

    """
    if len(index) <= neighbours:
        raise InputError(f"the shards hold {len(index)} images; expected more than {neighbours}, the neighbours of each")
    nearest_NK = nearest(_features(features, index), neighbours, device)
    regions = [regions_of(index, sample, max_boxes) for sample in range(len(index))]
    start = np.concatenate([[0], np.cumsum([len(boxes) for boxes in regions])])
    parts = out.with_name(out.name + ".parts")
    looked_RD = _look(subject, index, regions, start, parts, batch_size, workers, device, progress)
    count = 0

    def rows() -> Iterator[tuple[int, int, np.ndarray]]:
        nonlocal count
        for sample in range(len(index)):
            own = _unit(looked_RD[start[sample] : start[sample + 1]], device)
            for other in nearest_NK[sample].tolist():
                theirs = _unit(looked_RD[start[other] : start[other + 1]], device)
                one, two = alike(own, theirs, share)
                count += len(one)
                yield sample, other, np.concatenate([regions[sample][one], regions[other][two]], axis=1)

    write_pairs(out, index, rows())
    for path in parts.iterdir():
        path.unlink()
    parts.rmdir()
    return count


def nearest(features_ND: np.ndarray, neighbours: int, device: torch.device) -> np.ndarray:
    """int64, N x K: the nearest others of each image by cosine, nearest first; of equals the first."""
    unit_ND = _unit(features_ND, device)
    told = []
    for first in range(0, len(unit_ND), _ROWS):
        similarity = unit_ND[first : first + _ROWS] @ unit_ND.T
        here = torch.arange(len(similarity), device=device)
        similarity[here, first + here] = -torch.inf
        told.append(similarity.sort(dim=1, descending=True, stable=True).indices[:, :neighbours].cpu())
    return torch.cat(told).numpy()


def alike(own_MD: Tensor, theirs_ND: Tensor, share: float) -> tuple[np.ndarray, np.ndarray]:
    """(rows of the one, rows of the other) of the most similar pairs, best first: max(1, share x M) of them."""
    similarity = (own_MD @ theirs_ND.T).flatten()
    wanted = min(max(1, int(share * len(own_MD))), len(similarity))
    best = similarity.sort(descending=True, stable=True).indices[:wanted].cpu().numpy()
    return best // len(theirs_ND), best % len(theirs_ND)


def regions_of(index: ShardIndex, sample: int, max_boxes: int) -> np.ndarray:
    """int32, M x 4: the best boxes of an image, or all of it where it has none."""
    boxes = index.boxes_of(sample)[:max_boxes].astype(np.int32)
    if len(boxes):
        return boxes
    return np.array([[0, 0, index.width[sample], index.height[sample]]], np.int32)


def _unit(features: np.ndarray, device: torch.device) -> Tensor:
    return F.normalize(torch.from_numpy(np.array(features, np.float32)).to(device), dim=1)


def _features(path: Path, index: ShardIndex) -> np.ndarray:
    """float32, N x D, in the order of the index."""
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise InputError(
            f"{path} cannot be read as features: {error}; `univip-stream embed RUN SHARDS` makes them"
        ) from error
    if not {"key", "vector"} <= set(table.column_names):
        raise InputError(
            f"{path} has the columns {', '.join(table.column_names)}; expected key and vector, as `embed` writes"
        )
    place = {key: row for row, key in enumerate(table.column("key").to_pylist())}
    keys = index.key.to_pylist()
    missing = [key for key in keys if key not in place]
    if missing or len(place) != len(keys):
        raise InputError(
            f"{path} has features of {len(place)} images, the shards hold {len(keys)}; {len(missing)} of these have none"
            + (f", such as {missing[0]}" if missing else "")
            + ": `univip-stream embed RUN SHARDS` of the same shards makes them"
        )
    vectors = table.column("vector").combine_chunks()
    width = vectors.type.list_size
    found: np.ndarray = vectors.flatten().to_numpy(zero_copy_only=False).reshape(-1, width)[[place[key] for key in keys]]
    return found


class _Regions(Dataset[Tensor]):
    """uint8, M x 3 x S x S: the regions of an image, cut out."""

    def __init__(self, index: ShardIndex, regions: list[np.ndarray], first: int):
        self.index, self.regions, self.first = index, regions, first
        self.reader: Reader | None = None

    def __len__(self) -> int:
        return len(self.regions) - self.first

    def __getitem__(self, number: int) -> Tensor:
        if self.reader is None:
            self.reader = Reader(self.index)
        sample = self.first + number
        image = self.reader.image(sample)
        out = np.empty((len(self.regions[sample]), SIDE, SIDE, 3), np.uint8)
        for box, place in zip(self.regions[sample], out, strict=True):
            cut(image, box, place, "bilinear", antialias=True)
        return torch.from_numpy(out).permute(0, 3, 1, 2)


def _look(
    subject: Subject,
    index: ShardIndex,
    regions: list[np.ndarray],
    start: np.ndarray,
    parts: Path,
    batch_size: int,
    workers: int,
    device: torch.device,
    progress: Callable[[int], None],
) -> np.ndarray:
    """float16, R x D on disk: features of all regions; what an earlier call has done stays."""
    width = subject.backbone.width
    job = hashlib.sha256(
        json.dumps([subject.weights_hash(), index.fingerprint, int(start[-1]), width, SIDE]).encode()
    ).hexdigest()
    parts.mkdir(parents=True, exist_ok=True)
    note, store = parts / "done.json", parts / "regions.f16"
    shape = (int(start[-1]), width)
    done = 0
    if note.exists() and store.exists() and store.stat().st_size == 2 * shape[0] * shape[1]:
        facts = json.loads(note.read_bytes())
        done = facts["images"] if facts["job"] == job else 0
    looked = np.memmap(store, np.float16, "r+" if done else "w+", shape=shape)
    progress(done)
    network = subject.backbone.to(device)
    images = DataLoader(_Regions(index, regions, done), batch_size=None, num_workers=workers)
    with torch.no_grad():
        for sample, pixels in enumerate(images, done):
            found = [network(normalised(part.to(device))).float().cpu() for part in pixels.split(batch_size)]
            looked[start[sample] : start[sample + 1]] = torch.cat(found).numpy()
            progress(1)
            if (sample + 1) % _CHUNK == 0:
                looked.flush()
                with written_atomically(note) as file:
                    file.write(json.dumps({"job": job, "images": sample + 1}).encode())
    return looked
