"""Mining: images -> shards of images and boxes."""

from univip_stream.mining.job import MiningConfig, MiningReport, mine

__all__ = ["MiningConfig", "MiningReport", "mine"]
