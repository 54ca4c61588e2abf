"""Where a run's first weights come from, and which parts of its backbone stay as they were: `--init` and `--freeze`."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from univip_stream.errors import InputError, UsageError, why
from univip_stream.methods import Method
from univip_stream.networks import Backbone
from univip_stream.pretrain.load import load_backbone
from univip_stream.suggest import did_you_mean

_WRAPPERS = ("state_dict", "model", "model_state", "teacher", "student", "network", "module")
"""Keys under which published checkpoints keep their weights."""
_SHOWN = 4
"""Names of each kind that are listed."""
_STEMS = ({"conv1", "bn1"}, {"stem"}, {"patch_embed", "pos_embed", "cls_token", "reg_token"})
"""What `stem` stands for: in ResNets, in ConvNeXt and its like, in vision transformers."""
MOST_MISSHAPEN = 3
LEAST_SHARE = 0.5
"""Share of a backbone's numbers that a file must fit. Below, it is another network's: a run would begin at random unnoticed."""


@dataclass(frozen=True, kw_only=True)
class FirstWeights:
    """Weights for a backbone's trunk, and how they fit."""

    origin: str
    """As the user named it."""
    weights: dict[str, Tensor]
    """Those that fit, by the trunk's names."""
    missing: list[str]
    """Tensors of the trunk that the origin does not have; they begin at random."""
    misshapen: list[str]
    """Tensors that both have, in unlike shapes; they begin at random too."""
    unused: list[str]
    """Tensors of the origin that the trunk does not have, such as a classifier."""

    def digest(self) -> str:
        """SHA-256 over names and bytes of the weights that fit."""
        found = hashlib.sha256()
        for name, value in sorted(self.weights.items()):
            found.update(name.encode())
            found.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return found.hexdigest()

    def notes(self) -> Iterator[str]:
        """Return what a person should know before the first step."""
        total = len(self.weights) + len(self.missing) + len(self.misshapen)
        yield f"first weights from {self.origin}: {len(self.weights)} of the backbone's {total} tensors"
        kinds = (
            ("not there, so they begin at random", self.missing),
            ("of another shape there, so they begin at random", self.misshapen),
            ("there and not in this backbone, so they are left out", self.unused),
        )
        for what, names in kinds:
            if names:
                more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
                yield f"  {len(names)} {what}: {', '.join(names[:_SHOWN])}{more}"


def first_weights(origin: str, backbone: Backbone, name: str, *, option: str = "--init") -> FirstWeights:
    """Read weights for a backbone.

    Args:
        origin: a run folder or checkpoint of ours, a safetensors file, or a file that `torch.save` wrote (.pth, .pt, .bin), with
            torchvision's or timm's names.
        backbone: that is to have them; it is not changed.
        name: what the backbone is called.
        option: how the origin was named, for messages.

    Raises:
        InputError: nothing there, a file that cannot be read, or weights of another network.

    """
    own = backbone.trunk.state_dict()
    found = _renamed(_read(origin, option), own)
    fitting = {key: value for key, value in found.items() if key in own and own[key].shape == value.shape}
    misshapen = [
        f"{key} {_shape(found[key])} there, {_shape(own[key])} here" for key in own if key in found and key not in fitting
    ]
    missing = [key for key in own if key not in found and not key.endswith("num_batches_tracked")]
    counted = [key for key in own if not key.endswith("num_batches_tracked")]
    share = sum(own[key].numel() for key in counted if key in fitting) / sum(own[key].numel() for key in counted)
    # A first convolution and a grid of places may be of another shape. Half of a ResNet-50 fits a ResNet-18 by chance.
    if share < LEAST_SHARE or len(misshapen) > MOST_MISSHAPEN:
        first = next(iter(found), "none")
        theirs = f" {_shape(found[first])}" if first in found else ""
        raise InputError(
            f"{option} {origin} fits {sum(key in fitting for key in counted)} of the {len(counted)} tensors of {name}, and is "
            f"another network's: its first is {first!r}{theirs}, ours {counted[0]!r} {_shape(own[counted[0]])}; expected "
            "weights of this backbone (--backbone names another)"
        )
    bad = [key for key, value in fitting.items() if value.is_floating_point() and not torch.isfinite(value).all()]
    if bad:
        raise InputError(
            f"{option} {origin} has values that are no numbers ({len(bad)} tensors, such as {bad[0]}); use other weights"
        )
    return FirstWeights(
        origin=origin, weights=fitting, missing=missing, misshapen=misshapen, unused=[key for key in found if key not in own]
    )


