"""The stream makes global batches of views out of shards; `ShardDataset` gives plain images and boxes instead."""

from univip_stream.stream.batch import Batch
from univip_stream.stream.dataset import Sample, ShardDataset
from univip_stream.stream.stream import Stream, StreamConfig

__all__ = ["Batch", "Sample", "ShardDataset", "Stream", "StreamConfig"]
