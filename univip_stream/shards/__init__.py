"""The shard format: what a shard, its index and the manifest hold; writing, finding, reading and checking them.

`shards/README.md` of the repository describes it field by field.
"""

from univip_stream.shards.index import ShardIndex, open_index
from univip_stream.shards.spec import expand_shards

__all__ = ["ShardIndex", "expand_shards", "open_index"]
