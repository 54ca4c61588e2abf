"""Mining: images -> shards of images and boxes; and other boxes from the candidates of shards."""

from univip_stream.mining.pipeline import MiningConfig, MiningReport, mine
from univip_stream.mining.refilter import RefilterConfig, refilter
from univip_stream.mining.runner import Compute
from univip_stream.mining.upgrade import upgrade

__all__ = ["Compute", "MiningConfig", "MiningReport", "RefilterConfig", "mine", "refilter", "upgrade"]
