"""BYOL's image augmentations on batches of uint8, on any device, from numbers drawn beforehand.

`draw` takes the numbers from the sample's own generator, in the worker; `augment` applies them to a whole batch without
asking the device for anything. So an image's augmentation depends on its place in the sequence alone.

Shape letters: N images, S their side, P numbers of a draw, R taps of a blur, C channels.
"""

import functools
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from univip_stream.errors import UsageError
from univip_stream.shapes import Float, Float32, UInt8

# Columns of a draw.
_FLIP, _BRIGHTNESS, _CONTRAST, _SATURATION, _HUE, _ORDER, _GREY, _SIGMA, _SOLARIZE = (0, 1, 2, 3, 4, 5, 9, 10, 11)
DRAW_SIZE = 12
"""P: numbers of one image's augmentation."""
_BLENDS = (_BRIGHTNESS, _CONTRAST, _SATURATION)
# ITU-R BT.601 luma, as Pillow and torchvision turn colours to grey.
_LUMA = (0.2989, 0.587, 0.114)


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """BYOL's numbers (arXiv:2006.07733, table 6 and its code; ORL's COCO recipe has the same)."""

    flip_p: float = 0.5
    """Chance of a horizontal flip."""
    jitter_p: float = 0.8
    """Chance of colour jitter."""
    brightness: float = 0.4
    """Factor drawn from 1 - b to 1 + b."""
    contrast: float = 0.4
    """As brightness, towards the mean grey."""
    saturation: float = 0.2
    """As brightness, towards grey."""
    hue: float = 0.1
    """Turn drawn from -h to h of the full circle."""
    grey_p: float = 0.2
    """Chance of losing all colour."""
    blur_p: tuple[float, float] = (1.0, 0.1)
    """Chance of Gaussian blur, for the first and the second view."""
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    """Standard deviation of the blur, pixels."""
    blur_kernel: float = 0.1
    """Width of the kernel as a share of the image's side: 23 pixels of 224."""
    solarize_p: tuple[float, float] = (0.0, 0.2)
    """Chance that bright pixels are inverted, for the first and the second view."""
    solarize_threshold: float = 0.5
    """Brightness from which on pixels are inverted, 0 to 1: from 128 of 255 on. Not 128 / 255 itself, which some devices
    miss by a rounding."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Of the channels, 0 to 1 (ImageNet's, as every recipe has it)."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """As `mean`."""

    def __post_init__(self) -> None:
        chances = (self.flip_p, self.jitter_p, self.grey_p, *self.blur_p, *self.solarize_p)
        if not all(0 <= chance <= 1 for chance in chances):
            raise UsageError(f"augment: a chance is not between 0 and 1 in {chances}")
        if not all(0 <= amount <= 1 for amount in (self.brightness, self.contrast, self.saturation)):
            raise UsageError("augment: brightness, contrast and saturation must lie between 0 and 1")
        if not 0 <= self.hue <= 0.5:
            raise UsageError(f"augment.hue is {self.hue}; expected 0 to 0.5")
        if not 0 < self.blur_sigma[0] <= self.blur_sigma[1]:
            raise UsageError(f"augment.blur_sigma is {self.blur_sigma}; expected 0 < low <= high, in pixels")
        if not 0 < self.blur_kernel <= 1:
            raise UsageError(f"augment.blur_kernel is {self.blur_kernel}; expected a share of the image's side, 0 to 1")
        if not 0 <= self.solarize_threshold <= 1:
            raise UsageError(f"augment.solarize_threshold is {self.solarize_threshold}; expected 0 to 1 (128 of 255 is 0.5)")
        if not all(std > 0 for std in self.std):
            raise UsageError(f"augment.std is {self.std}; expected three numbers above 0")


def draw(rng: np.random.Generator, config: AugmentConfig, view: int) -> Float32[np.ndarray, "P"]:
    """One image's numbers: one draw for the whole image, always the same count of numbers from the generator.

    Args:
        rng: of the sample.
        config: whose numbers.
        view: 0 or 1; the two scene views differ in blur and solarization. An instance draws as the first view does, its
            second augmentation (if it has one) as the second.

    """
    chance = rng.random(10)
    out = np.zeros(DRAW_SIZE, np.float32)
    out[_FLIP] = chance[0] < config.flip_p
    jittered = chance[1] < config.jitter_p
    for column, amount, number in zip(
        _BLENDS, (config.brightness, config.contrast, config.saturation), chance[2:5], strict=True
    ):
        out[column] = 1 + amount * (2 * number - 1) if jittered else 1
    out[_HUE] = config.hue * (2 * chance[5] - 1) if jittered else 0
    out[_ORDER : _ORDER + 4] = rng.permutation(4)
    out[_GREY] = chance[6] < config.grey_p
    low, high = config.blur_sigma
    out[_SIGMA] = low + (high - low) * chance[8] if chance[7] < config.blur_p[view] else 0
    out[_SOLARIZE] = chance[9] < config.solarize_p[view]
    return out


def augment(
    images_NCSS: UInt8[Tensor, "N 3 S S"], draws_NP: Float[Tensor, "N P"], config: AugmentConfig
) -> Float[Tensor, "N 3 S S"]:
    """Flip, jitter, grey, blur, solarize and normalise a batch, each image by its own draw.

    The operations are torchvision's on float images of 0 to 1, clamped after each. On a GPU all images go through all
    operations and the draws select, so that the host never waits; on a CPU only those go through an operation that need it.

    Args:
        images_NCSS: any memory layout.
        draws_NP: rows of `draw`, on the same device.
        config: for the blur's width, the threshold, mean and standard deviation.

    Returns:
        float32, normalised.

    """
    with torch.no_grad(), torch.autocast(images_NCSS.device.type, enabled=False):
        x = images_NCSS.to(torch.float32, memory_format=torch.contiguous_format).div_(255)
        select = _apply_to_chosen if x.device.type == "cpu" else _apply_to_all
        x = select(x, draws_NP[:, _FLIP] > 0, lambda part, draws: part.flip(-1), draws_NP)
        for slot in range(4):
            operation_N = draws_NP[:, _ORDER + slot]
            for number, column in enumerate(_BLENDS):
                changed = (operation_N == number) & (draws_NP[:, column] != 1)
                x = select(x, changed, functools.partial(_blend, column=column), draws_NP)
            x = select(x, (operation_N == 3) & (draws_NP[:, _HUE] != 0), _turn_hue, draws_NP)
        x = select(x, draws_NP[:, _GREY] > 0, lambda part, draws: _grey(part).expand_as(part), draws_NP)
        kernel = blur_width(x.shape[-1], config)
        x = select(x, draws_NP[:, _SIGMA] > 0, lambda part, draws: _blur(part, draws[:, _SIGMA], kernel), draws_NP)
        threshold = config.solarize_threshold
        invert = lambda part, draws: torch.where(part >= threshold, 1 - part, part)  # noqa: E731 - one of a row
        x = select(x, draws_NP[:, _SOLARIZE] > 0, invert, draws_NP)
        mean, std = (torch.tensor(values, device=x.device).view(1, 3, 1, 1) for values in (config.mean, config.std))
        return (x - mean) / std


def blur_width(side: int, config: AugmentConfig) -> int:
    """Taps of the blur for an image's side: the odd number nearest to its share of it."""
    return 2 * round((side * config.blur_kernel - 1) / 2 + 1e-9) + 1 if side * config.blur_kernel > 1 else 1


