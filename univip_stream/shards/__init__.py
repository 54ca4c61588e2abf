"""The shard format: the contents of a shard, its index and the manifest, and how they are written, found, read and checked.

`shards/README.md` of the repository describes it field by field.
"""

from univip_stream.shards.index import ShardIndex, ShardSet
from univip_stream.shards.open import open_index, open_shards
from univip_stream.shards.spec import expand_shards

__all__ = ["ShardIndex", "ShardSet", "expand_shards", "open_index", "open_shards"]
