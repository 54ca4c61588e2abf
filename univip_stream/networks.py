"""The networks around the losses: backbones by name, the two heads, the moving average, and batch normalisation per view.

Letters: B images, V views in one batch, D width of a vector.
"""

import copy
import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from univip_stream.errors import InputError, UsageError
from univip_stream.shapes import Float
from univip_stream.suggest import did_you_mean

AnyModule = TypeVar("AnyModule", bound=nn.Module)


class Backbone(nn.Module):
    """A trunk that turns images (B, 3, H, W) into pooled features (B, D), where D is `.width`."""

    def __init__(self, trunk: nn.Module, width: int) -> None:
        super().__init__()
        self.trunk = trunk
        self.width = width

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B D"]:
        return cast(Tensor, self.trunk(images))


def build_backbone(
    name: str,
    *,
    pretrained: bool = False,
    small_stem: bool = False,
    instead: str = "leave method.pretrained off to begin with random weights",
) -> Backbone:
    """Build a backbone by name: a torchvision ResNet (resnet18, resnet50, wide_resnet50_2 ...) or any timm model.

    If both have a name, it means torchvision's, as in the paper; `timm/NAME` asks for timm's.

    Args:
        name: name of the backbone.
        pretrained: download the weights of the library.
        small_stem: give a ResNet a first convolution of 3 x 3 with stride 1 and no max-pooling, for images of 32 to 96
            pixels.
        instead: how the sentence ends that says that the library's weights cannot be had.

    Raises:
        UsageError: neither library has the name, or a small stem is asked for on another architecture.
        InputError: the weights cannot be downloaded.

    """
    try:
        trunk, width = _trunk(name, pretrained)
    except UsageError:
        raise
    except Exception as error:  # from urllib, requests, httpx, a hub or a disk: whatever the library uses
        if not pretrained:
            raise
        why = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(
            f"the library's weights of {name} cannot be had ({why[0]}). They are downloaded once, and kept below $TORCH_HOME "
            f"(torchvision) or $HF_HOME (timm): fetch them where a network is and copy that folder, or {instead}"
        ) from error
    if small_stem:
        _make_stem_small(trunk, name)
    return Backbone(trunk, width)


def _trunk(name: str, pretrained: bool) -> tuple[Any, int]:
    """Return (the network without its classifier, the width of its features)."""
    import torchvision.models as zoo

    if name in _torchvision_resnets():
        trunk = zoo.get_model(name, weights="DEFAULT" if pretrained else None)
        width = trunk.fc.in_features
        trunk.fc = nn.Identity()
    else:
        import timm

        bare = name.removeprefix("timm/")
        if not timm.is_model(bare):
            raise UsageError(_unknown_backbone(name, timm.list_models()))
        try:  # Vision transformers get two image sizes here (scenes and instances), and must be prepared for that.
            trunk = timm.create_model(bare, pretrained=pretrained, num_classes=0, dynamic_img_size=True)
        except TypeError:
            trunk = timm.create_model(bare, pretrained=pretrained, num_classes=0)
        width = getattr(trunk, "head_hidden_size", trunk.num_features)
    return trunk, width


def projector(in_width: int, hidden: int, out_width: int) -> nn.Sequential:
    """Return BYOL's head, for projector and predictor alike: linear, BN, ReLU, and a last linear layer without bias or BN."""
    return nn.Sequential(
        nn.Linear(in_width, hidden), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True), nn.Linear(hidden, out_width, bias=False)
    )


