"""Measures without labels while a run trains: how many directions the features use, and how they hold views together."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from univip_stream.augment import AugmentConfig, augment, normalised
from univip_stream.errors import InputError, as_setting, counted
from univip_stream.failures import Failure, listed
from univip_stream.pretrain.config import FEWEST_MEASURED, MeasuresConfig
from univip_stream.probe.crops import CentreCrop, RandomCrop, batches
from univip_stream.probe.labelfree import alignment, lidar, rankme, uniformity
from univip_stream.probe.labelled import ImageSource
from univip_stream.shards import ShardSet

_SHARDS = 16
"""Shards that images are taken from."""
_BATCH = 32
"""Images of a forward pass; each is seen once whole and `measures.views` times augmented."""

MEASURES: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "rankme": lambda vectors_ND, views_NQD: rankme(vectors_ND),
    "lidar": lambda vectors_ND, views_NQD: lidar(views_NQD),
    "alignment": lambda vectors_ND, views_NQD: alignment(views_NQD),
    "uniformity": lambda vectors_ND, views_NQD: uniformity(vectors_ND),
}
"""What is recorded -> how it is computed, of the features of whole images (N x D) and of their views (N x Q x D)."""


class Measures:
    """Looks at the same crops and the same augmented views of the same images each time.

    The images are read once, so that what is wrong with them shows before the first step; their crops stay in memory, 0.75 MB an
    image at 224 pixels and four views.

    Args:
        config: which images, how many, and how often.
        shards: those that are trained on.
        size: side of the crops, pixels.
        pixels: augmentation of the training, for the views.
        seed: of the choice of images and of the views.
        workers: processes that read the images; 0 is this one.

    Raises:
        InputError: there are too few images, or too few of them can be read.

    """

    def __init__(
        self, config: MeasuresConfig, shards: ShardSet, size: int, pixels: AugmentConfig, seed: int, workers: int
    ) -> None:
        try:
            self.source = ImageSource(config.src if config.src is not None else shards)
        except InputError as error:
            raise InputError(f"measures.src: {error}") from error
        self.config, self.pixels = config, pixels
        rng = np.random.default_rng(seed)
        among = _of_few(shards, rng) if config.src is None else np.arange(len(self.source))
        chosen = rng.choice(among, min(config.images, len(among)), replace=False)
        numbers = np.sort(chosen)  # numbers that follow each other cost least to read
        self.failed: list[Failure] = []
        """Images that cannot be read, which are left out."""
        self._crops: list[tuple[Tensor, Tensor]] = []
        crop = _Crops(size, pixels, config.views, seed)
        for crops in batches(self.source, numbers, crop, batch_size=_BATCH, workers=workers):
            self.failed += crops.failed.values()
            if len(crops.numbers):
                self._crops.append((crops.images, crops.draws))
        self.images = sum(len(pixels) for pixels, _ in self._crops)
        if self.images < FEWEST_MEASURED:
            raise InputError(
                "\n".join(
                    [
                        f"{self.source.name}: {counted(self.images, 'image')} to measure{self._of_more(len(numbers))}, expected at "
                        f"least {FEWEST_MEASURED}; measures.images=0 leaves measures out",
                        *listed(self.failed, 10),
                    ]
                )
            )

    def _of_more(self, drawn: int) -> str:
        """What a larger number would do, where images that were drawn cannot be read and there are others."""
        left = len(self.source) - drawn
        if not self.failed or not left:
            return ""
        return f" of the {drawn} that were drawn (a larger measures.images draws from {left} more)"

    def notes(self) -> Iterator[str]:
        """Yield what a person should know before the first number."""
        whose = self.config.src or "the images that are trained on"
        every = "every step" if self.config.every == 1 else f"every {self.config.every} steps"
        yield f"measures without labels: RankMe, LiDAR, alignment and uniformity of {self.images} of {whose}, {every}"
        if self.failed:
            yield "\n".join(["measures: these images cannot be read and are left out:", *listed(self.failed, 10)])

    def notes_on(self, begun: Mapping[str, Any]) -> Iterator[str]:
        """Yield what a person should know where a run goes on that was begun without measures, or with other ones.

        Args:
            begun: settings that the run was begun with, by their whole names.

        """
        if not begun.get("measures.images"):
            yield "measures: the run was begun without them, so there are none of its first weights to compare with"
            return
        ours = {f"measures.{name}": getattr(self.config, name) for name in ("images", "src", "views")}
        changed = [name for name, value in ours.items() if begun.get(name, value) != value]
        if changed:
            words = ", ".join(f"{name} {as_setting(begun[name])}" for name in changed)
            yield f"measures: the run was begun with {words}; what was recorded then does not compare with what is recorded now"

    def of(self, backbone: nn.Module, device: torch.device) -> dict[str, float]:
        """Measure a backbone, which is left as it was.

        Returns:
            Each measure under its name, and under `NAME_error` half of the difference between its values on two disjoint halves
            of the images: the standard error of their mean, as far as two values can tell.

        Raises:
            InputError: features are not finite.

        """
        training = backbone.training
        try:
            whole, views = self._features(backbone.eval(), device)
        finally:
            backbone.train(training)
        if not (np.isfinite(whole).all() and np.isfinite(views).all()):
            raise InputError("the backbone's features are not finite: training diverged")
        values: dict[str, float] = {}
        for name, measured in MEASURES.items():
            first, second = (measured(whole[half::2], views[half::2]) for half in (0, 1))
            values[name] = round(measured(whole, views), 4)
            values[f"{name}_error"] = round(abs(first - second) / 2, 4)
        return values

    def _features(self, backbone: nn.Module, device: torch.device) -> tuple[np.ndarray, np.ndarray]:
        """N x D of centre crops, and N x Q x D of views, float32."""
        wholes, views = [], []
        with torch.inference_mode():
            for pixels, draws in ((pixels.to(device), draws.to(device)) for pixels, draws in self._crops):
                wholes.append(backbone(normalised(pixels[:, 0], self.pixels)).float().cpu())
                changed = augment(pixels[:, 1:].flatten(0, 1), draws.flatten(0, 1), self.pixels)
                views.append(backbone(changed).float().cpu().unflatten(0, draws.shape[:2]))
        return torch.cat(wholes).numpy(), torch.cat(views).numpy()


def _of_few(shards: ShardSet, rng: np.random.Generator) -> np.ndarray:
    """Numbers of the images of a few shards, so that a look at a set of any size opens no more; more only if they are small."""
    ends = np.cumsum(shards.counts)
    numbers: list[np.ndarray] = []
    for count, shard in enumerate(rng.permutation(len(ends))):
        if count >= _SHARDS and sum(map(len, numbers)) >= FEWEST_MEASURED:
            break
        numbers.append(np.arange(ends[shard] - shards.counts[shard], ends[shard]))
    return np.concatenate(numbers)


class _Crops:
    """The centre crop of an image and random ones, 1 + Q x 3 x S x S, with the draws of the random ones, Q x P."""

    def __init__(self, size: int, pixels: AugmentConfig, views: int, seed: int) -> None:
        self.centre = CentreCrop(size)
        self.random = [RandomCrop(size, pixels, seed=seed, epoch=view) for view in range(views)]

    def __call__(self, image: np.ndarray, number: int) -> tuple[Tensor, Tensor]:
        cut = [crop(image, number) for crop in self.random]
        return torch.stack([self.centre(image, number)[0], *(pair[0] for pair in cut)]), torch.stack(
            [pair[1] for pair in cut]
        )
