"""The stream: shards in, global batches of cut views out; and a plain dataset of images and boxes."""

from univip_stream.stream.batch import Batch
from univip_stream.stream.dataset import Sample, ShardDataset
from univip_stream.stream.stream import Stream, StreamConfig

__all__ = ["Batch", "Sample", "ShardDataset", "Stream", "StreamConfig"]