def begin_with(method: Method, first: FirstWeights) -> None:
    """Give the online backbone its first weights, and every target a copy of its online module."""
    method.backbone.trunk.load_state_dict(first.weights, strict=False)
    for target, online in method.target_pairs():
        target.load_state_dict(online.state_dict())


def freeze(method: Method, names: Sequence[str]) -> int:
    """Keep parts of every backbone of a method as they are: no gradient, and statistics of normalisations that stay.

    Args:
        method: whose backbones, online and target.
        names: modules or parameters of the trunk, such as layer1 or blocks.0; `stem` is what comes before the first stage.

    Returns:
        How many parameters of the online backbone are kept.

    Raises:
        UsageError: the trunk has no such part, or nothing would be left to train.

    """
    for backbone in (module for module in method.modules() if isinstance(module, Backbone)):
        for part in _parts(backbone.trunk, names):
            if isinstance(part, nn.Parameter):
                part.requires_grad_(False)
                continue
            part.requires_grad_(False)
            _stay_in_evaluation(part)
    own = list(method.backbone.trunk.parameters())
    kept = sum(not parameter.requires_grad for parameter in own)
    if kept == len(own):
        raise UsageError(f"--freeze {' '.join(names)} leaves nothing of the backbone to train; name fewer parts")
    return sum(parameter.numel() for parameter in own if not parameter.requires_grad)


def _parts(trunk: nn.Module, names: Sequence[str]) -> list[nn.Module | nn.Parameter]:
    known: dict[str, nn.Module | nn.Parameter] = dict(trunk.named_parameters())
    known |= {name: module for name, module in trunk.named_modules() if name}
    top = [name for name in known if "." not in name]
    found = []
    for name in names:
        stem = next((sorted(stem & known.keys()) for stem in _STEMS if stem & known.keys()), []) if name == "stem" else []
        wanted = [name] if name in known else stem
        if not wanted:
            guess = did_you_mean(name, known) or f"; expected stem, or parts such as {', '.join(top[:8])}"
            raise UsageError(f"--freeze {name}: the backbone has no such part{guess}")
        found += [known[part] for part in wanted]
    return found


def _stay_in_evaluation(module: nn.Module) -> None:
    """Leave a module and all in it in evaluation mode, whatever mode what holds it is put into."""
    for child in module.modules():
        child.training = False
        child.train = lambda mode=True, *, child=child: child  # type: ignore[method-assign,misc,assignment]


def _read(origin: str, option: str) -> dict[str, Tensor]:
    path = Path(origin)
    if not path.exists():
        raise InputError(f"{option} {origin}: nothing is there; expected a run folder, or a file of weights")
    if path.is_dir():
        return dict(load_backbone(path)[0].trunk.state_dict())
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # of safetensors, zip, pickle: a file may be damaged in any way
        raise InputError(
            f"{option} {origin} cannot be read as weights ({' '.join(why(error).split())[:200]}); expected a run folder, "
            "safetensors, or a file that torch.save wrote of tensors alone"
        ) from error
    if isinstance(loaded, Mapping) and {"method", "config"} <= loaded.keys():  # a checkpoint of ours
        return dict(load_backbone(path)[0].trunk.state_dict())
    weights = tensors_in(loaded)
    if not weights:
        raise InputError(f"{option} {origin} holds no tensors by name; expected a state_dict")
    return weights


def tensors_in(loaded: Any) -> dict[str, Tensor]:
    """Return the state_dict that a file holds."""
    if not isinstance(loaded, Mapping):
        return {}
    found = {str(key): value for key, value in loaded.items() if isinstance(value, Tensor)}
    if len(found) > 1:
        return found
    for key in _WRAPPERS:
        if inner := tensors_in(loaded.get(key)):
            return inner
    return found


def _renamed(weights: dict[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without what stands before the names of the trunk, such as `module.backbone.`: that under which most tensors fit."""
    beginnings = {""}
    for name in weights:
        for key in ("conv1.weight", "stem.0.weight", "stem.conv.weight", "patch_embed.proj.weight", next(iter(own))):
            if name.endswith(f".{key}"):
                beginnings.add(name.removesuffix(key))

    def fits(beginning: str) -> int:
        cut = len(beginning)
        return sum(
            name.startswith(beginning) and name[cut:] in own and own[name[cut:]].shape == value.shape
            for name, value in weights.items()
        )

    # MoCo's file holds its queries' network and, equally long and fitting, the average of it: the papers transfer the first.
    best = max(sorted(beginnings, key=lambda text: (len(text), "_k." in text, text)), key=fits)
    return {name[len(best) :]: value for name, value in weights.items() if name.startswith(best)}


def _shape(value: Tensor) -> str:
    return " x ".join(map(str, value.shape)) or "a number"
