"""What an image costs in each row beside BYOL's: CPU seconds of reading, cutting, augmenting and a step, in rounds that alternate.

    python benchmarks/learning/cost.py --work out/learning [--set composed] [--rows byol printed K+two] [--rounds 10]

A cell's own minutes hang on what else ran beside it, because two threads of one core share it;
ratios of neighbouring rounds do not.
"""

import argparse
import os
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent))
import torch
from grid import SETS, Cell

from univip_stream.distributed import ALONE
from univip_stream.methods import build_method, build_plan
from univip_stream.pretrain.optim import build_optimizer
from univip_stream.pretrain.recipes import recipe
from univip_stream.pretrain.settings import with_settings
from univip_stream.pretrain.update import Updates
from univip_stream.stream import Stream

STEPS = 4
"""Of a row in a round."""


class Row:
    """A row, ready to train."""

    def __init__(self, cell: Cell, work: Path, scratch: Path) -> None:
        config = with_settings(recipe("cpu-demo"), cell.trained)
        plan = build_plan(config.method, config.views, config.augment)
        stream = Stream(str(work / SETS[cell.set].images / "shards"), plan, config.stream, reuse=True)
        self.images, self.batches = STEPS * config.stream.batch_size, iter(stream)
        method = build_method(config.method, plan).to(memory_format=torch.channels_last)
        self.updates = Updates(
            method, method, method, build_optimizer(method, config.optim), accumulate=1, precision=torch.bfloat16,
            config=config.augment, regions=plan.regions, device=torch.device("cpu"), process=ALONE, run=scratch,
        )  # fmt: skip
        self.seconds: list[float] = []

    def round(self) -> None:
        """Make some steps, and note the CPU seconds of an image."""
        began = time.process_time()
        for _ in range(STEPS):
            self.updates.gradient(self.batches, 0)
            self.updates.look(threading.Event())
            self.updates.apply(0.01, 0.99)
        self.seconds.append((time.process_time() - began) / self.images)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("out/learning"), help="where the benchmark's sets are")
    parser.add_argument("--set", default="composed", choices=sorted(SETS))
    parser.add_argument("--rows", nargs="*", default=["byol", "scene", "printed", "K+two"])
    parser.add_argument("--rounds", type=int, default=10)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        rows = {name: Row(Cell(set=asked.set, row=name, seed=0), asked.work, Path(scratch)) for name in asked.rows}
        for _ in range(asked.rounds + 1):
            for row in rows.values():
                row.round()
    first = next(iter(rows.values())).seconds[1:]
    for name, row in rows.items():
        seconds = row.seconds[1:]  # the first round allocates
        ratios = [own / other for own, other in zip(seconds, first, strict=True)]
        low, middle, high = (statistics.quantiles(ratios, n=4)[at] for at in (0, 1, 2))
        spent = f"{1000 * statistics.median(seconds):6.2f} ms of CPU an image"
        print(f"{name:10} {spent}, {middle:.2f} [{low:.2f}, {high:.2f}] of {asked.rows[0]}")


if __name__ == "__main__":
    main()
