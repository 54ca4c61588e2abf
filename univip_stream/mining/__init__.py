"""Mining turns images into shards of images and boxes. It also chooses other boxes from the candidates of shards."""

from univip_stream.mining.join import join_parts
from univip_stream.mining.part import PartOf
from univip_stream.mining.parts import PartReport, mine_part
from univip_stream.mining.pipeline import MiningConfig, MiningReport, mine
from univip_stream.mining.refilter import RefilterConfig, refilter
from univip_stream.mining.runner import Compute
from univip_stream.mining.upgrade import upgrade

__all__ = [
    "Compute", "MiningConfig", "MiningReport", "PartOf", "PartReport", "RefilterConfig", "join_parts", "mine", "mine_part",
    "refilter", "upgrade",
]  # fmt: skip