def initialise_kaiming(module: nn.Module) -> None:
    """Draw the weights of every convolution and linear layer: Kaiming normal, fan-in, gain of a ReLU; biases become 0.

    ORL's code begins this way, backbone and heads alike; torchvision's ResNets use fan-out, torch's linear layers uniform
    weights.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, mode="fan_in", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def frozen_copy(module: AnyModule) -> AnyModule:
    """Return a deep copy that no gradient reaches, with which a target network starts."""
    return copy.deepcopy(module).requires_grad_(False)


@torch.no_grad()
def update_ema(target: nn.Module, online: nn.Module, momentum: float) -> None:
    """Update every parameter in place by Eq. 1: target = momentum * target + (1 - momentum) * online.

    Buffers stay as they are: a target network in train mode keeps its own batch statistics.
    """
    torch._foreach_lerp_(list(target.parameters()), list(online.parameters()), 1 - momentum)


class ViewBatchNorm:
    """Mixin for a batch normalisation whose batch consists of `views` equal groups, each with its own statistics.

    The result is the same, to the bit, as one call for each group in turn, including running statistics. With `over_ranks`
    the statistics of a group are those of all processes together, as in torch's SyncBatchNorm, which refuses CPU tensors.
    """

    views: int = 1
    over_ranks: bool = False

    def forward(self, batch: Tensor) -> Tensor:
        training = cast(nn.Module, self).training
        together = self.over_ranks and training and dist.is_initialized() and dist.get_world_size() > 1
        one_view = self._over_ranks if together else super().forward  # type: ignore[misc]
        if self.views == 1 or not training:
            return cast(Tensor, one_view(batch))
        if len(batch) % self.views:
            raise ValueError(f"a batch of {len(batch)} does not split into {self.views} views")
        if batch.device.type != "cpu" and not together and self._can_write_views():
            return self._write_views(batch)
        return torch.cat([one_view(view) for view in batch.chunk(self.views)])

    def _can_write_views(self) -> bool:
        """Return whether this is PyTorch's own normalisation with its usual settings, and not being compiled."""
        norm = cast(Any, self)
        own = type(self).__bases__[1] in (nn.BatchNorm1d, nn.BatchNorm2d) and norm.affine and norm.track_running_stats
        return bool(own and norm.momentum is not None and not torch.compiler.is_compiling())

    def _write_views(self, batch: Tensor) -> Tensor:
        """Normalise each view into its place of the output. Only sums of weight gradients are rounded differently."""
        norm = cast(Any, self)
        norm.num_batches_tracked.add_(self.views)
        given = (batch, norm.weight, norm.bias, norm.running_mean, norm.running_var, self.views, norm.momentum, norm.eps)
        return cast(Tensor, _NormalisedViews.apply(*given))  # type: ignore[no-untyped-call]

    def _over_ranks(self, batch: Tensor) -> Tensor:
        """Normalise with the mean and variance over all processes. The gradient passes through both, as in one big batch."""
        norm = cast(Any, self)
        axes = [0, *range(2, batch.ndim)]
        full = torch.promote_types(batch.dtype, torch.float32)
        variance_C, mean_C = torch.var_mean(batch.to(full), axes, correction=0)
        # From here on in float64: in float32 the difference of two squares below would lose digits.
        mean_C, variance_C = mean_C.double(), variance_C.double()
        count = batch.numel() / batch.shape[1]
        sums = torch.cat([count * mean_C, count * (variance_C + mean_C.square()), mean_C.new_tensor([count])])
        sums = cast(Tensor, _SumOverRanks.apply(sums))  # type: ignore[no-untyped-call]
        total = sums[-1]
        mean_C, square_C = (sums[:-1] / total).chunk(2)
        variance_C = square_C - mean_C.square()
        if norm.track_running_stats:
            norm.num_batches_tracked += 1
            share = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
            with torch.no_grad():
                norm.running_mean.lerp_(mean_C.to(norm.running_mean.dtype), share)
                norm.running_var.lerp_((variance_C * total / (total - 1)).to(norm.running_var.dtype), share)
        scale_C = (variance_C + norm.eps).rsqrt()
        shift_C = -mean_C * scale_C
        if norm.affine:
            scale_C, shift_C = scale_C * norm.weight, shift_C * norm.weight + norm.bias
        shape = [1, -1] + [1] * (batch.ndim - 2)
        out = (batch * scale_C.to(full).view(shape) + shift_C.to(full).view(shape)).to(batch.dtype)
        # timm's normalisations contain these two.
        for name in ("drop", "act"):
            out = getattr(norm, name)(out) if hasattr(norm, name) else out
        return cast(Tensor, out)


