"""Listing a source: peak memory and seconds, against all names in a list as most programs have them.

    python benchmarks/listing.py                  # 100,000 empty files, in one folder and in a thousand
    python benchmarks/listing.py --files 500000

Every listing runs in a process of its own; memory is the growth of its peak resident size over what the imports took.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

OURS = "from univip_stream.sources import list_sources as run; run(['{warm}'])"
PLAIN = "from pathlib import Path; run = lambda folders: sorted(p for p in Path(folders[0]).rglob('*') if p.is_file())"
CODE = """
import resource, time
{setup}
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before, began = peak(), time.perf_counter()
found = run(['{folder}'])
assert len(found) == {files}, len(found)
print(peak() - before, time.perf_counter() - began)
"""


def fill(folder: Path, files: int, folders: int) -> None:
    """Empty files in so many folders."""
    for number in range(folders):
        (folder / f"n{number:08d}").mkdir(parents=True)
    for number in range(files):
        os.close(os.open(folder / f"n{number % folders:08d}" / f"{number:012d}.jpg", os.O_CREAT | os.O_WRONLY))


def measured(setup: str, folder: Path, files: int) -> tuple[float, float]:
    """Megabytes and seconds."""
    code = CODE.format(setup=setup, folder=folder, files=files)
    words = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    return float(words[0]), float(words[1])


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=100_000)
    files = parser.parse_args().files
    with tempfile.TemporaryDirectory() as place:
        warm = Path(place, "warm")
        fill(warm, 1, 1)
        for folders in (1, 1000):
            folder = Path(place, str(folders))
            fill(folder, files, folders)
            ours = measured(OURS.format(warm=warm), folder, files)
            plain = measured(PLAIN, folder, files)
            print(
                f"{files} files in {folders} folders: {ours[0]:.1f} MB, {ours[1]:.2f} s; all paths in a list: {plain[0]:.1f} MB, "
                f"{plain[1]:.2f} s; memory {ours[0] / plain[0]:.2f} of it"
            )


if __name__ == "__main__":
    main()
