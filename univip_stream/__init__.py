"""univip-stream: mine region proposals into WebDataset shards, and train UniVIP from them.

This imports nothing heavy: mining works without torch, training without Ray.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from univip_stream.shards.huggingface import huggingface_features as huggingface_features
    from univip_stream.stream import ShardDataset as ShardDataset

__all__ = ["ShardDataset", "__version__", "huggingface_features"]


def __getattr__(name: str) -> Any:
    # ShardDataset needs torch; it is imported when asked for, so that `univip-stream mine` never loads it.
    if name == "ShardDataset":
        from univip_stream.stream import ShardDataset

        return ShardDataset
    if name == "huggingface_features":
        from univip_stream.shards.huggingface import huggingface_features

        return huggingface_features
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
