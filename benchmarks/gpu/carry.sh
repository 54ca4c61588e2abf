#!/usr/bin/env bash
# Gathers what `benchmarks/gpu.sh` takes to a machine without network: wheels, photographs and Imagenette; says how much it is.
#
# All goes into benchmarks/gpu/carried, which git ignores: the wheels that Python 3.12 with torch and torchvision may lack, photographs to
# stream, and Imagenette at 128 px to learn from.
#
#   bash benchmarks/gpu/carry.sh [IMAGENETTE [PHOTOGRAPHS [PACKAGE ...]]]
#
# IMAGENETTE holds train/ and val/ with a folder a class, PHOTOGRAPHS JPEGs; "" leaves one out: scenes are drawn there instead. PACKAGEs
# are carried beside the two that CUDA images mostly lack; all that training imports is listed in docs/how-to/gpu.md.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
carried=$here/carried
python=${PYTHON:-python3}
mkdir -p "$carried/wheels"
for package in simplejpeg beartype "${@:3}"; do
    "$python" -m pip download -q --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
        --platform manylinux_2_28_x86_64 --platform manylinux_2_27_x86_64 --platform manylinux_2_17_x86_64 \
        --platform manylinux2014_x86_64 --platform manylinux1_x86_64 -d "$carried/wheels" "$package"
done
"$python" - "$carried" "${1:-}" "${2:-}" <<'PYTHON'
import io
import sys
from pathlib import Path

from PIL import Image

carried, imagenette, photographs = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
MOST = 60 * 2**20  # of all; tools that carry a working tree take 64 MiB, the repository among it
SUFFIXES = {".jpg", ".jpeg", ".png"}


def images(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.iterdir()) if path.suffix.lower() in SUFFIXES]


def write(goal: Path, data: bytes) -> None:
    """Whole or not at all: what was cut off would be taken for an image."""
    goal.with_suffix(".part").write_bytes(data)
    goal.with_suffix(".part").replace(goal)


if photographs:
    found = [path for path in sorted(Path(photographs).rglob("*")) if path.suffix.lower() in (".jpg", ".jpeg")]
    if not found:
        sys.exit(f"error: {photographs} holds no JPEGs")
    (carried / "photographs").mkdir(parents=True, exist_ok=True)
    for number, path in zip(range(24), (path for path in found if path.stat().st_size < 250_000)):
        write(carried / "photographs" / f"{number:02d}.jpg", path.read_bytes())
if imagenette:
    for split, most in (("train", 1 << 30), ("val", 150)):
        classes = [path for path in sorted((Path(imagenette) / split).glob("*")) if path.is_dir()]
        if not classes:
            sys.exit(f"error: {imagenette} holds no {split}/ with a folder a class")
        for folder in classes:
            goal = carried / "imagenette" / split / folder.name
            goal.mkdir(parents=True, exist_ok=True)
            for path in images(folder)[:most]:
                small = (goal / path.name).with_suffix(".jpg")
                if not small.exists():
                    # Smaller files; at 128 px quality 75 is not seen by a network that blurs and crops.
                    data = io.BytesIO()
                    try:
                        Image.open(path).convert("RGB").save(data, "JPEG", quality=75)
                    except OSError as error:
                        print(f"left out: {path} ({error})")
                        continue
                    write(small, data.getvalue())
size = sum(path.stat().st_size for path in carried.rglob("*") if path.is_file())
for folder in sorted(carried.iterdir()):
    inside = [path for path in folder.rglob("*") if path.is_file()]
    print(f"{sum(path.stat().st_size for path in inside) / 2**20:6.1f} MiB in {len(inside)} files: {folder.name}")
print(f"{size / 2**20:6.1f} MiB together")
sys.exit(f"error: more than {MOST / 2**20:.0f} MiB; leave something out" if size > MOST else 0)
PYTHON
