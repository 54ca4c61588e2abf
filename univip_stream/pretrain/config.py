"""The whole configuration of a run: each part's own dataclass, and what the loop itself needs."""

from dataclasses import dataclass, field
from typing import Literal

from univip_stream.augment import AugmentConfig
from univip_stream.errors import UsageError
from univip_stream.methods import MethodConfig, UniVIPConfig
from univip_stream.stream import StreamConfig
from univip_stream.views import ViewConfig


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """How the online network follows its gradient."""

    name: Literal["sgd", "lars", "adamw"] = "sgd"
    """sgd is SGD with momentum; lars (You et al. 2017) adapts the rate of each layer, for batches of thousands; adamw (Loshchilov
    and Hutter 2019) that of each weight, for vision transformers and ConvNeXt. Source: ORL has SGD on COCO, BYOL LARS on
    ImageNet."""
    lr: float = 0.4
    """Highest learning rate, reached after the warm-up, for the batch size as it is: nothing scales it. Source: UniVIP and
    ORL on COCO, 0.2 x 512 / 256."""
    momentum: float = 0.9
    """Momentum of the gradient; AdamW's first beta. Source: ORL and BYOL."""
    beta2: float = 0.999
    """AdamW's second beta, the momentum of the squared gradient. Source: MoCo v3."""
    weight_decay: float = 1e-4
    """How strongly weights are pulled towards zero. Source: ORL on COCO."""
    exclude_norm_and_bias: bool = False
    """Spare normalisations and biases from weight decay and from LARS's adaptation; with AdamW also what the network names, such as
    positions and class tokens. Source: BYOL does, ORL does not."""
    trust: float = 1e-3
    """LARS's trust coefficient, eta. Source: BYOL."""
    warmup_epochs: float = 4.0
    """Epochs in which the learning rate rises from 0 to optim.lr. Source: UniVIP, section 4."""
    final_lr: float = 0.0
    """Learning rate at the end of the cosine. Source: ORL and BYOL."""

    def __post_init__(self) -> None:
        for name in ("lr", "momentum", "weight_decay", "trust", "warmup_epochs", "final_lr"):
            value = getattr(self, name)
            if not 0 <= value < float("inf"):
                raise UsageError(f"optim.{name} is {value}; expected a number of at least 0")
        if not 0 <= self.beta2 < 1:
            raise UsageError(f"optim.beta2 is {self.beta2}; expected a number from 0 to below 1")
        if self.name == "adamw" and self.momentum >= 1:
            raise UsageError(f"optim.momentum is {self.momentum}; expected below 1 with optim.name adamw")


@dataclass(frozen=True, kw_only=True)
class OnlineKnnConfig:
    """kNN on labelled images while the run trains, recorded as `knn_top1`. It changes nothing of the training."""

    train: str | None = None
    """Labelled images that vote: a folder of class folders, or shards; null for no kNN."""
    val: str | None = None
    """Labelled images that are classified: a folder of class folders, or shards."""
    every: int = 1000
    """Steps from one kNN to the next; there is one at the end of the run, too."""
    k: int = 20
    """How many nearest neighbours vote."""

    def __post_init__(self) -> None:
        for name in ("every", "k"):
            if getattr(self, name) < 1:
                raise UsageError(f"knn.{name} is {getattr(self, name)}; expected at least 1")


FEWEST_MEASURED = 8
"""Images, for measures without labels: ranks and spreads of fewer say nothing."""


