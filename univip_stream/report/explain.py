"""Draw how the method processes one image: Figure 1 (b) and Figure 2 of the paper, for a user's own image.

Letters: K instances, M online and N target ones (K each).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchvision.transforms.v2.functional import resize

from univip_stream.augment import AugmentConfig, normalised
from univip_stream.boxes import BoxFilter
from univip_stream.errors import InputError, UsageError
from univip_stream.files import written_atomically
from univip_stream.images import MAX_PIXELS, read_picture
from univip_stream.methods.univip import Transport, UniVIP
from univip_stream.pretrain.load import load_backbone, load_method
from univip_stream.probe.dense import dense_map, principal_colours
from univip_stream.proposals import propose
from univip_stream.report.inputs import NetworkInputs, draw_inputs
from univip_stream.shapes import Int32, UInt8
from univip_stream.views import ViewConfig, overlaps_of

SUFFIXES = (".png", ".svg", ".pdf", ".jpg")
VIEW_COLOURS = ("#0072b2", "#d55e00")
INSTANCE_COLOURS = ("#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f6bd6", "#8c6d46", "#c0392b", "#2c7a7b")
GRID = 32
"""Pixels that the sides of an image are multiples of where its dense features are computed, or of patches that do not fit in."""
LEAST_SIDE = 256
DRAWN = 100
"""Maximal number of boxes drawn into the picture of all proposals; more would cover it."""


@dataclass(frozen=True, kw_only=True)
class Explained:
    """Everything that the method computes from one image."""

    image: UInt8[np.ndarray, "H W 3"]
    proposals: Int32[np.ndarray, "A 4"]
    """All proposals, by rank."""
    kept: Int32[np.ndarray, "N 4"]
    """Proposals that pass the filter."""
    inputs: NetworkInputs
    transport: Transport | None
    """The plan between online and target instances; None without a checkpoint."""
    features: "DenseFeatures | None" = None
    """Dense features of the whole image; None without a network to compute them."""

    def facts(self) -> dict[str, Any]:
        """Return the numbers as a dictionary for JSON."""
        facts: dict[str, Any] = {
            "width": self.image.shape[1],
            "height": self.image.shape[0],
            "proposals": len(self.proposals),
            "kept": self.kept.tolist(),
            "tries": self.inputs.tries.tolist(),
            "held": self.inputs.held,
            "scenes": self.inputs.views.scenes.tolist(),
            "overlap": self.inputs.views.overlap.tolist(),
            "instances": self.inputs.views.instances.tolist(),
            "filled": self.inputs.views.filled,
        }
        if self.transport is not None:
            facts |= {name: values[0].tolist() for name, values in self.transport._asdict().items()}
        if self.features is not None:
            facts["features"] = {
                "map": list(self.features.size),
                "variance": [round(share, 4) for share in self.features.shares],
            }
        return facts


@dataclass(frozen=True, kw_only=True)
class DenseFeatures:
    """A backbone's features at every place of an image, as colours."""

    colours: np.ndarray
    """float32 h x w x 3, 0 to 1: the three main directions as red, green and blue."""
    shares: list[float]
    """Of the variance, that of each direction."""
    size: tuple[int, int, int]
    """h, w, D of the map."""


def dense_features(image: UInt8[np.ndarray, "H W 3"], run: Path) -> DenseFeatures:
    """Compute the dense features of a whole image and their main directions.

    Its longest side becomes twice that of the run's scenes, 256 px at least, so that there are places to see.

    Args:
        image: RGB.
        run: run folder, checkpoint or backbone.safetensors of any method.

    Raises:
        InputError: as `load_backbone`; UsageError: the network gives no maps.

    """
    backbone, config = load_backbone(run)
    scale = max(2 * config.views.scene_size, LEAST_SIDE) / max(image.shape[:2])
    patch = getattr(getattr(backbone.trunk, "patch_embed", None), "patch_size", GRID)
    side_of_patch = patch[0] if isinstance(patch, tuple) else int(patch)
    grid = max(1, GRID // side_of_patch) * side_of_patch
    height, width = (max(1, round(side * scale / grid)) * grid for side in image.shape[:2])
    pixels = torch.tensor(image).permute(2, 0, 1)
    shown = resize(pixels, [height, width], antialias=True)[None]
    with torch.inference_mode():
        [found] = dense_map(backbone, normalised(shown, config.augment), config.method.backbone)
        colours, shares = principal_colours(found)
    return DenseFeatures(colours=colours.numpy(), shares=shares, size=tuple(found.shape))


def explain(
    path: Path,
    *,
    run: Path | None = None,
    features: Path | None = None,
    engine: str = "selective-search",
    boxes: BoxFilter | None = None,
    seed: int = 0,
    max_pixels: int = MAX_PIXELS,
) -> Explained:
    """Compute proposals, views, instances and, with a run, the transport plan of an image.

    Args:
        path: path of an image.
        run: a run folder or checkpoint of UniVIP: its settings are used, and its networks give the transport plan. Batch
            normalisation uses its running statistics, as there is no batch. None: the paper's settings, and no plan.
        features: a run of any method, whose dense features are shown; None: those of `run`, where that is given.
        engine: engine that proposes boxes.
        boxes: filter of the boxes; None is the paper's.
        seed: seed of the views and augmentations. The same seed gives the same figure.
        max_pixels: larger images are refused.

    Raises:
        InputError: there is no image, or no run of UniVIP.
        UsageError: the engine does not exist, or the run has no instance term.

    """
    try:
        image = read_picture(path.read_bytes(), max_pixels=max_pixels, min_side=1).pixels
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such image; expected the path of an image file") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}; expected the path of an image file") from error
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    method: UniVIP | None = None
    views_config, augment_config = ViewConfig(), AugmentConfig()
    if run is not None:
        loaded, config = load_method(run)
        if not isinstance(loaded, UniVIP):
            raise InputError(
                f"{run} is a run of {config.method.name}; the transport plan is UniVIP's. Leave --run out for the rest"
            )
        if not loaded.with_instance:
            raise UsageError(
                f"{run} has no instance term (method.instance, views.instances), so no transport plan; leave --run out"
            )
        method, views_config, augment_config = loaded, config.views, config.augment
    proposals = propose(image, engine, seed)
    kept = (boxes or BoxFilter())(proposals)
    inputs = draw_inputs(image, kept, [seed], views_config, augment_config)
    transport = None
    if method is not None:
        crops = dict(zip(("instances", "instances_again"), inputs.instance_inputs.unsqueeze(1), strict=False))
        transport = method.eval().transport({"scenes": inputs.scene_inputs.unsqueeze(1), **crops})
    of = features or run
    dense = None if of is None else dense_features(image, of)
    return Explained(image=image, proposals=proposals, kept=kept, inputs=inputs, transport=transport, features=dense)


