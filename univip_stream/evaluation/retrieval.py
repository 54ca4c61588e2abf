"""Find similar regions in similar images: ORL's second stage, in chunks that are complete or absent.

ORL (Xie et al. 2021, arXiv:2106.11952), section 3.2, and its code (Jiahao000/ORL @ 2ad64f7: `tools/coco_knn_image_retrieval.ipynb`,
`openselfsup/models/correspondence.py`), with a backbone of stage 1 in evaluation mode:

1. The neighbours of an image are the K = 10 others whose features have the greatest cosine with its own.
2. Every region is resized to 224 x 224 and run through the backbone; its feature is the pooled one, normalised.
3. Of all pairs of a region here and one in the neighbour, those with the greatest cosine are kept: a tenth of the image's number
   of regions, rounded down, at least one. The code takes the tenth of the regions, not of the pairs, and so do we.

Differences: images are compared by the features that `embed` writes, the backbone's, where the notebook has the projector's.
Regions are the shards', the best 100 of an image (`refilter --min-scale 96 --max-boxes 100` gives ORL's); an image without one
counts as one region, where ORL takes its first candidate. Features of regions are kept as float16 while it works; each region
goes through the network once, in ORL's code once for every image that it is a neighbour of. Of equal cosines, the earlier image
wins, then the earlier regions; in ORL's code the order is undefined. An image that cannot be read is no image's neighbour, and
its one row pairs it with itself, so that every image has a row: training skips bad images and never reads that row.

Letters: N images, R regions, D width of a feature, K neighbours, Q images asked about at once.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from univip_stream.augment import normalised
from univip_stream.distributed import ALONE, Process, wait_for_all
from univip_stream.errors import InputError
from univip_stream.evaluation.embedding import load_features
from univip_stream.evaluation.subject import Subject
from univip_stream.failures import MAX_FAILURES, Failure, stop_if_too_many
from univip_stream.files import sha256_of, written_atomically
from univip_stream.methods.orl.pairs import pairs_table, regions_of
from univip_stream.probe.crops import one_thread
from univip_stream.shards import ShardIndex
from univip_stream.shards.cache import FetchError
from univip_stream.shards.format import UNREADABLE
from univip_stream.stream.cut import cut
from univip_stream.stream.reader import Reader
from univip_stream.workers import loaded

CHUNK = 256
"""Images per chunk: with 20 regions each, 5,000 pictures for the backbone and 20 MB."""
_QUERIES = 128
"""Number of images whose cosines with all others are in memory at once."""
_HALF = np.dtype(np.float16)


class Retrieval:
    """Pairs of regions in some shards, for `univip-stream retrieve`: call `embed_regions`, then `match`, then `write`.

    Finished work is kept beside the file (`FILE.parts/`), so that a killed job can continue. It takes 2 D bytes per region: 4 KB
    with a ResNet-50. The images' features are in memory, 4 D bytes each.

    Args:
        subject: backbone that embeds the regions, and the size they are resized to.
        index: index of the shards.
        features: file that `embed` wrote about the same shards.
        out: file to write; an existing one is replaced as a whole.
        neighbours: K.
        share: pairs kept with each neighbour, as a share of the image's number of regions.
        max_boxes: maximal number of regions per image; the best ones are used.
        process: this process among those that share the chunks.
        max_failures: images that may be unreadable, a share or a number.

    Raises:
        InputError: the features are of other images, there is a single image, more images than allowed are unreadable, or `out`
            is a folder.

    """

    def __init__(
        self,
        subject: Subject,
        index: ShardIndex,
        features: Path,
        out: Path,
        *,
        neighbours: int = 10,
        share: float = 0.1,
        max_boxes: int = 100,
        process: Process = ALONE,
        max_failures: str = MAX_FAILURES,
    ):
        self.subject, self.index, self.out, self.process = subject, index, out, process
        self.share, self.max_boxes = share, max_boxes
        if out.is_dir():
            raise InputError(f"--out {out} is a folder; expected the name of a file, such as {out / 'pairs.parquet'}")
        if len(index) < 2:
            raise InputError("the shards hold one image; expected at least two, to be each other's neighbours")
        vectors_ND, images = load_features(features)
        if images != index.fingerprint or len(vectors_ND) != len(index):
            raise InputError(
                f"{features} holds features of {len(vectors_ND)} images, and not of the {len(index)} of these shards as they "
                "are now; `univip-stream embed RUN SHARDS` makes them for these"
            )
        self.failed = {
            number: Failure(index.text("source", number), UNREADABLE, f"{features} has no features of it")
            for number in np.flatnonzero(np.isnan(vectors_ND[:, 0])).tolist()
        }
        """Images that cannot be read, by their number; `embed_regions` adds more as it finds them."""
        self.max_failures = max_failures
        self._stop_if_hopeless()
        self._unit_ND = vectors_ND / np.maximum(np.linalg.norm(vectors_ND, axis=1, keepdims=True), 1e-12)
        self.neighbours = min(neighbours, len(index) - 1)
        counts = np.diff(index.box_start).clip(1, max_boxes)
        self._start = np.concatenate([[0], np.cumsum(counts)])
        pixels = subject.config.augment
        seen = {
            "weights_sha256": subject.weights_hash(), "size": str(subject.size), "max_boxes": str(max_boxes),
            "mean": str(list(pixels.mean)), "std": str(list(pixels.std)),
        }  # fmt: skip
        self.facts = seen | {"features_sha256": sha256_of(features), "neighbours": str(self.neighbours), "share": str(share)}
        """Everything that the pairs depend on beside the shards; written into the file's metadata."""
        self._parts = out.with_name(out.name + ".parts")
        self._regions = self._parts / f"regions-{self._digest(seen)}"

    @property
    def _pairs(self) -> Path:
        return self._parts / f"pairs-{self._digest(self.facts | {'failed': str(sorted(self.failed))})}"

    def embed_regions(
        self, *, batch_size: int, workers: int, device: torch.device, progress: Callable[[int], None] = lambda images: None
    ) -> None:
        """Compute this rank's share of the missing features of regions.

        Args:
            batch_size: regions per forward pass.
            workers: processes that read images.
            device: device of the backbone.
            progress: called with the number of images just finished, including those finished before.

        Raises:
            InputError: there are more unreadable images than allowed, or features that are not finite.

        """
        self._regions.mkdir(parents=True, exist_ok=True)
        backbone, pixels = self.subject.backbone.to(device).eval(), self.subject.config.augment
        for first, last in self._mine():
            path = self._regions / f"{first:09d}.f16"
            size = int(self._start[last] - self._start[first]) * backbone.width * _HALF.itemsize
            unread = path.with_suffix(".failed.json")
            if unread.exists() or not path.is_file() or path.stat().st_size != size:
                regions = [(sample, box) for sample in range(first, last) for box in self._boxes(sample)]
                crops = _Crops(self.index, regions, self.subject.size, batch_size)
                bad: dict[int, Failure] = {}
                with written_atomically(path) as file:
                    for images, failed in crops.loaded(workers):
                        with torch.inference_mode():
                            found = backbone(normalised(images.to(device, non_blocking=True), pixels)).float()
                        if not found.isfinite().all():
                            raise InputError(
                                "the backbone's features are not finite: its weights are damaged, or training diverged"
                            )
                        file.write(F.normalize(found, dim=1).half().cpu().numpy().tobytes())
                        bad |= failed
                        self.failed |= failed
                        self._stop_if_hopeless()
                    unread.unlink(missing_ok=True)
                    if bad:  # written before the regions appear, so that these images are always tried again
                        with written_atomically(unread) as names:
                            names.write(json.dumps(bad).encode())
            progress(last - first)
        wait_for_all(self.process)
        for path in sorted(self._regions.glob("*.failed.json")):  # written by all ranks
            self.failed |= {int(number): Failure(*failure) for number, failure in json.loads(path.read_bytes()).items()}
        self.failed = dict(sorted(self.failed.items()))
        self._stop_if_hopeless()
        self.neighbours = min(self.neighbours, len(self.index) - len(self.failed) - 1)

    def match(self, *, device: torch.device, progress: Callable[[int], None] = lambda images: None) -> None:
        """Compute this rank's share of the missing pairs; every rank must have embedded its regions."""
        self._pairs.mkdir(parents=True, exist_ok=True)
        unit_ND = torch.from_numpy(self._unit_ND).to(device)
        unit_ND[list(self.failed)] = torch.nan
        for first, last in self._mine():
            path = self._pairs / f"{first:09d}.parquet"
            if _read(path) is None:
                rows = []
                for at in range(first, last, _QUERIES):
                    end = min(at + _QUERIES, last)
                    for sample, others in zip(range(at, end), nearest(unit_ND, at, end, self.neighbours), strict=True):
                        if sample in self.failed:
                            whole = regions_of(self.index, sample)[:1]
                            rows.append((sample, sample, np.concatenate([whole, whole], axis=1)))
                            continue
                        mine = self._features(sample)
                        rows += [(sample, other, self._best_pairs(sample, mine, other)) for other in others.tolist()]
                table = pairs_table(self.index, rows, self.facts)
                with written_atomically(path) as file:
                    pq.write_table(table, file, compression="zstd", write_page_checksum=True)
            progress(last - first)
        wait_for_all(self.process)

    def write(self) -> None:
        """Join the parts into the file and remove them; done by the first rank only."""
        if not self.process.is_first:
            return
        schema = pairs_table(self.index, [], self.facts).schema
        with (
            written_atomically(self.out) as file,
            pq.ParquetWriter(file, schema, compression="zstd", write_page_checksum=True) as writer,
        ):
            for path in sorted(self._pairs.glob("*.parquet")):
                if (table := _read(path)) is None:
                    raise InputError(f"{path} changed while it was read; run the same command again")
                writer.write_table(table)
        shutil.rmtree(self._parts)

    def _stop_if_hopeless(self) -> None:
        stop_if_too_many(
            list(self.failed.values()), seen=len(self.index), images=len(self.index), allowed=self.max_failures,
            advice="`univip-stream verify` lists what is damaged.",
        )  # fmt: skip
        if len(self.index) - len(self.failed) < 2:
            raise InputError("less than two images can be read; expected at least two, to be each other's neighbours")

    def _digest(self, facts: dict[str, str]) -> str:
        return hashlib.sha256(json.dumps([self.index.fingerprint, CHUNK, facts]).encode()).hexdigest()[:16]

    def _mine(self) -> list[tuple[int, int]]:
        """Return (first, last + 1) of each of this rank's chunks."""
        starts = range(0, len(self.index), CHUNK)[self.process.rank :: self.process.world_size]
        return [(first, min(first + CHUNK, len(self.index))) for first in starts]

    def _boxes(self, sample: int) -> np.ndarray:
        return regions_of(self.index, sample)[: self.max_boxes]

    def _features(self, sample: int) -> np.ndarray:
        """Return the features of a sample's regions, float32 R x D, of unit length."""
        first = sample - sample % CHUNK
        before, count = self._start[sample] - self._start[first], self._start[sample + 1] - self._start[sample]
        width = self.subject.backbone.width
        path = self._regions / f"{first:09d}.f16"
        found = np.fromfile(path, _HALF, int(count) * width, offset=int(before) * width * _HALF.itemsize)
        return found.reshape(count, width).astype(np.float32)

    def _best_pairs(self, sample: int, mine: np.ndarray, other: int) -> np.ndarray:
        """Return the pairs kept between a sample and a neighbour, P x 8, most similar first."""
        cosines = mine @ self._features(other).T
        keep = max(1, int(self.share * len(mine)))
        best = np.argsort(-cosines, axis=None, kind="stable")[:keep]
        own, theirs = np.unravel_index(best, cosines.shape)
        return np.concatenate([self._boxes(sample)[own], self._boxes(other)[theirs]], axis=1)


