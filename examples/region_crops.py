"""Shards in a training loop of your own: a contrastive step on crops of mined regions, in plain PyTorch.

univip-stream mine --src photos --out shards
python examples/region_crops.py shards
"""

import sys

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader
from torchvision.models import resnet18
from torchvision.transforms.v2.functional import horizontal_flip, resized_crop

from univip_stream import ShardDataset


def two_crops(samples):
    """A mined region of every image, and the same mirrored: B x 3 x 64 x 64 each, 0 to 1."""
    crops = []
    for sample in samples:
        height, width = sample.image.shape[1:]
        boxes = sample.boxes.tolist() or [[0, 0, width, height]]
        x, y, w, h = boxes[torch.randint(len(boxes), ()).item()]
        crops.append(resized_crop(sample.image, y, x, h, w, [64, 64]))
    regions = torch.stack(crops) / 255
    return regions, horizontal_flip(regions)


def main() -> None:
    """Two passes over the shards."""
    torch.manual_seed(0)
    network = resnet18(num_classes=32)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.03, momentum=0.9)
    shards = ShardDataset(sys.argv[1])
    for epoch in range(2):
        loader = DataLoader(shards.epoch(seed=0, epoch=epoch), batch_size=8, collate_fn=two_crops, drop_last=True)
        for first, second in loader:
            a, b = (F.normalize(network(regions), dim=1) for regions in (first, second))
            loss = F.cross_entropy(a @ b.T / 0.2, torch.arange(len(a)))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        print(f"epoch {epoch}: loss {loss.item():.3f}")


if __name__ == "__main__":
    main()