@dataclass(frozen=True, kw_only=True)
class MeasuresConfig:
    """Measures without labels while the run trains: RankMe, LiDAR, alignment and uniformity, from the first weights on. They change
    nothing of the training, and what they are worth is in docs/results.md."""

    images: int = 0
    """How many images are looked at; 0 for no measures. A run of --src has 256."""
    src: str | None = None
    """Where these images are: photographs or shards that were held back; null for the shards that are trained on."""
    every: int = 1000
    """Steps from one look to the next; there is one before the first step and one at the end of the run, too."""
    views: int = 4
    """How many augmented random crops of an image LiDAR and alignment compare."""

    def __post_init__(self) -> None:
        if self.images != 0 and self.images < FEWEST_MEASURED:
            raise UsageError(f"measures.images is {self.images}; expected 0, or at least {FEWEST_MEASURED}")
        if self.every < 1:
            raise UsageError(f"measures.every is {self.every}; expected at least 1")
        if self.views < 2:
            raise UsageError(f"measures.views is {self.views}; expected at least 2, which are compared")
        if self.src is not None and not self.images:
            raise UsageError(f"measures.src is {self.src}, and measures.images 0; set how many of its images are looked at")


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Everything a run depends on beside the shards."""

    recipe: str = ""
    """Name of the recipe that the settings began as. It is written by --recipe and decides nothing."""
    method: MethodConfig = field(default_factory=UniVIPConfig)
    """The method, its networks and its losses."""
    views: ViewConfig = field(default_factory=ViewConfig)
    """Which scene views and instances are cut out of an image."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """How colours are changed, and how images are normalised."""
    stream: StreamConfig = field(default_factory=lambda: StreamConfig(batch_size=512))
    """How shards are read: batch size, workers, shuffling, caches."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """The optimizer and its learning rate."""
    knn: OnlineKnnConfig = field(default_factory=OnlineKnnConfig)
    """kNN on labelled images while the run trains."""
    measures: MeasuresConfig = field(default_factory=MeasuresConfig)
    """Measures without labels while the run trains."""
    epochs: float | None = 800
    """How long to train, in passes over all images; null where steps says it. Source: UniVIP, section 4."""
    steps: int | None = None
    """How long to train, in updates; wins over epochs."""
    init_from: str | None = None
    """Where the backbone's first weights come from: a run folder, a checkpoint, a safetensors file or a file of torch.save, as
    --init names it; null for method.init's. Read once, when the run begins."""
    freeze: tuple[str, ...] = ()
    """Parts of the backbone that stay as they were, such as stem and layer1: no gradient, statistics as they are."""
    ema: float = 0.99
    """Momentum of the target network at the start; it rises to 1 along a cosine. Source: UniVIP, section 4."""
    seed: int = 0
    """Decides the first weights, the order of the images, views and augmentations."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Number format of the networks' arithmetic; losses are float32 always. auto is bf16 where the hardware multiplies it."""
    channels_last: bool = True
    """Keep images in memory channels last: the same numbers, faster convolutions."""
    compile: bool = False
    """Compile the networks, and on a GPU the augmentations, with torch.compile: a slow start, then perhaps faster steps."""
    accumulate: int = 1
    """How many parts a rank computes its share of a batch in, one after the other, to save memory. Batch statistics are then
    those of a part."""
    sync_batchnorm: bool = True
    """Take batch statistics over the images of all ranks. Source: ORL and BYOL."""
    record_every: int = 10
    """Steps from one line of metrics.jsonl to the next."""
    checkpoint_every: int = 1000
    """Steps from one checkpoint to the next."""
    keep_checkpoints: int = 2
    """How many of the newest checkpoints are kept."""
    log: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ()
    """Where metrics go beside metrics.jsonl, as --log names it. TensorBoard's events are written where it is installed, asked for
    or not."""

    def __post_init__(self) -> None:
        for name, least in (("accumulate", 1), ("record_every", 1), ("checkpoint_every", 1), ("keep_checkpoints", 1)):
            if getattr(self, name) < least:
                raise UsageError(f"{name} is {getattr(self, name)}; expected at least {least}")
        if self.steps is None and self.epochs is None:
            raise UsageError("neither steps nor epochs is set; set one of them, which says how long to train")
        if self.steps is not None and self.steps < 1:
            raise UsageError(f"steps is {self.steps}; expected at least 1")
        if self.epochs is not None and not 0 < self.epochs < float("inf"):
            raise UsageError(f"epochs is {self.epochs}; expected more than 0")
        if not 0 <= self.seed < 1 << 63:
            raise UsageError(f"seed is {self.seed}; expected 0 to 2 ** 63 - 1")
        if self.init_from is not None and self.method.pretrained:
            raise UsageError(
                "init_from and method.pretrained both say where the first weights come from; expected one of them"
            )
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
        "log",
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
        "measures.images",
        "measures.src",
        "measures.every",
        "measures.views",
    }
)
"""Settings that a run may change when it continues: they decide how, never what."""
