"""What a method gets beside scenes and instances, if it wants it: boxes in the views, a third view, and patches.

Letters: B images, K instances an image, V views, S, I and T sides of scene, patch and third view.
"""

import torch
from torch import Tensor

from univip_stream.augment import FLIP, AugmentConfig, augment
from univip_stream.errors import UsageError
from univip_stream.methods import Wants
from univip_stream.networks import Backbone
from univip_stream.pretrain.troubles import out_of_memory
from univip_stream.shapes import Float, Int32
from univip_stream.stream import Batch
from univip_stream.views import ViewConfig


def check_views(name: str, wants: Wants, views: ViewConfig) -> None:
    """Raise UsageError if the views that are set lack what the method of that name wants."""
    if wants.boxes and views.instances == 0:
        raise UsageError(f"{name} looks at boxes, and views.instances is 0; set it to the boxes of an image, such as 4")
    if wants.crops and views.instances and not views.instance_crops:
        raise UsageError(f"{name} looks at instances as images of their own; set views.instance_crops to true")
    if wants.third and views.third_size == 0:
        raise UsageError(f"{name} looks at a third view, and views.third_size is 0; set it to pixels, such as 112")
    if wants.patches and not views.pairs:
        raise UsageError(
            f"{name} looks at pairs of regions, and views.pairs names no file of them; `univip-stream retrieve` makes one: --set "
            "views.pairs=pairs.parquet"
        )


def check_sizes(backbone: Backbone, name: str, wants: Wants, views: ViewConfig) -> None:
    """Raise UsageError if the backbone does not take images of the sizes that are set. Leaves it as it was.

    Vision transformers cut images into patches, whose size must divide the image's; others need a least size.
    """
    crops = (wants.crops and views.instances and views.instance_crops) or wants.patches
    sizes = {
        "views.scene_size": views.scene_size,
        "views.instance_size": views.instance_size if crops else 0,
        "views.third_size": views.third_size if wants.third else 0,
    }
    training = backbone.training
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        for setting, size in sizes.items():
            try:
                if size:
                    backbone.eval()(torch.zeros(1, 3, size, size))
            except (AssertionError, RuntimeError, ValueError) as error:
                if out_of_memory(error):
                    raise
                patch = getattr(getattr(backbone.trunk, "patch_embed", None), "patch_size", None)
                side = patch[0] if isinstance(patch, tuple) else patch
                advice = f"; its patches are of {side} px: {setting}={max(1, round(size / side)) * side} fits" if side else ""
                why = str(error).strip().splitlines() or [type(error).__name__]
                raise UsageError(
                    f"{name} takes no images of {size} px, and {setting} is {size} ({why[0]}){advice}. Set another size, or "
                    "choose another --backbone"
                ) from error
            finally:
                backbone.train(training)


def extras_on(device: torch.device, batch: Batch, wants: Wants, config: AugmentConfig) -> dict[str, Tensor]:
    """`boxes`, `third` and `patches` for `Method.forward`, those that are wanted."""
    extras = {}
    if wants.boxes:
        flipped = batch.scene_draws[..., FLIP] > 0
        side, windows = batch.scenes.shape[-1], batch.scene_boxes
        boxes = [boxes_in_view(batch.view_boxes[v], windows[v], flipped[v], side) for v in range(2)]
        if wants.third:
            turned = batch.third_draws[..., FLIP] > 0
            boxes.append(boxes_in_view(batch.view_boxes[1], windows[1], turned, batch.third.shape[-1]))
        extras["boxes"] = sent(device, torch.stack(boxes))
    if wants.third:
        pixels, draws = sent(device, batch.third), sent(device, batch.third_draws)
        extras["third"] = augment(pixels, draws, config)
    if wants.patches:
        pixels, draws = sent(device, batch.patches), sent(device, batch.patch_draws)
        B, I = pixels.shape[0], pixels.shape[-1]  # noqa: E741 - the legend's letter
        by_place = pixels.permute(1, 0, 3, 4, 2).reshape(4 * B, I, I, 3).permute(0, 3, 1, 2)  # still channels last
        patches = augment(by_place, draws.transpose(0, 1).reshape(4 * B, -1), config)
        extras["patches"] = patches.reshape(4, B, 3, I, I)
    return extras


def sent(device: torch.device, tensor: Tensor) -> Tensor:
    """A tensor of a batch on a device, on its way there while the host goes on."""
    return tensor.to(device, non_blocking=True)


def boxes_in_view(
    boxes: Float[Tensor, "B K 4"], windows: Int32[Tensor, "B 4"], flipped: Tensor, side: int
) -> Float[Tensor, "B K 4"]:
    """Where boxes of the image lie in a view of it.

    The window is resized to `side` x `side` and then, where `flipped`, mirrored: edges between pixels move in proportion, as
    the resizing moves them. What lies outside the window is cut off; a box wholly outside becomes a line at the border.

    Args:
        boxes: x, y, w, h in pixels of the image.
        windows: x, y, w, h of the view in the image.
        flipped: B truths.
        side: of the view, pixels.

    Returns:
        x1, y1, x2, y2 in pixels of the view, 0 to `side`.

    """
    windows = windows.to(boxes.dtype).unsqueeze(1)
    near = boxes[..., :2] - windows[..., :2]
    edges = torch.cat([near, near + boxes[..., 2:]], dim=-1)
    edges = (edges * (side / windows[..., [2, 3, 2, 3]])).clamp(0, side)
    mirrored = torch.stack([side - edges[..., 2], edges[..., 1], side - edges[..., 0], edges[..., 3]], dim=-1)
    return torch.where(flipped.view(-1, 1, 1), mirrored, edges)
