"""Report of the demo: whether the loss fell, whether the representation separates the classes, and which files to look at.

    python pipelines/demo_report.py OUT

The exit status is 1 if the loss did not fall or kNN is not above chance, so that the demo is also a check.
"""

import json
import sys
from pathlib import Path

import cv2
import numpy as np

TERMS = ("loss", "loss_scene", "loss_scene_instance", "loss_instance")


def loss_table(metrics: Path) -> tuple[list[str], bool]:
    """Return lines that show each term of the loss at the start and the end of a run, and whether their sum fell."""
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    window = max(1, len(rows) // 10)
    lines = [f"{'':22}{'first':>10}{'last':>10}   (means of {window} records, {rows[-1]['step']} steps)"]
    means = {term: [np.mean([row[term] for row in part]) for part in (rows[:window], rows[-window:])] for term in TERMS}
    lines += [f"{term:22}{first:10.3f}{last:10.3f}" for term, (first, last) in means.items()]
    return lines, bool(means["loss"][1] < means["loss"][0])


def contact_sheet(shards: Path, out: Path, columns: int = 4, rows: int = 3, cell: tuple[int, int] = (320, 240)) -> None:
    """Draw the first mined boxes of evenly spaced images into one PNG."""
    from univip_stream import ShardDataset

    samples = list(ShardDataset(str(shards)))
    chosen = [samples[i] for i in np.linspace(0, len(samples) - 1, columns * rows).astype(int)]
    sheet = np.full((rows * cell[1], columns * cell[0], 3), 255, np.uint8)
    for index, sample in enumerate(chosen):
        image = np.ascontiguousarray(np.asarray(sample.image).transpose(1, 2, 0)[..., ::-1])
        scale = min(cell[0] / image.shape[1], cell[1] / image.shape[0])
        image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        for rank, box in enumerate(np.asarray(sample.boxes)[:8]):
            x, y, w, h = (box * scale).round().astype(int).tolist()
            hue = np.uint8([[[rank * 22 % 180, 255, 255]]])
            colour = cv2.cvtColor(hue, cv2.COLOR_HSV2BGR)[0, 0].tolist()
            cv2.rectangle(image, (x, y), (x + w - 1, y + h - 1), colour, 2)
        y, x = divmod(index, columns)
        y, x = y * cell[1], x * cell[0]
        sheet[y : y + image.shape[0], x : x + image.shape[1]] = image
    if not cv2.imwrite(str(out), sheet):
        raise OSError(f"could not write {out}")


def main(out: Path) -> int:
    """Print the report of the demo in `out`; return the exit status."""
    lines, fell = loss_table(out / "run" / "metrics.jsonl")
    knn = json.loads((out / "knn.json").read_text())
    contact_sheet(out / "shards", out / "boxes.png")
    above = knn["top1"] > knn["chance"]

    print("\n== results of the demo")
    print("\n".join(lines))
    print(f"{'kNN on unseen scenes':22}{knn['top1']:10.3f}   chance {knn['chance']:.3f}, "
          f"the same network untrained {knn['untrained']['top1']:.3f}")  # fmt: skip
    print(f"\nlook at   {out / 'boxes.png'}               boxes that were mined")
    print(f"          {out / 'shards'}                  the shards: 000.tar, 000.parquet, ..., manifest.json")
    print(f"          {out / 'run' / 'metrics.jsonl'}       every recorded step")
    print(f"          {out / 'run' / 'backbone.safetensors'}   the trained backbone")
    if not fell:
        print("error: the loss did not fall", file=sys.stderr)
    if not above:
        print("error: kNN is not above chance", file=sys.stderr)
    return 0 if fell and above else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