def _apply_to_chosen(x: Tensor, chosen_N: Tensor, operation, draws_NP: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
    """On a CPU: gather the images that need it, change them, put them back."""
    where = chosen_N.nonzero().flatten()
    if len(where) == len(x):
        changed: Tensor = operation(x, draws_NP)
        return changed.contiguous()
    if len(where):
        x[where] = operation(x[where], draws_NP[where])
    return x


def _apply_to_all(x: Tensor, chosen_N: Tensor, operation, draws_NP: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
    """On a GPU: change all, keep what was chosen; no number travels to the host."""
    return torch.where(chosen_N.view(-1, 1, 1, 1), operation(x, draws_NP), x)


def _grey(x_NCSS: Tensor) -> Tensor:
    """N x 1 x S x S luma."""
    red, green, blue = _LUMA
    return x_NCSS[:, 0:1] * red + x_NCSS[:, 1:2] * green + x_NCSS[:, 2:3] * blue


def _blend(x: Tensor, draws_NP: Tensor, *, column: int) -> Tensor:
    """factor * x + (1 - factor) * reference: black, the mean grey, or the grey image."""
    factor = draws_NP[:, column].view(-1, 1, 1, 1)
    if column == _BRIGHTNESS:
        return (x * factor).clamp_(0, 1)
    grey = _grey(x)
    reference = grey.mean(dim=(1, 2, 3), keepdim=True) if column == _CONTRAST else grey
    return torch.lerp(reference.expand_as(x), x, factor).clamp_(0, 1)


def _turn_hue(x: Tensor, draws_NP: Tensor) -> Tensor:
    """Turn the hue of RGB images, through HSV and back (Smith 1978; the form f(n) = V - V S max(0, min(k, 4 - k, 1)))."""
    red, green, blue = x.unbind(1)
    value, least = x.amax(1), x.amin(1)
    spread = value - least
    coloured = spread > 0
    unit = torch.where(coloured, spread, 1)
    hue = torch.where(
        value == red, (green - blue) / unit, torch.where(value == green, 2 + (blue - red) / unit, 4 + (red - green) / unit)
    )
    turned = hue + 6 * draws_NP[:, _HUE].view(-1, 1, 1)
    k = (torch.tensor([5.0, 3.0, 1.0], device=x.device).view(1, 3, 1, 1) + turned[:, None]) % 6
    ramp = torch.minimum(k, 4 - k).clamp_(0, 1)
    return (value[:, None] - spread[:, None] * ramp).clamp_(0, 1)


def _blur(x_NCSS: Tensor, sigma_N: Tensor, kernel: int) -> Tensor:
    """Gaussian blur with each image's own sigma, mirrored at the border, as two matrix products: rows, then columns."""
    side = x_NCSS.shape[-1]
    radius = min(kernel // 2, side - 1)
    taps_R = torch.arange(-radius, radius + 1, device=x_NCSS.device, dtype=torch.float32)
    sigma = sigma_N.clamp_min(1e-3).view(-1, 1)
    weights_NR = torch.exp(-(taps_R**2) / (2 * sigma**2))
    weights_NR = weights_NR / weights_NR.sum(dim=1, keepdim=True)
    smoothing_NSS = (weights_NR @ _shifts(side, radius, x_NCSS.device)).view(-1, 1, side, side)
    return smoothing_NSS @ x_NCSS @ smoothing_NSS.transpose(-1, -2)


@functools.lru_cache(maxsize=16)
def _shifts(side: int, radius: int, device: torch.device) -> Tensor:
    """R x (S * S): for each tap the matrix that moves a row of S pixels by it, mirrored at the ends."""
    place = torch.arange(side)
    source = place[None] + torch.arange(-radius, radius + 1)[:, None]
    mirrored = source.abs()
    mirrored = torch.where(mirrored > side - 1, 2 * (side - 1) - mirrored, mirrored)
    return torch.nn.functional.one_hot(mirrored, side).to(torch.float32).flatten(1).to(device)
