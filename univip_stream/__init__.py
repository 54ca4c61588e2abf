"""univip-stream: mine region proposals into WebDataset shards, and train UniVIP from them.

This imports nothing heavy: mining works without torch, training without Ray.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from univip_stream.api.detecting import Detect as Detect
    from univip_stream.api.embedding import EmbedConfig as EmbedConfig
    from univip_stream.api.embedding import embed as embed
    from univip_stream.api.judging import Finetune as Finetune
    from univip_stream.api.judging import Knn as Knn
    from univip_stream.api.judging import Linear as Linear
    from univip_stream.api.judging import evaluate as evaluate
    from univip_stream.api.mining import mine as mine
    from univip_stream.api.training import TrainConfig as TrainConfig
    from univip_stream.api.training import train as train
    from univip_stream.boxes import BoxFilter as BoxFilter
    from univip_stream.errors import InputError as InputError
    from univip_stream.errors import UsageError as UsageError
    from univip_stream.mining import MiningConfig as MiningConfig
    from univip_stream.pretrain import Interrupted as Interrupted
    from univip_stream.pretrain import load_backbone as load_backbone
    from univip_stream.shards.huggingface import huggingface_features as huggingface_features
    from univip_stream.stream import ShardDataset as ShardDataset

# Imported when asked for, so that mining never loads torch, nor training Ray.
_WHERE = {
    "BoxFilter": "boxes",
    "Detect": "api.detecting",
    "EmbedConfig": "api.embedding",
    "Finetune": "api.judging",
    "InputError": "errors",
    "Interrupted": "pretrain",
    "Knn": "api.judging",
    "Linear": "api.judging",
    "MiningConfig": "mining",
    "ShardDataset": "stream",
    "TrainConfig": "api.training",
    "UsageError": "errors",
    "embed": "api.embedding",
    "evaluate": "api.judging",
    "huggingface_features": "shards.huggingface",
    "load_backbone": "pretrain",
    "mine": "api.mining",
    "train": "api.training",
}

__all__ = ["__version__", *_WHERE]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_WHERE])
