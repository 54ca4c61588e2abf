"""Each operation against torchvision's on single images, the draws against BYOL's numbers, the fast path against the general."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as reference
from torch import Tensor

from univip_stream import augment as module
from univip_stream.augment import DRAW_SIZE, AugmentConfig, augment, blur_width, draw
from univip_stream.errors import UsageError

CONFIG = AugmentConfig()
PLAIN = AugmentConfig(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
"""Leaves pixels at 0 to 1."""
FLIP, BRIGHTNESS, CONTRAST, SATURATION, HUE, ORDER, GREY, SIGMA, SOLARIZE = 0, 1, 2, 3, 4, 5, 9, 10, 11

TOLERANCE = 1e-5
"""On pixels of 0 to 1: a 400th of a grey level. Orders of additions and divisions differ from torchvision's."""


def still(count: int = 1) -> Tensor:
    """Draws that change nothing."""
    draws = torch.zeros(count, DRAW_SIZE)
    draws[:, [BRIGHTNESS, CONTRAST, SATURATION]] = 1
    draws[:, ORDER : ORDER + 4] = torch.arange(4.0)
    return draws


def pictures(count: int, side: int, seed: int = 0) -> Tensor:
    """Noise over smooth colour, with pure colours, black, white and grey among the pixels."""
    rng = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 4, 4, generator=rng)
    smooth = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bilinear")
    images = (255 * smooth + 40 * torch.randn(count, 3, side, side, generator=rng)).clamp(0, 255).to(torch.uint8)
    corner = torch.tensor([[0, 0, 0], [255] * 3, [255, 0, 0], [0, 255, 0], [0, 0, 255], [128] * 3], dtype=torch.uint8)
    images[:, :, 0, :6] = corner.T
    return images


def many_draws(count: int, config: AugmentConfig = CONFIG, seed: int = 0) -> Tensor:
    """Draws of both views, in turn."""
    rng = np.random.default_rng(seed)
    return torch.from_numpy(np.stack([draw(rng, config, number % 2) for number in range(count)]))


def by_torchvision(image: Tensor, row: Tensor, config: AugmentConfig) -> Tensor:
    """One image by torchvision's functions."""
    x = image.float() / 255
    if row[FLIP]:
        x = reference.horizontal_flip(x)
    for operation in row[ORDER : ORDER + 4].int().tolist():
        if operation == 0:
            x = reference.adjust_brightness(x, float(row[BRIGHTNESS]))
        elif operation == 1:
            x = reference.adjust_contrast(x, float(row[CONTRAST]))
        elif operation == 2:
            x = reference.adjust_saturation(x, float(row[SATURATION]))
        else:
            x = reference.adjust_hue(x, float(row[HUE]))
    if row[GREY]:
        x = reference.rgb_to_grayscale(x, num_output_channels=3)
    if row[SIGMA]:
        width = blur_width(image.shape[-1], config)
        x = reference.gaussian_blur(x, [width, width], [float(row[SIGMA])] * 2)
    if row[SOLARIZE]:
        x = reference.solarize(x, config.solarize_threshold)
    return reference.normalize(x, list(config.mean), list(config.std))