def nearest(unit_ND: Tensor, first: int, last: int, count: int) -> np.ndarray:
    """Return the images most similar to those from `first` to `last`, int64 (last - first) x count, most similar first.

    No image is its own neighbour.

    Args:
        unit_ND: features of unit length; NaN for images that must not be neighbours (their own rows have no meaning).
        first: first of the images asked about.
        last: one past the last of them.
        count: neighbours per image, fewer than the images that may be one.

    """
    cosines_QN = (unit_ND[first:last] @ unit_ND.T).nan_to_num(nan=-torch.inf)
    asked = torch.arange(last - first, device=unit_ND.device)
    cosines_QN[asked, asked + first] = -torch.inf
    # The order of equal values in topk is undefined: all that are as near as its last are sorted once more.
    rows, others = (cosines_QN >= cosines_QN.topk(count, dim=1).values[:, -1:]).nonzero(as_tuple=True)
    cosines, rows_, others_ = (found.cpu().numpy() for found in (cosines_QN[rows, others], rows, others))
    order = np.lexsort((others_, -cosines, rows_))
    starts = np.searchsorted(rows_, np.arange(last - first))
    kept: np.ndarray = others_[order][starts[:, None] + np.arange(count)]
    return kept


def _read(path: Path) -> pa.Table | None:
    """Read a chunk of pairs; None if it is missing or damaged."""
    try:
        return pq.read_table(path, page_checksum_verification=True)
    except (OSError, pa.ArrowException):
        return None


