"""webdataset pipelines over our shards, for training loops that use them.

    dataset = univip_stream.webdataset.pipeline("shards/<000..127>.tar", shuffle=1000)
    loader = torch.utils.data.DataLoader(dataset.with_epoch(10_000), batch_size=None, num_workers=4)

Unlike `ShardDataset` (its order is a function of (seed, epoch), and every image comes exactly once on any number of ranks),
webdataset distributes whole shards, to ranks and then to workers, and those without a shard get nothing.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset as wds

from univip_stream.errors import InputError
from univip_stream.images import MAX_PIXELS, decode
from univip_stream.shards import expand_shards
from univip_stream.storage import is_remote

_IMAGES = ("jpg", "png", "webp")
"""Suffixes of the images in our shards."""


def pipeline(
    shards: str | Path | Sequence[str | Path],
    *,
    shuffle: int = 0,
    seed: int = 0,
    max_pixels: int = MAX_PIXELS,
    handler: Callable[[Exception], bool] = wds.reraise_exception,
) -> wds.DataPipeline:
    """Return a `webdataset.DataPipeline` of decoded samples; `.compose(...)`, `.repeat()` and `.with_epoch()` work as usual.

    Args:
        shards: any spec on a local disk: `shards/<000..127>.tar`, a glob, a folder, several in a list.
        shuffle: number of samples in the shuffle buffer; shards are shuffled too. 0 keeps the shards' order.
        seed: seed of the shuffling.
        max_pixels: larger images are refused.
        handler: webdataset's handler for samples that cannot be decoded; `webdataset.warn_and_continue` skips them.

    Returns:
        Samples with `__key__`; `image`, uint8 (3, height, width), RGB and upright; `boxes`, int64 (N, 4): x, y, w, h in pixels,
        best first; `label`, the class or None; `source`; and `json`, everything stored beside the image.

    Raises:
        InputError: there are no such shards, or they are in an object store.

    """
    given = [shards] if isinstance(shards, str | Path) else shards
    if remote := [spec for spec in given if is_remote(spec)]:
        raise InputError(f"{remote[0]} is remote; expected shards on a local disk. `univip_stream.ShardDataset` reads both")
    paths = expand_shards(shards)
    stages: list[Any] = [wds.SimpleShardList(paths)]
    if shuffle:
        stages.append(wds.detshuffle(bufsize=len(paths), initial=len(paths), seed=seed))
    stages += [wds.split_by_node, wds.split_by_worker, wds.tarfile_to_samples(handler=handler)]
    if shuffle:
        stages.append(wds.detshuffle(bufsize=shuffle, initial=shuffle, seed=seed))
    return wds.DataPipeline(*stages, wds.map(_Decode(max_pixels), handler=handler))


class _Decode:
    """Decodes a raw sample of webdataset to pixels and boxes. It is a class so that it can be pickled for spawned workers."""

    def __init__(self, max_pixels: int):
        self.max_pixels = max_pixels

    def __call__(self, raw: dict[str, Any]) -> dict[str, Any]:

        key, url = raw["__key__"], raw.get("__url__", "the shard")
        ending = next((ending for ending in _IMAGES if ending in raw), None)
        if ending is None or "json" not in raw:
            raise InputError(f"{url}: {key} has {', '.join(raw)}; expected an image and its json, as `mine` writes them")
        facts = json.loads(raw["json"])
        pixels = decode(raw[ending], max_pixels=self.max_pixels)
        boxes = np.array(facts["boxes"], np.int64).reshape(-1, 4)
        return {
            "__key__": key,
            "image": torch.from_numpy(pixels).permute(2, 0, 1),
            "boxes": torch.from_numpy(boxes),
            "label": facts["label"],
            "source": facts["source"],
            "json": facts,
        }