class _NormalisedViews(torch.autograd.Function):
    """Batch normalisation of each view, written into the output directly; torch.cat would copy all views once more."""

    @staticmethod
    def forward(
        ctx: Any,
        batch: Tensor,
        weight: Tensor,
        bias: Tensor,
        mean: Tensor,
        var: Tensor,
        views: int,
        momentum: float,
        eps: float,
    ) -> Tensor:
        out = torch.empty_like(batch)
        full = torch.promote_types(batch.dtype, torch.float32)
        saved = [batch.new_empty(batch.shape[1], dtype=full) for _ in range(2 * views)]
        for number, (view, goal) in enumerate(zip(batch.chunk(views), out.chunk(views), strict=True)):
            where = (goal, *saved[2 * number : 2 * number + 2])
            torch.native_batch_norm(view, weight, bias, mean, var, True, momentum, eps, out=where)
        ctx.save_for_backward(batch, weight, *saved)
        ctx.views, ctx.eps = views, eps
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        batch, weight, *saved = ctx.saved_tensors
        wanted = list(ctx.needs_input_grad[:3])
        of_batch = torch.empty_like(batch) if wanted[0] else None
        of_weight = of_bias = None
        for number in reversed(range(ctx.views)):  # in the order in which autograd would add up
            given, view = gradient.chunk(ctx.views)[number], batch.chunk(ctx.views)[number]
            here = torch.ops.aten.native_batch_norm_backward(
                given, view, weight, None, None, *saved[2 * number : 2 * number + 2], True, ctx.eps, wanted
            )
            if of_batch is not None:
                of_batch.chunk(ctx.views)[number].copy_(here[0])
            if wanted[1]:
                of_weight = here[1] if of_weight is None else of_weight + here[1]
            if wanted[2]:
                of_bias = here[2] if of_bias is None else of_bias + here[2]
        return of_batch, of_weight, of_bias, None, None, None, None, None


