"""What a run says to a person: at its start how long it is and what it trains, and at its end what is doubtful."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch.nn.modules.batchnorm import _BatchNorm

from univip_stream.distributed import Process
from univip_stream.errors import counted
from univip_stream.methods import Method
from univip_stream.pretrain.config import PretrainConfig
from univip_stream.pretrain.initial import FirstWeights
from univip_stream.schedules import cosine_lr

_HUGE = 1e3
"""Weights of this size are a sign of divergence: with normalisation, losses stay finite for any weights. In a healthy ResNet
they stay below some tens."""


@dataclass(frozen=True)
class Length:
    """How long a run is."""

    images: int
    """Images of the shards."""
    steps_per_epoch: float
    steps: int
    """Steps of the whole run."""
    warmup: int
    """Steps in which the learning rate rises."""

    @classmethod
    def of(cls, config: PretrainConfig, images: int, steps_per_epoch: float) -> "Length":
        """Return the length of a run with these settings on that many images."""
        warmup = round(config.optim.warmup_epochs * steps_per_epoch)
        return cls(images, steps_per_epoch, config.total_steps(steps_per_epoch), warmup)


def of_length(length: Length, config: PretrainConfig, process: Process) -> Iterator[str]:
    """Yield the images, the batch and how it is divided, the steps and the epochs."""
    share = config.stream.batch_size // process.world_size
    shared = f", {share} on each of {process.world_size} ranks" if process.world_size > 1 else ""
    at_a_time = f", {share // config.accumulate} at a time" if config.accumulate > 1 else ""
    yield (
        f"{length.images} images; a batch of {config.stream.batch_size}{shared}{at_a_time}; {counted(length.steps, 'step')}, "
        f"{length.steps / length.steps_per_epoch:.1f} epochs"
    )


def of_networks(method: Method, config: PretrainConfig, frozen: int, first: FirstWeights | None) -> Iterator[str]:
    """Yield the method, its backbone and sizes, and where the first weights came from. `frozen` counts parameters."""
    count = sum(parameter.numel() for parameter in method.online_parameters())
    yield (
        f"{config.method.name}, {config.method.backbone}, {count / 1e6:.1f} M parameters; scenes "
        f"{config.views.scene_size} px, {config.views.instances} instances of {config.views.instance_size} px"
    )
    if first is not None:
        yield from first.notes()
    if frozen:
        yield f"{' '.join(config.freeze)} stay as they were: {frozen / 1e6:.2f} M parameters of the backbone"


def of_rates(method: Method, length: Length, config: PretrainConfig) -> Iterator[str]:
    """Yield the optimizer's recipe, and warnings where it does not fit the network or the length of the run."""
    optim = config.optim
    momenta = f"betas {optim.momentum:g}, {optim.beta2:g}" if optim.name == "adamw" else f"momentum {optim.momentum:g}"
    if method.target_pairs():
        first, last = (method.target_momentum(step, length.steps, config.ema) for step in (0, length.steps))
        target = f"target momentum {first:g} to {last:g}"
    else:
        target = "no target network"
    yield (
        f"recipe {config.recipe or 'none'}: {optim.name}, lr {optim.lr:g} after {length.warmup} steps, cosine to "
        f"{optim.final_lr:g}, {momenta}, weight decay {optim.weight_decay:g}; {target}"
    )
    if optim.name != "adamw" and not any(isinstance(module, _BatchNorm) for module in method.backbone.modules()):
        yield (
            f"warning: {config.method.backbone} has no batch normalisation (vision transformers and ConvNeXt have none). This "
            f"recipe's learning rate is for ResNets, and {optim.name} may train it badly at {optim.lr:g}: --recipe vit and "
            "--recipe convnext are for such networks"
        )
    if length.warmup >= length.steps:
        rates = (cosine_lr(step, length.steps, optim.lr, length.warmup, optim.final_lr) for step in range(length.steps))
        yield (
            f"the warm-up takes {length.warmup} steps and the run {length.steps}: the rate gets no higher than {max(rates):g} "
            f"(optim.warmup_epochs is {optim.warmup_epochs:g})"
        )


def doubts(method: Method, rate: float) -> Iterator[str]:
    """Yield warnings about a result that is doubtful although all its numbers are finite. `rate` is the learning rate's peak."""
    largest = max(float(parameter.detach().abs().max()) for parameter in method.online_parameters())
    if largest > _HUGE:
        yield (
            f"the largest weight is {largest:.3g}: the steps were far too large, and little can have been learned, though "
            f"every loss was a number. A smaller optim.lr (it is {rate:g}) helps; it begins with another --out"
        )
