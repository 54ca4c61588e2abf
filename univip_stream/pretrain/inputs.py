"""What a method gets of a batch: its pictures augmented and normalised, and the plan's numbers, on the device."""

import torch
from torch import Tensor

from univip_stream.augment import AugmentConfig, augment
from univip_stream.errors import UsageError
from univip_stream.networks import Backbone
from univip_stream.plan import Plan
from univip_stream.pretrain.troubles import out_of_memory
from univip_stream.stream import Batch


def inputs_on(
    device: torch.device, batch: Batch, config: AugmentConfig, *, channels_last: bool = True, compiled: bool = False
) -> dict[str, Tensor]:
    """Return what `Method.forward` takes, by name: float32 pictures of every cut, laid out as in the batch, and the facts.

    Args:
        device: where they are wanted.
        batch: from the stream.
        config: of the augmentations.
        channels_last: how the networks' weights lie in memory, and so the pictures had better.
        compiled: whether the augmentations are compiled too, where they run on a GPU.

    """

    def sent(tensor: Tensor) -> Tensor:
        """Send a tensor to the device, while the host goes on."""
        return tensor.to(device, non_blocking=True)

    # Each once, and nothing that only the host reads.
    pixels = {name: sent(tensor) for name, tensor in batch.pixels.items()}
    inputs = {name: sent(tensor) for name, tensor in batch.facts.items()}
    for name, cut in batch.cuts.items():
        of_cut, draws = pixels[cut.again or name], sent(batch.draws[name])
        augmented = augment(of_cut.flatten(0, 1), draws.flatten(0, 1), config, compiled=compiled).reshape(of_cut.shape)
        inputs[name] = augmented if channels_last else augmented.contiguous()
    return inputs


def check_sizes(backbone: Backbone, name: str, plan: Plan) -> None:
    """Raise UsageError if the backbone does not take images of the sizes that are set. Leaves it as it was.

    Vision transformers cut images into patches, whose size must divide the image's; others need a least size.
    """
    sizes = {cut.setting or f"the cut {of}": cut.size for of, cut in plan.cuts.items()}
    training = backbone.training
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        for setting, size in sizes.items():
            try:
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
