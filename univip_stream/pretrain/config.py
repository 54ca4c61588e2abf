"""The whole configuration of a run: each part's own dataclass, and what the loop itself needs."""

from dataclasses import dataclass, field
from typing import Literal

from univip_stream.augment import AugmentConfig
from univip_stream.errors import UsageError
from univip_stream.methods import MethodConfig
from univip_stream.stream import StreamConfig
from univip_stream.views import ViewConfig


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """How the online network follows its gradient."""

    name: Literal["sgd", "lars"] = "sgd"
    """SGD with momentum, or LARS (You et al. 2017) for large batches."""
    lr: float = 0.4
    """Peak learning rate, for the batch size as it is: nothing scales it."""
    momentum: float = 0.9
    """Of the gradient."""
    weight_decay: float = 1e-4
    """Pull of the weights towards zero."""
    exclude_norm_and_bias: bool = False
    """Spare normalisations and biases from weight decay and from LARS's adaptation, as BYOL does."""
    trust: float = 1e-3
    """LARS's trust coefficient eta."""
    warmup_epochs: float = 4.0
    """Epochs of linear warm-up."""
    final_lr: float = 0.0
    """Where the cosine ends."""

    def __post_init__(self) -> None:
        for name in ("lr", "momentum", "weight_decay", "trust", "warmup_epochs", "final_lr"):
            value = getattr(self, name)
            if not 0 <= value < float("inf"):
                raise UsageError(f"optim.{name} is {value}; expected a number of at least 0")


@dataclass(frozen=True, kw_only=True)
class OnlineKnnConfig:
    """kNN on labelled images while the run trains, recorded as `knn_top1`. It changes nothing of the training."""

    train: str | None = None
    """Labelled images that vote: a folder of class folders, or shards. None: no kNN."""
    val: str | None = None
    """Labelled images to classify."""
    every: int = 1000
    """Steps between two times; the end of the run is one too."""
    k: int = 20
    """Neighbours that vote."""

    def __post_init__(self) -> None:
        for name in ("every", "k"):
            if getattr(self, name) < 1:
                raise UsageError(f"knn.{name} is {getattr(self, name)}; expected at least 1")


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Everything a run depends on beside the shards."""

    recipe: str = ""
    """The recipe it began as."""
    method: MethodConfig = field(default_factory=MethodConfig)
    """Networks and losses."""
    views: ViewConfig = field(default_factory=ViewConfig)
    """Scenes and instances."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Jitter to solarize."""
    stream: StreamConfig = field(default_factory=lambda: StreamConfig(batch_size=512))
    """Batch size, workers, shuffling."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """Learning rate and its like."""
    knn: OnlineKnnConfig = field(default_factory=OnlineKnnConfig)
    """A look at the features now and then."""
    epochs: float | None = 800
    """How long, in passes over the images; or say `steps`."""
    steps: int | None = None
    """How long, in updates; wins over `epochs`."""
    ema: float = 0.99
    """Momentum of the target network at the start; it rises to 1 along a cosine."""
    seed: int = 0
    """Of weights, order, views and augmentations."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Of the networks' arithmetic; losses are float32 always. auto: bf16 where the hardware has it."""
    channels_last: bool = True
    """Memory layout of the images; the same numbers, faster convolutions."""
    compile: bool = False
    """torch.compile the networks."""
    accumulate: int = 1
    """Parts a rank's share of a batch is computed in, one after the other. Batch statistics are then those of a part."""
    sync_batchnorm: bool = True
    """Batch statistics over all ranks."""
    record_every: int = 10
    """Steps between two lines of metrics.jsonl."""
    checkpoint_every: int = 1000
    """Steps between two checkpoints."""
    keep_checkpoints: int = 2
    """How many of the last stay."""

    def __post_init__(self) -> None:
        for name, least in (("accumulate", 1), ("record_every", 1), ("checkpoint_every", 1), ("keep_checkpoints", 1)):
            if getattr(self, name) < least:
                raise UsageError(f"{name} is {getattr(self, name)}; expected at least {least}")
        if self.steps is None and self.epochs is None:
            raise UsageError("neither steps nor epochs is set; one must say how long to train")
        if self.steps is not None and self.steps < 1:
            raise UsageError(f"steps is {self.steps}; expected at least 1")
        if self.epochs is not None and not 0 < self.epochs < float("inf"):
            raise UsageError(f"epochs is {self.epochs}; expected a number above 0")
        if not 0 <= self.seed < 1 << 63:
            raise UsageError(f"seed is {self.seed}; expected 0 to 2 ** 63 - 1")
        if not 0 <= self.ema <= 1:
            raise UsageError(f"ema is {self.ema}; expected 0 to 1")

    def total_steps(self, steps_per_epoch: float) -> int:
        """Updates of the whole run; at least one."""
        return self.steps if self.steps is not None else max(1, round((self.epochs or 0) * steps_per_epoch))


HARMLESS = frozenset(
    {
        "recipe",
        "record_every",
        "checkpoint_every",
        "keep_checkpoints",
        "stream.workers",
        "stream.prefetch",
        "stream.cache",
        "stream.cache_bytes",
        "stream.decoded_cache",
        "stream.decoded_bytes",
        "compile",
        "views.pairs",  # where the file is; what is in it is held by `rundir`
        "knn.train",
        "knn.val",
        "knn.every",
        "knn.k",
    }
)
"""Settings that a run may change when it continues: they decide how, never what."""
