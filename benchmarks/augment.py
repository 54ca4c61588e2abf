"""Views and augmentation on a CPU, beside torchvision's operations on the same images with the same draws.

    python benchmarks/augment.py

Prints medians, and how many times as fast as torchvision the batch is. Both get one thread: where other programs want the
cores, torchvision's operations wait for each other's threads, and the ratio would say more about that than about the work.
"""

import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
import torchvision.transforms.v2.functional as peer

from univip_stream.augment import AugmentConfig, augment, blur_width, draw
from univip_stream.views import ViewConfig, draw_views

CONFIG = AugmentConfig()


def median_ms(work: Callable[[], object], times: int) -> float:
    """Milliseconds a call, after two to warm up."""
    taken = []
    for _ in range(times + 2):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return 1000 * statistics.median(taken[2:])


def torchvisions(images: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """The same operations one image at a time, each only where it was drawn."""
    out = []
    for image, row in zip(images, draws.tolist(), strict=True):
        flip, brightness, contrast, saturation, hue, *order, grey, sigma, solarize = row
        x = image.contiguous().float() / 255
        x = peer.horizontal_flip(x) if flip else x
        adjust = (
            (peer.adjust_brightness, brightness),
            (peer.adjust_contrast, contrast),
            (peer.adjust_saturation, saturation),
            (peer.adjust_hue, hue),
        )
        for operation, amount in (adjust[int(number)] for number in order) if hue else ():
            x = operation(x, amount)
        x = peer.rgb_to_grayscale(x, 3) if grey else x
        width = blur_width(x.shape[-1], CONFIG)
        x = peer.gaussian_blur(x, [width, width], [sigma, sigma]) if sigma else x
        x = peer.solarize(x, CONFIG.solarize_threshold) if solarize else x
        out.append(peer.normalize(x, list(CONFIG.mean), list(CONFIG.std)))
    return torch.stack(out)


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    print(f"torch {torch.__version__}, one thread")
    for count in (0, 10, 50, 200):
        w, h = rng.integers(64, 320, count), rng.integers(64, 240, count)
        boxes = np.stack([rng.integers(0, 641 - w), rng.integers(0, 481 - h), w, h], axis=1).astype(np.int32)
        taken = median_ms(lambda boxes=boxes: draw_views(boxes, 640, 480, rng, ViewConfig()), 500)  # type: ignore[misc]
        print(f"draw_views, {count:3d} boxes: {taken:.3f} ms an image")
    print(f"draw: {median_ms(lambda: draw(rng, CONFIG, 0), 500):.4f} ms an image")
    for side, count in ((64, 64), (96, 64), (224, 16)):
        images = torch.randint(0, 256, (count, side, side, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
        draws = torch.from_numpy(np.stack([draw(rng, CONFIG, number % 2) for number in range(count)]))
        torch.testing.assert_close(augment(images, draws, CONFIG), torchvisions(images, draws), atol=1e-4, rtol=0)
        ours = median_ms(lambda images=images, draws=draws: augment(images, draws, CONFIG), 9) / count  # type: ignore[misc]
        theirs = median_ms(lambda images=images, draws=draws: torchvisions(images, draws), 9) / count  # type: ignore[misc]
        print(
            f"augment, {side:3d} pixels: {ours:.2f} ms an image; torchvision {theirs:.2f}: {theirs / ours:.1f} times as fast"
        )


if __name__ == "__main__":
    main()
