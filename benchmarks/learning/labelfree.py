"""Do measures without labels order the runs as kNN with labels does? Spearman's correlation over the finished cells of a set.

    python benchmarks/learning/labelfree.py --work out/learning [--set drawn]  # prints a table, writes results/labelfree-drawn.json

For each cell whose run folder is there: features of 400 images of the set that is trained on, a centre crop and six augmented
random crops of each, the same for every run. Measures are those of `probe.labelfree`, on all images and on two disjoint halves.
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from univip_stream.augment import augment, normalised
from univip_stream.images import decode
from univip_stream.pretrain import load_backbone
from univip_stream.probe.crops import CentreCrop, RandomCrop
from univip_stream.probe.labelfree import alignment, lidar, rankme, spread, uniformity

sys.path.insert(0, str(Path(__file__).resolve().parent))
from grid import SETS, cells

RESULTS = Path(__file__).resolve().parent / "results"
IMAGES, VIEWS = 400, 6
MEASURES = ("rankme", "lidar", "alignment", "uniformity", "spread")


def main() -> None:
    """Measure, correlate, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("out/learning"), help="images, shards and run folders")
    parser.add_argument(
        "--results", type=Path, default=RESULTS, help="where finished cells are read and the measures are written"
    )
    parser.add_argument("--set", default="drawn", choices=sorted(SETS))
    asked = parser.parse_args()
    out = asked.results / f"labelfree-{asked.set}.json"
    known = json.loads(out.read_text()) if out.exists() else {}
    pixels = None
    for cell in cells(f"{asked.set}/"):
        run, result = asked.work / "runs" / cell.name, asked.results / f"{cell.name}.json"
        if cell.name in known or not result.exists() or not (run / "config.json").exists():
            continue
        backbone, config = load_backbone(run, untrained=cell.row == "untrained")  # as kNN judges it; its run has one step
        if pixels is None:
            pixels = _pixels(asked.work / SETS[asked.set].images / "images", config.views.scene_size, config.augment)
        known[cell.name] = {"knn": json.loads(result.read_text())["knn"], **_measured(backbone, pixels, config.augment)}
        print(cell.name, known[cell.name]["all"], flush=True)
        out.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")
    print(table(known))


def _pixels(folder: Path, size: int, config) -> tuple[torch.Tensor, torch.Tensor]:
    """uint8 N x 3 x S x S centre crops, and N x Q x 3 x S x S augmented views, normalised: the same for every run."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix in (".jpg", ".png"))
    chosen = [paths[at] for at in np.random.default_rng(0).permutation(len(paths))[:IMAGES]]
    centre, views = CentreCrop(size), [RandomCrop(size, replace(config), seed=1, epoch=epoch) for epoch in range(VIEWS)]
    images = [decode(path.read_bytes()) for path in chosen]
    centres = torch.stack([centre(image, number)[0] for number, image in enumerate(images)])
    cut = [[crop(image, number) for crop in views] for number, image in enumerate(images)]
    pictures = torch.stack([torch.stack([pair[0] for pair in row]) for row in cut])
    draws = torch.stack([torch.stack([pair[1] for pair in row]) for row in cut])
    changed = torch.cat(
        [
            augment(part.flatten(0, 1), numbers.flatten(0, 1), config)
            for part, numbers in zip(pictures.split(50), draws.split(50), strict=True)
        ]
    )
    return centres, changed.unflatten(0, (len(images), VIEWS))


def _measured(backbone, pixels: tuple[torch.Tensor, torch.Tensor], config) -> dict:
    centres, views = pixels
    with torch.inference_mode():
        vectors = torch.cat([backbone(normalised(part, config)) for part in centres.split(50)]).float().numpy()
        seen = (
            torch.cat([backbone(part.flatten(0, 1)) for part in views.split(50)])
            .float()
            .numpy()
            .reshape(*views.shape[:2], -1)
        )
    whole = slice(None)
    parts = {"all": whole, "first": slice(0, IMAGES // 2), "second": slice(IMAGES // 2, None)}
    return {
        name: {
            "rankme": rankme(vectors[part]), "lidar": lidar(seen[part]), "alignment": alignment(seen[part]),
            "uniformity": uniformity(vectors[part]), "spread": spread(vectors[part]),
        }
        for name, part in parts.items()
    }  # fmt: skip


def spearman(first: np.ndarray, second: np.ndarray) -> float:
    """Correlation of ranks; equal values share theirs."""
    ranks = [
        np.array([(values < value).sum() + ((values == value).sum() - 1) / 2 for value in values])
        for values in (first, second)
    ]
    return float(np.corrcoef(*ranks)[0, 1])


def table(known: dict) -> str:
    """Spearman of each measure with kNN over runs, with the interval of 2,000 bootstraps over runs."""
    trained = {name: values for name, values in known.items() if "/untrained" not in name}
    return "\n\n".join([_table("all runs", known), _table("trained runs alone", trained)])


def _table(what: str, known: dict) -> str:
    names = sorted(known)
    knn = np.array([known[name]["knn"] for name in names])
    lines = [
        f"{what}: {len(names)}, kNN {knn.min():.3f} to {knn.max():.3f}",
        "measure  Spearman with kNN [95 %]  between halves",
    ]
    rng = np.random.default_rng(0)
    for measure in MEASURES:
        values = np.array([known[name]["all"][measure] for name in names])
        halves = [np.array([known[name][half][measure] for name in names]) for half in ("first", "second")]
        boots = []
        for _ in range(2000):
            rows = rng.integers(0, len(names), len(names))
            if len(set(rows)) > 3:
                boots.append(spearman(values[rows], knn[rows]))
        low, high = np.nanpercentile(boots, [2.5, 97.5])
        lines.append(f"{measure:10} {spearman(values, knn):+.2f} [{low:+.2f}, {high:+.2f}]  {spearman(*halves):.2f}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
