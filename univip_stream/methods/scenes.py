"""Plans with two scene views, which most methods use, and with boxes in them.

Letters: B images, K boxes an image, N pictures, P numbers of a draw, V views.
"""

import numpy as np

from univip_stream.augment import FLIP, AugmentConfig, draw
from univip_stream.errors import UsageError
from univip_stream.plan import Cut, Drawn, Look, Plan
from univip_stream.shapes import Float32, Int32
from univip_stream.views import ViewConfig, Views, draw_views, jitter_boxes


class ScenePlan(Plan):
    """A plan with `scenes`: two views, drawn together with an image's regions (Algorithm 1), or at random. Subclasses add cuts.

    Args:
        views: settings of the views.
        augment: settings of their augmentations.

    """

    def __init__(self, views: ViewConfig, augment: AugmentConfig) -> None:
        self.views, self.augment = views, augment
        self.cuts: dict[str, Cut] = {"scenes": Cut(count=2, size=views.scene_size, setting="views.scene_size")}
        self.facts: dict[str, tuple[int, ...]] = {}
        self.regions, self.interpolation = views.instances, views.interpolation

    def draw(self, look: Look, rng: np.random.Generator) -> Drawn:
        """Draw views and regions, then the views' augmentations, then the additions of a subclass."""
        found = draw_views(look.boxes, look.width, look.height, rng, self.views)
        drawn = Drawn(windows={"scenes": found.scenes}, draws={"scenes": self.numbers(rng, 0, 1)}, filled=found.filled)
        self.add(drawn, found, look, rng)
        return drawn

    def add(self, drawn: Drawn, found: Views, look: Look, rng: np.random.Generator) -> None:
        """Add a subclass's own cuts and facts to `drawn`."""

    def numbers(self, rng: np.random.Generator, *views: int) -> Float32[np.ndarray, "N P"]:
        """Draw an augmentation for each picture, with the probabilities of the first view (0) or of the second (1)."""
        return np.stack([draw(rng, self.augment, view) for view in views])


class BoxPlan(ScenePlan):
    """A plan with the scene views and `boxes`, (V, K, 4): the regions in each view as x1, y1, x2, y2 in its pixels.

    In the first view they are jittered according to `views.box_jitter`.
    """

    def __init__(self, views: ViewConfig, augment: AugmentConfig, *, method: str) -> None:
        super().__init__(views, augment)
        if views.instances == 0:
            raise UsageError(f"{method} looks at boxes, and views.instances is 0; set it to the boxes of an image, such as 4")
        self.facts = {"boxes": (2, views.instances, 4)}

    def add(self, drawn: Drawn, found: Views, look: Look, rng: np.random.Generator) -> None:
        regions = [found.instances.astype(np.float32)] * 2
        if self.views.box_jitter:
            regions[0] = jitter_boxes(found.instances, found.scenes[0], rng, self.views)
        flips = (drawn.draws["scenes"][:, FLIP] > 0).tolist()
        size = self.views.scene_size
        drawn.facts["boxes"] = np.stack([boxes_in_view(regions[v], found.scenes[v], flips[v], size) for v in range(2)])


def boxes_in_view(
    boxes: Float32[np.ndarray, "K 4"], window: Int32[np.ndarray, "4"], flipped: bool, side: int
) -> Float32[np.ndarray, "K 4"]:
    """Return the position of an image's boxes in a view of it.

    The window is resized to `side` x `side` and then, if `flipped`, mirrored; edges between pixels move in proportion, as in
    resizing. Parts outside the window are cut off; a box wholly outside becomes a line at the border.

    Args:
        boxes: x, y, w, h in pixels of the image.
        window: x, y, w, h of the view in the image.
        flipped: whether the view is mirrored.
        side: side of the view, pixels.

    Returns:
        x1, y1, x2, y2 in pixels of the view, 0 to `side`.

    """
    place = window.astype(np.float32)
    near = boxes[:, :2] - place[:2]
    edges = np.concatenate([near, near + boxes[:, 2:]], axis=1)
    scale = np.float32(1) / place[[2, 3, 2, 3]] * np.float32(side)
    edges = np.clip(edges * scale, np.float32(0), np.float32(side))
    if flipped:
        edges = np.stack([side - edges[:, 2], edges[:, 1], side - edges[:, 0], edges[:, 3]], axis=1)
    return edges.astype(np.float32)
