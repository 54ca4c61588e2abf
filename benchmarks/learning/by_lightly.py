"""BYOL as lightly has it, on the same pictures, sizes and budget: a reference that nobody here wrote.

Losses, heads, views, moving average and momentum schedule are lightly's; optimizer and learning-rate curve are torch's, with
the settings of our cell. lightly needs an environment of its own beside ours:

    python -m venv lightly && echo SITE_PACKAGES > lightly/lib/python3.11/site-packages/ours.pth   # of the environment with torch
    lightly/bin/pip install --no-deps lightly==1.6.0 lightly_utils

The cell calls it: `by_lightly.py PICTURES OUT EPOCHS BATCH LR WARMUP_EPOCHS EMA SIZE SEED`. It resumes after the last whole epoch.
"""

import copy
import json
import math
import random
import sys
from pathlib import Path

import numpy as np
import timm
import torch
from lightly.loss import NegativeCosineSimilarity
from lightly.models.modules import BYOLPredictionHead, BYOLProjectionHead
from lightly.models.utils import deactivate_requires_grad, update_momentum
from lightly.transforms.byol_transform import BYOLTransform, BYOLView1Transform, BYOLView2Transform
from lightly.utils.scheduler import cosine_schedule
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

BACKBONE, HIDDEN, WIDTH = "resnet10t", 512, 128


class Network(nn.Module):
    """Backbone and heads, each view a forward of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = timm.create_model(BACKBONE, num_classes=0)
        self.projector = BYOLProjectionHead(self.backbone.num_features, HIDDEN, WIDTH)
        self.predictor = BYOLPredictionHead(WIDTH, HIDDEN, WIDTH)
        self.target_backbone, self.target_projector = copy.deepcopy(self.backbone), copy.deepcopy(self.projector)
        deactivate_requires_grad(self.target_backbone)
        deactivate_requires_grad(self.target_projector)

    def forward(self, view: Tensor) -> tuple[Tensor, Tensor]:
        """Prediction of the online network, projection of the target."""
        with torch.no_grad():
            target = self.target_projector(self.target_backbone(view))
        return self.predictor(self.projector(self.backbone(view))), target


def main(
    pictures: Path, out: Path, epochs: float, batch: int, lr: float, warmup: float, ema: float, size: int, seed: int
) -> None:
    """Train; write backbone.safetensors and metrics.jsonl into `out`."""
    paths = sorted(path for path in pictures.iterdir() if not path.name.startswith("."))
    images = [Image.open(path).convert("RGB") for path in paths]
    total = round(epochs * len(images) / batch)
    rise = round(warmup * len(images) / batch)
    views = BYOLTransform(BYOLView1Transform(input_size=size), BYOLView2Transform(input_size=size))
    torch.manual_seed(seed)
    network = Network().to(memory_format=torch.channels_last)
    criterion = NegativeCosineSimilarity()
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=lr, momentum=0.9, weight_decay=1e-4)
    out.mkdir(parents=True, exist_ok=True)
    saved, step = out / "checkpoint.pt", 0
    if saved.exists():
        state = torch.load(saved, weights_only=True)
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        step = state["step"]
    with (out / "metrics.jsonl").open("a") as log:
        while step < total:
            # An epoch without a seam to the last, as our stream has it: what chance gives depends on seed and step alone.
            torch.manual_seed((seed << 32) + step)
            random.seed((seed << 32) + step)
            np.random.seed((seed + step) % (1 << 32))
            numbers = [(step * batch + n) for n in range(batch)]
            chosen = [images[_order(seed, n // len(images), len(images))[n % len(images)]] for n in numbers]
            first, second = (torch.stack(column) for column in zip(*(views(image) for image in chosen), strict=True))
            with torch.autocast("cpu", torch.bfloat16):
                p_1, z_1 = network(first)
                p_2, z_2 = network(second)
                loss = criterion(p_1.float(), z_2.float()) + criterion(p_2.float(), z_1.float())
            loss.backward()
            share = (step - rise) / max(1, total - rise)
            rate = lr * (step + 1) / rise if step < rise else lr * (1 + math.cos(math.pi * share)) / 2
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad()
            momentum = cosine_schedule(step, total, ema, 1)
            update_momentum(network.backbone, network.target_backbone, m=momentum)
            update_momentum(network.projector, network.target_projector, m=momentum)
            step += 1
            if step % 10 == 0 or step == total:
                log.write(json.dumps({"step": step, "loss": float(loss.detach())}) + "\n")
                log.flush()
            if step % 200 == 0 or step == total:
                state = {"network": network.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
                torch.save(state, saved.with_suffix(".part"))
                saved.with_suffix(".part").replace(saved)
    weights = {name: value.detach().contiguous() for name, value in network.backbone.state_dict().items()}
    save_file(weights, out / "backbone.safetensors", {"format": "pt", "backbone": BACKBONE, "small_stem": "False"})


_ORDERS: dict[tuple[int, int], list[int]] = {}


def _order(seed: int, epoch: int, count: int) -> list[int]:
    if (seed, epoch) not in _ORDERS:
        _ORDERS.clear()
        _ORDERS[seed, epoch] = np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(count).tolist()
    return _ORDERS[seed, epoch]


if __name__ == "__main__":
    pictures, out, epochs, batch, lr, warmup, ema, size, seed = sys.argv[1:]
    main(Path(pictures), Path(out), float(epochs), int(batch), float(lr), float(warmup), float(ema), int(size), int(seed))