class _SumOverRanks(torch.autograd.Function):
    """Sums a tensor over all processes, and its gradient in the backward pass."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        summed = values.clone()
        dist.all_reduce(summed)
        return summed

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        summed = gradient.clone()
        dist.all_reduce(summed)
        return summed


def per_view_batchnorm(module: nn.Module) -> nn.Module:
    """Give every batch normalisation in a module a `views` count, at first 1, in place, and return the module.

    It works for BatchNorm, SyncBatchNorm and timm's variants. Call it again after a conversion between them, which drops the
    count. Parameters, buffers and names of the state stay the same. Set the count with `views_in_batch`.
    """
    for child in module.modules():
        if isinstance(child, _BatchNorm) and not isinstance(child, ViewBatchNorm):
            child.__class__ = _view_class(cast(Any, type(child)))
    return module


def synchronise_batchnorm(module: nn.Module, device: str = "cuda") -> nn.Module:
    """Make every batch normalisation use the statistics of all processes, still separately for each view.

    On "cpu" it is our own, elsewhere torch's SyncBatchNorm, which refuses CPU tensors if there are several processes. Call it
    before the optimizer and DDP are built.

    Returns:
        The module to use from now on: a module that is itself a batch normalisation is replaced.

    """
    if device == "cpu":
        for child in per_view_batchnorm(module).modules():
            if isinstance(child, ViewBatchNorm):
                child.over_ranks = True
        return module
    from timm import layers  # knows timm's normalisations with activation, which torch's conversion does not

    synchronised: nn.Module = layers.convert_sync_batchnorm(module)  # type: ignore[attr-defined,no-untyped-call]
    return per_view_batchnorm(synchronised)


@contextmanager
def views_in_batch(module: nn.Module, views: int) -> Iterator[None]:
    """While inside: a batch given to the module consists of `views` equal groups, each normalised with its own statistics."""
    norms = [child for child in module.modules() if isinstance(child, ViewBatchNorm)]
    for norm in norms:
        norm.views = views
    try:
        yield
    finally:
        for norm in norms:
            norm.views = 1


class _Tally:
    """Replaces the counter of a batch normalisation, and counts on the host."""

    def __init__(self) -> None:
        self.count = 0

    def add_(self, number: int) -> None:
        self.count += number


@contextmanager
def counted_together(norms: list[nn.Module]) -> Iterator[None]:
    """While inside: `num_batches_tracked` of these normalisations does not change; afterwards it has its usual value.

    The counter is on the device, and each forward pass of each normalisation launches a kernel to add 1: three hundred in a
    step of UniVIP with ResNet-50. Here counters with the same count are increased together. Do not use it with `compile`,
    which would see a Python object change, nor for normalisations without `momentum`, which compute with the counter.
    """
    counters = [norm._buffers["num_batches_tracked"] for norm in norms]
    tallies = [_Tally() for _ in norms]
    for norm, tally in zip(norms, tallies, strict=True):
        norm._buffers["num_batches_tracked"] = cast(Tensor, tally)
    try:
        yield
    finally:
        counted: dict[int, list[Tensor]] = {}
        for norm, counter, tally in zip(norms, counters, tallies, strict=True):
            norm._buffers["num_batches_tracked"] = counter
            if tally.count:
                counted.setdefault(tally.count, []).append(cast(Tensor, counter))
        with torch.no_grad():
            for count, of_count in counted.items():
                torch._foreach_add_(of_count, count)


def countable_together(module: nn.Module) -> list[nn.Module]:
    """Return the normalisations whose counters are on an accelerator, for `counted_together`; none of a compiled module."""
    norms = [child for child in module.modules() if isinstance(child, _BatchNorm)]
    compiled = any(getattr(child, "_compiled_call_impl", None) is not None for child in module.modules())
    away = [norm for norm in norms if norm.num_batches_tracked is not None and norm.num_batches_tracked.device.type != "cpu"]
    return [] if compiled else [norm for norm in away if norm.momentum is not None]


@functools.cache
def _view_class(base: type[nn.Module]) -> Any:
    """Return `base` with ViewBatchNorm mixed in, always the same class for a base, so that copies and guards see one type."""
    return type(f"View{base.__name__}", (ViewBatchNorm, base), {"__doc__": ViewBatchNorm.__doc__})


@functools.cache
def _torchvision_resnets() -> frozenset[str]:
    import torchvision.models as zoo

    # ResNet, ResNeXt and Wide ResNet are all the same class, with the pooled features before `.fc`.
    return frozenset(name for name in zoo.list_models(module=zoo) if "resne" in name)


def _unknown_backbone(name: str, timm_names: list[str]) -> str:
    known = [*sorted(_torchvision_resnets()), *timm_names]
    guess = did_you_mean(name, known, most=3) or "; expected one such as resnet50, or a timm model such as convnext_tiny"
    return f"there is no backbone {name!r} in torchvision's ResNets or in timm{guess}"


def _make_stem_small(trunk: nn.Module, name: str) -> None:
    stem = getattr(trunk, "conv1", None)
    if not isinstance(stem, nn.Conv2d) or not hasattr(trunk, "maxpool"):
        raise UsageError(f"small_stem is for ResNets, and {name} is not one: turn it off, or choose resnet18 or resnet50.")
    trunk.conv1 = nn.Conv2d(3, stem.out_channels, kernel_size=3, padding=1, bias=False)
    nn.init.kaiming_normal_(trunk.conv1.weight, mode="fan_out", nonlinearity="relu")
    trunk.maxpool = nn.Identity()