def figure(found: Explained, out: Path) -> None:
    """Draw the figure of an image into `out`; its suffix decides the format.

    Raises:
        InputError: the suffix is not one of `SUFFIXES`.

    """
    from matplotlib.figure import Figure

    if out.suffix.lower() not in SUFFIXES:
        raise InputError(f"{out}: expected a name that ends in {', '.join(SUFFIXES)}")
    K = len(found.inputs.instances)
    rows = 2 + (found.transport is not None) + (found.features is not None)
    whole = Figure(figsize=(15, 4.4 * rows), layout="constrained")
    parts = whole.subfigures(rows, 1, height_ratios=[1, 1, *[1.1] * (rows - 2)], squeeze=False)[:, 0]
    _draw_boxes(parts[0], found)
    _draw_crops(parts[1], found, K)
    if found.transport is not None:
        _draw_plan(parts[2], found, found.transport, K)
    if found.features is not None:
        _draw_features(parts[-1], found, found.features)
    out.parent.mkdir(parents=True, exist_ok=True)
    with written_atomically(out) as file:
        whole.savefig(file, format=out.suffix[1:].lower(), dpi=110)


def _draw_boxes(part: Any, found: Explained) -> None:
    first, second, third, fourth = part.subplots(1, 4)
    for ax in (first, second, third, fourth):
        _picture(ax, found.image)
    shown = found.proposals[:DRAWN]
    first.set_title(
        f"{len(found.proposals)} proposals" + (f", the best {DRAWN}" if len(shown) < len(found.proposals) else "")
    )
    _boxes(first, shown, "#ffd54a", 0.7)
    second.set_title(f"{len(found.kept)} after the filter")
    _boxes(second, found.kept, "#ffd54a", 1.4)
    taken = len(found.inputs.tries)
    enough = found.inputs.held[-1] >= len(found.inputs.instances)
    third.set_title(f"Algorithm 1: {taken} {'try' if taken == 1 else 'tries'}" + ("" if enough else ", none held enough"))
    for at, overlap in enumerate(overlaps_of(found.inputs.tries)):
        chosen = bool((found.inputs.tries[at] == found.inputs.views.scenes).all())
        _boxes(third, overlap[None], "#ffffff" if chosen else "#ff8a80", 2.2 if chosen else 1.0)
        if overlap[2:].all():
            third.text(
                overlap[0] + 3, overlap[1] + 3, f"try {at + 1}: {found.inputs.held[at]}", va="top", fontsize=7,
                color="black", backgroundcolor="white" if chosen else "#ff8a80",
            )  # fmt: skip
    third.set_xlabel("overlaps, with the boxes that each holds; the white one is taken", fontsize=8)
    filled = f", {found.inputs.views.filled} of them random" if found.inputs.views.filled else ""
    fourth.set_title(f"two views, {len(found.inputs.instances)} instances{filled}")
    x, y, w, h = found.inputs.views.overlap
    fourth.add_patch(_rectangle(x, y, w, h, facecolor="white", alpha=0.25, edgecolor="none"))
    for window, colour in zip(found.inputs.views.scenes, VIEW_COLOURS, strict=True):
        _boxes(fourth, window[None], colour, 2.5)
    for at, window in enumerate(found.inputs.views.instances):
        _boxes(fourth, window[None], _instance_colour(at), 1.6)
        fourth.text(
            window[0] + 3,
            window[1] + 3,
            str(at + 1),
            va="top",
            fontsize=8,
            color="white",
            backgroundcolor=_instance_colour(at),
        )