class _Crops(Dataset[tuple[Tensor, dict[int, Failure]] | InputError]):
    """Item n is the n-th batch of cropped regions, uint8 B x 3 x S x S, with its images that cannot be read, whose regions are
    black; or an InputError. Errors are items, because DataLoader would replace their message by a worker's traceback."""

    def __init__(self, index: ShardIndex, regions: list[tuple[int, np.ndarray]], size: int, batch_size: int) -> None:
        self.regions, self.index, self.size, self.batch_size = regions, index, size, batch_size
        self.reader = Reader(index)

    def __len__(self) -> int:
        return -(-len(self.regions) // self.batch_size)

    def __getitem__(self, number: int) -> tuple[Tensor, dict[int, Failure]] | InputError:
        some = self.regions[number * self.batch_size : (number + 1) * self.batch_size]
        pixels = np.zeros((len(some), self.size, self.size, 3), np.uint8)
        at, image = -1, np.empty(0)
        failed: dict[int, Failure] = {}
        for process, (sample, box) in enumerate(some):
            if sample in failed:
                continue
            try:
                if sample != at:
                    at, image = sample, self.reader.image(sample)
            except FetchError as error:
                return FetchError(str(error))  # without its cause, which may not be picklable
            except InputError as error:
                failed[sample] = Failure(self.index.text("source", sample), UNREADABLE, str(error))
                continue
            cut(image, box, pixels[process], "bilinear", antialias=True)
        return torch.from_numpy(pixels).permute(0, 3, 1, 2), failed

    def loaded(self, workers: int) -> Iterator[tuple[Tensor, dict[int, Failure]]]:
        """Yield the batches in order, made in `workers` processes (0: in this one)."""
        yield from loaded(self, workers=workers, start=one_thread, batch_size=None)
        self.reader.close()