def apart(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference of two images."""
    return float((ours - theirs).abs().max())


@pytest.mark.parametrize(
    ("column", "values"),
    [
        (FLIP, [1.0]),
        (BRIGHTNESS, [0.6, 1.4, 0.0, 2.0]),
        (CONTRAST, [0.6, 1.4, 0.0, 2.0]),
        (SATURATION, [0.8, 1.2, 0.0, 2.0]),
        (HUE, [-0.1, 0.1, 0.5, -0.5, 1e-3]),
        (GREY, [1.0]),
        (SIGMA, [0.1, 0.7, 2.0]),
        (SOLARIZE, [1.0]),
    ],
)
@pytest.mark.parametrize("side", [96, 31])
def test_each_operation_is_torchvisions(column: int, values: list[float], side: int) -> None:
    images = pictures(len(values), side)
    draws = still(len(values))
    draws[:, column] = torch.tensor(values)
    ours = augment(images, draws, PLAIN)
    for number in range(len(values)):
        assert apart(ours[number], by_torchvision(images[number], draws[number], PLAIN)) < TOLERANCE
    assert not torch.equal(ours, images / 255)


@pytest.mark.parametrize("side", [64, 96])
def test_a_batch_of_whole_draws_is_torchvisions_image_by_image(side: int) -> None:
    images, draws = pictures(48, side), many_draws(48)
    ours = augment(images, draws, PLAIN)
    for number in range(48):
        assert apart(ours[number], by_torchvision(images[number], draws[number], PLAIN)) < TOLERANCE


def test_the_mean_and_the_deviation_of_the_channels_are_taken_out_last() -> None:
    images, draws = pictures(6, 32), many_draws(6)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (CONFIG.mean, CONFIG.std))
    torch.testing.assert_close(augment(images, draws, CONFIG), (augment(images, draws, PLAIN) - mean) / std)


def test_a_draw_that_changes_nothing_gives_the_pixels() -> None:
    images = pictures(3, 40)
    torch.testing.assert_close(augment(images, still(3), PLAIN), images / 255, atol=1e-7, rtol=0)


def test_the_order_of_the_jitter_is_the_draws() -> None:
    images, draws = pictures(2, 32), still(2)
    draws[:, BRIGHTNESS], draws[:, CONTRAST] = 1.4, 0.6
    draws[1, ORDER : ORDER + 4] = torch.tensor([1.0, 0.0, 2.0, 3.0])
    first, second = augment(images[:1].expand(2, -1, -1, -1), draws, PLAIN)
    assert (first - second).abs().max() > 0.01


def test_a_batch_gives_what_its_images_give_alone_to_the_bit() -> None:
    images, draws = pictures(17, 48), many_draws(17)
    together = augment(images, draws, CONFIG)
    alone = torch.cat([augment(images[n : n + 1], draws[n : n + 1], CONFIG) for n in range(17)])
    assert torch.equal(together, alone)


@pytest.mark.parametrize("side", [48, 112])
def test_what_devices_do_gives_what_the_cpu_does(side: int) -> None:
    images, draws = pictures(96, side), many_draws(96)
    with torch.no_grad():
        general = module._change_all(images, draws, module._tables(side, PLAIN, images.device), PLAIN.solarize_threshold)
    assert apart(general, augment(images, draws, PLAIN)) < TOLERANCE


def test_what_devices_give_in_the_end_is_what_the_cpu_gives() -> None:
    images, draws = pictures(48, 48).contiguous(memory_format=torch.channels_last), many_draws(48)
    given = (images, draws, module._tables(48, CONFIG, images.device), CONFIG.solarize_threshold)
    normalised = module._augment_all(*given, False)
    assert apart(normalised, augment(images, draws, CONFIG)) < TOLERANCE / min(CONFIG.std)
    assert normalised.is_contiguous(memory_format=torch.channels_last)
    levels = module._augment_all(*given, True)
    assert torch.equal(levels, levels.round())
    off = (levels - augment(images, draws, CONFIG, keep_uint8=True).float()).abs()
    assert off.max() <= 1  # a rounding may go the other way
    assert off.mean() < 1e-2


def test_no_number_travels_from_the_device_to_the_host() -> None:
    # Tensors without data: whatever asks them for a number, or for a shape that depends on one, raises.
    images, draws = torch.empty(4, 3, 48, 48, device="meta"), torch.empty(4, DRAW_SIZE, device="meta")
    tables = module._tables(48, CONFIG, images.device)
    assert module._augment_all(images, draws, tables, 0.5, False).shape == images.shape
    with pytest.raises((RuntimeError, NotImplementedError)):
        images[draws[:, FLIP] > 0]


def test_pictures_to_look_at_are_the_grey_levels_nearest() -> None:
    images, draws = pictures(8, 32), many_draws(8)
    pixels = augment(images, draws, CONFIG, keep_uint8=True)
    assert pixels.dtype == torch.uint8
    assert apart(pixels / 255, augment(images, draws, PLAIN)) <= 0.5001 / 255
    assert torch.equal(augment(images, still(8), CONFIG, keep_uint8=True), images)


def test_pixels_in_channels_last_memory_give_the_same_and_the_input_is_left_alone() -> None:
    images, draws = pictures(8, 48), many_draws(8)
    scattered = images.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    before = scattered.clone()
    torch.testing.assert_close(augment(scattered, draws, CONFIG), augment(images, draws, CONFIG), atol=1e-6, rtol=0)
    assert torch.equal(scattered, before)
    assert augment(scattered, draws, CONFIG).dtype == torch.float32


def test_an_empty_batch_is_empty() -> None:
    assert augment(pictures(0, 32), still(0), CONFIG).shape == (0, 3, 32, 32)


@pytest.mark.parametrize("side", [1, 2, 8, 12])
def test_tiny_images_are_blurred_too(side: int) -> None:
    images = torch.full((2, 3, side, side), 77, dtype=torch.uint8)
    draws = still(2)
    draws[:, SIGMA] = 2.0
    torch.testing.assert_close(augment(images, draws, replace(PLAIN, blur_kernel=0.9)), images / 255)


@pytest.mark.parametrize(("side", "taps"), [(224, 23), (96, 9), (48, 5), (32, 3), (8, 1)])
def test_the_blur_is_about_a_tenth_of_the_side_and_odd(side: int, taps: int) -> None:
    assert blur_width(side, CONFIG) == taps


def test_draws_have_byols_chances_and_ranges() -> None:
    count = 8000
    rng = np.random.default_rng(0)
    first, second = (np.stack([draw(rng, CONFIG, view) for _ in range(count)]) for view in (0, 1))

    def share(flags: np.ndarray) -> float:
        return float(np.mean(flags))

    near = 4 * 0.5 / np.sqrt(count)  # four standard deviations of the most uncertain share
    for rows, blurred, solarized in ((first, 1.0, 0.0), (second, 0.1, 0.2)):
        assert share(rows[:, FLIP] == 1) == pytest.approx(0.5, abs=near)
        assert share(rows[:, GREY] == 1) == pytest.approx(0.2, abs=near)
        assert share(rows[:, SIGMA] > 0) == pytest.approx(blurred, abs=near)
        assert share(rows[:, SOLARIZE] == 1) == pytest.approx(solarized, abs=near)
        jittered = rows[:, HUE] != 0
        assert share(jittered) == pytest.approx(0.8, abs=near)
        assert (rows[~jittered][:, [BRIGHTNESS, CONTRAST, SATURATION]] == 1).all()
        sigma = rows[rows[:, SIGMA] > 0, SIGMA]
        ranges = [
            (rows[jittered, column], 1 - a, 1 + a) for column, a in ((BRIGHTNESS, 0.4), (CONTRAST, 0.4), (SATURATION, 0.2))
        ]
        for values, low, high in [*ranges, (rows[jittered, HUE], -0.1, 0.1), (sigma, 0.1, 2.0)]:
            quarters = (np.quantile(values, [0, 0.25, 0.5, 0.75, 1]) - low) / (high - low)
            assert np.abs(quarters - [0, 0.25, 0.5, 0.75, 1]).max() < 0.07
            assert quarters[0] > -1e-6
            assert quarters[4] < 1 + 1e-6
        orders, times = np.unique(rows[:, ORDER : ORDER + 4], axis=0, return_counts=True)
        assert (np.sort(orders, axis=1) == np.arange(4)).all()
        assert len(orders) == 24
        assert np.abs(times - count / 24).max() < 5 * np.sqrt(count / 24)


def test_the_generator_gives_as_many_numbers_whatever_is_drawn() -> None:
    # So that a setting of one operation leaves the draws of the next image as they were.
    states = []
    for config, view in ((CONFIG, 0), (CONFIG, 1), (AugmentConfig(jitter_p=0.0, blur_p=(0.0, 0.0), grey_p=1.0), 0)):
        rng = np.random.Generator(np.random.Philox(key=[1, 2]))
        draw(rng, config, view)
        states.append(rng.random())
    assert len(set(states)) == 1


def test_one_seed_gives_one_draw() -> None:
    one, two = (draw(np.random.Generator(np.random.Philox(key=[3, 4])), CONFIG, 1) for _ in range(2))
    assert one.dtype == np.float32
    assert one.shape == (DRAW_SIZE,)
    assert one.tolist() == two.tolist()


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"flip_p": 1.5}, r"augment\.flip_p is 1\.5; expected a chance, 0 to 1"),
        ({"blur_p": (0.5, -1.0)}, r"augment\.blur_p is .*; expected a chance for each view"),
        ({"brightness": 2.0}, r"augment\.brightness is 2\.0"),
        ({"hue": 0.7}, "hue"),
        ({"blur_sigma": (0.0, 1.0)}, "blur_sigma"),
        ({"blur_kernel": 0.0}, "blur_kernel"),
        ({"solarize_threshold": 128.0}, "solarize_threshold"),
        ({"std": (0.2, 0.0, 0.2)}, "std"),
        ({"mean": (0.5, float("nan"), 0.5)}, "mean"),
    ],
)
def test_settings_that_make_no_sense_are_named(settings: dict, named: str) -> None:
    with pytest.raises(UsageError, match=named):
        AugmentConfig(**settings)