def _draw_crops(part: Any, found: Explained, K: int) -> None:
    scenes, instances = part.subfigures(1, 2, width_ratios=[1, 1])
    for at, ax in enumerate(scenes.subplots(2, 2).ravel()):
        augmented, view = divmod(at, 2)
        _picture(ax, found.inputs.to_pixels(found.inputs.scene_inputs[view]) if augmented else found.inputs.scenes[view])
        ax.set_title(f"view {view + 1}" + (", as the network sees it" if augmented else ""), fontsize=9)
        _frame(ax, VIEW_COLOURS[view])
    if not K:
        return
    augmented = len(found.inputs.instance_inputs)
    for at, ax in enumerate(np.atleast_1d(instances.subplots(1 + augmented, K)).ravel()):
        row, k = divmod(at, K)
        _picture(
            ax, found.inputs.instances[k] if row == 0 else found.inputs.to_pixels(found.inputs.instance_inputs[row - 1, k])
        )
        ax.set_title(f"{k + 1}" if row == 0 else f"{k + 1}'", fontsize=9)
        _frame(ax, _instance_colour(k))


def _draw_plan(part: Any, found: Explained, transport: Transport, K: int) -> None:
    """Draw the plan as a matrix, with crops beside rows and columns, and the weights of Eq. 9 and 10 at the edges."""
    plan, cosines = transport.plan[0].numpy(), transport.cosines[0].numpy()
    left, right = part.subfigures(1, 2, width_ratios=[1, 1])
    for side, values, title, form in (
        (left, plan, "transport plan y (Eq. 7): rows online o, columns target t", "{:.3f}"),
        (right, cosines, "cosine of o and t (Eq. 8: cost is 1 less it)", "{:.2f}"),
    ):
        side.suptitle(title, fontsize=11)
        grid = side.add_gridspec(K + 1, K + 1)
        field = side.add_subplot(grid[1:, 1:])
        low, high = (0, max(float(values.max()), 1e-9)) if values is plan else (-1, 1)
        field.imshow(values, cmap="viridis" if values is plan else "RdBu", vmin=low, vmax=high, aspect="auto")
        field.set_xticks([])
        field.set_yticks([])
        for m in range(K):
            for n in range(K):
                dark = (values[m, n] - low) / (high - low) < 0.6 if values is plan else abs(values[m, n]) > 0.6
                colour = "white" if dark else "black"
                field.text(n, m, form.format(values[m, n]), ha="center", va="center", color=colour, fontsize=10)
        for k in range(K):
            row, column = side.add_subplot(grid[k + 1, 0]), side.add_subplot(grid[0, k + 1])
            for ax, crop, name, weight in (
                (row, found.inputs.instance_inputs[0, k], f"o{k + 1}", f"b {transport.supply[0, k]:.3g}"),
                (column, found.inputs.instance_inputs[-1, k], f"t{k + 1}", f"a {transport.demand[0, k]:.3g}"),
            ):
                _picture(ax, found.inputs.to_pixels(crop))
                _frame(ax, _instance_colour(k))
                if ax is row:
                    ax.set_ylabel(f"{name}\n{weight}", fontsize=8, rotation=0, ha="right", va="center")
                else:
                    ax.set_title(f"{name}   {weight}", fontsize=8)


def _draw_features(part: Any, found: Explained, features: DenseFeatures) -> None:
    """Draw the map's colours beside the image: places of one colour have like features."""
    image, colours = part.subplots(1, 2)
    _picture(image, found.image)
    image.set_title("the image, whole")
    colours.imshow(features.colours, interpolation="nearest", aspect="auto")
    colours.set_box_aspect(found.image.shape[0] / found.image.shape[1])
    colours.set_xticks([])
    colours.set_yticks([])
    h, w, D = features.size
    shares = ", ".join(f"{share:.0%}" for share in features.shares)
    colours.set_title(
        f"dense features, {h} x {w} x {D}: three main directions as red, green, blue ({shares} of the variance)"
    )


def _picture(ax: Any, pixels: np.ndarray) -> None:
    ax.imshow(pixels)
    ax.set_xticks([])
    ax.set_yticks([])


def _boxes(ax: Any, boxes: np.ndarray, colour: str, width: float) -> None:
    for x, y, w, h in boxes:
        ax.add_patch(_rectangle(x, y, w, h, facecolor="none", edgecolor=colour, linewidth=width))


def _rectangle(x: float, y: float, w: float, h: float, **style: Any) -> Any:
    from matplotlib.patches import Rectangle

    # The centre of a picture's first pixel is at 0, so its edge is half a pixel before that.
    return Rectangle((x - 0.5, y - 0.5), w, h, **style)


def _frame(ax: Any, colour: str) -> None:
    for spine in ax.spines.values():
        spine.set(edgecolor=colour, linewidth=2.5)


def _instance_colour(at: int) -> str:
    return INSTANCE_COLOURS[at % len(INSTANCE_COLOURS)]
