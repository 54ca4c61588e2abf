"""What a set costs to open and to read at the beginning, from ten thousand images to a billion.

    python benchmarks/scale.py                      # 10^4 to 10^9; half a minute of links for the largest
    python benchmarks/scale.py --most 1e6 --json out/scale.json

The sets are made up: a manifest that names shards of so many images, and every shard a link to one of `--images-a-shard` rows whose
images are a few drawn ones. So what hangs on the number of images and shards is real, and no disk is filled.

Every line is a process of its own; memory is the growth of its peak resident size over what the imports took. `open` is from the
shards' names to a stream, `batch` from there to the first batch of 64 (decoding and cutting included), `cpu` the processor's
seconds of both, `seam` two batches over the end of the first epoch, `resume` all of it from a step in the middle of the second,
in a new process. Beside them version 1's way: all indexes, with their candidates, read before the first step, as far as
`--old-way-up-to` images.
"""

import argparse
import hashlib
import io
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "pipelines"))
from demo_images import SHAPES, draw_scene

from univip_stream.mining.job import write_manifest
from univip_stream.mining.output import Output
from univip_stream.shards.entry import EntryTable, FileFacts, ShardEntry
from univip_stream.shards.format import OK, StoredImage, files_of, index_name, key_of, shard_name
from univip_stream.shards.manifest import MadeBy, make_manifest, read_manifest
from univip_stream.shards.write import write_shard

BATCH = 64
CANDIDATES = 1900
"""An image, as our search gives."""
MOST_SHARDS = 100_000
PICTURES = 64

CODE = """
import json, sys, time
from itertools import islice
from univip_stream.augment import AugmentConfig
from univip_stream.methods.univip import UniVIPPlan
from univip_stream.shards import expand_shards, open_index, open_shards
from univip_stream.shards.cache import Cache
from univip_stream.stream import Stream, StreamConfig
from univip_stream.views import ViewConfig

folder, way, start = sys.argv[1], sys.argv[2], sys.argv[3]

def memory(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(name)) / 1024

plan = UniVIPPlan(ViewConfig(scene_size=64, instance_size=32), AugmentConfig())
open("/proc/self/clear_refs", "w").write("5")  # the peak of the imports is none of this
before, began, worked = memory("VmRSS"), time.perf_counter(), time.process_time()
index = (open_index if way == "old" else open_shards)(expand_shards(folder), Cache())
stream = Stream(index, plan, StreamConfig(batch_size=64, workers=0))
opened = time.perf_counter() - began
step = {"first": 0, "seam": int(len(index) // 64) - 1, "resume": int(1.37 * len(index) // 64)}[start]
batches = iter(stream.starting_at(step))
began = time.perf_counter()
keys = [next(batches).keys for _ in range(2 if start == "seam" else 1)]
batch = time.perf_counter() - began
batches.close()
print(json.dumps({"open": opened, "batch": batch, "memory": memory("VmHWM") - before,
                  "cpu": time.process_time() - worked}))
"""


def pictures() -> list[bytes]:
    """A few drawn scenes as JPEG."""
    rng = np.random.default_rng(0)
    found = []
    for number in range(PICTURES):
        scene = cv2.cvtColor(draw_scene(SHAPES[number % len(SHAPES)], rng), cv2.COLOR_RGB2BGR)
        found.append(cv2.imencode(".jpg", scene)[1].tobytes())
    return found


def write_one(folder: Path, rows: int, boxes_: int, candidates: int = 0) -> ShardEntry:
    """One shard of so many rows, whose tar holds the few pictures; its images are these again and again."""
    rng = np.random.default_rng(0)
    images = pictures()

    def samples(count: int):
        for number in range(count):
            corner = rng.integers(0, (250, 170), (max(boxes_, candidates), 2))
            boxes = np.concatenate([corner, np.full_like(corner, 64)], axis=1).astype(np.int16)
            data = images[number % PICTURES]
            yield StoredImage(
                key=key_of(number), source=f"made-up/{number:012d}.jpg", status=OK, width=320, height=240, data=data, suffix="jpg",
                sha256=hashlib.sha256(data).hexdigest(), proposals="naive", boxes=boxes[:boxes_],
                candidates=boxes[: candidates or boxes_],
            )  # fmt: skip

    import pyarrow.parquet as pq

    import univip_stream.shards.write as writing

    real, places = writing._add_sample, {}

    def once(tar, file, sample):
        """The picture's place in the tar; it is written the first time."""
        if sample.sha256 not in places:
            places[sample.sha256] = real(tar, file, sample)
        return places[sample.sha256]

    writing._add_sample = once
    try:
        entry = write_shard(samples(rows), folder / "one.tar", "made-up")
    finally:
        writing._add_sample = real
    assert pq.read_metadata(folder / index_name("one.tar")).num_rows == rows
    return entry


def build(folder: Path, one: Path, entry: ShardEntry, shards: int) -> None:
    """A folder of links to one shard, and the manifest that names them."""
    folder.mkdir()
    names = [shard_name(number, shards) for number in range(shards)]
    for name in names:
        for link, real in zip(files_of(name), files_of("one.tar"), strict=True):
            os.symlink(one / real, folder / link)
    row = EntryTable.from_entries([entry]).table
    import pyarrow as pa

    table = pa.concat_tables([row] * shards).combine_chunks()
    table = table.set_column(0, table.schema.field(0), pa.array(names))
    for name in ("sha256", "candidates_sha256"):  # what nothing here reads, so that the list is as long as a real one
        noise = np.random.default_rng(0).bytes(32 * shards)
        column = pa.FixedSizeBinaryArray.from_buffers(pa.binary(32), shards, [None, pa.py_buffer(noise)])
        at = table.schema.get_field_index(name)
        table = table.set_column(at, table.schema.field(at), column)
    entries = EntryTable(table)
    made_by = MadeBy(parameters={"sources": ["made-up"]}, fingerprint="made-up")
    totals_of = list(entries) if shards <= 4096 else entries
    write_manifest(Output(folder), make_manifest(totals_of, made_by))


def measured(folder: Path, way: str, start: str) -> dict[str, float]:
    """What a process says of itself."""
    words = [sys.executable, "-c", CODE, str(folder), way, start]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout)


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--most", type=float, default=1e9, help="images of the largest set")
    parser.add_argument(
        "--old-way-up-to", type=float, default=1e5, help="images of the largest set that is read as version 1 was"
    )
    parser.add_argument("--powers", type=int, nargs="+", default=range(4, 10), help="of ten: which sets")
    parser.add_argument(
        "--boxes", type=int, default=30, help="boxes of an image; COCO has 97 with the usual filter, 30 with --max-boxes 30"
    )
    parser.add_argument("--json", type=Path, help="file for the numbers")
    options = parser.parse_args()
    lines = []
    print("       images  shards  manifest    open   batch     cpu   memory    seam  resume")
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as place:
        for power in options.powers:
            images = 10**power
            if images > options.most:
                break
            rows = max(1000, images // MOST_SHARDS)
            one, folder = Path(place, f"one-{rows}"), Path(place, f"set-{power}")
            if not one.exists():
                one.mkdir()
                entries = {rows: write_one(one, rows, options.boxes)}
            build(folder, one, entries[rows], images // rows)
            size = sum(path.stat().st_size for path in folder.glob("manifest*"))
            first, seam, resume = (measured(folder, "new", start) for start in ("first", "seam", "resume"))
            line = {
                "images": images, "shards": images // rows, "manifest_bytes": size, "open_s": first["open"],
                "batch_s": first["batch"], "cpu_s": first["cpu"], "memory_mb": first["memory"], "seam_s": seam["batch"],
                "resume_s": resume["open"] + resume["batch"], "resume_mb": resume["memory"],
            }  # fmt: skip
            lines.append(line)
            print(f"{images:13,} {line['shards']:7,}  {size / 1e6:6.2f}MB  {_said(first)}  {seam['batch']:5.2f}s  "
                  f"{line['resume_s']:5.2f}s", flush=True)  # fmt: skip
            if images <= options.old_way_up_to:
                old = old_way(Path(place), images, options.boxes)
                lines.append({"images": images, "way": "version 1", **old})
                print(f"{'as version 1':>13} {'':7}  {'':8}  {_said(old)}", flush=True)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(lines, indent=1) + "\n")


def _said(found: dict[str, float]) -> str:
    return f"{found['open']:5.2f}s  {found['batch']:5.2f}s  {found['cpu']:5.2f}s  {found['memory']:5.0f}MB"


def old_way(place: Path, images: int, boxes: int) -> dict[str, float]:
    """Every index with its candidates read before the first step."""
    import pyarrow.parquet as pq

    one, folder = place / "one-old", place / f"old-{images}"
    if not one.exists():
        one.mkdir()
        entry = write_one(one, 1000, boxes, CANDIDATES)
        index, beside = (pq.read_table(one / name) for name in ("one.parquet", "one.candidates.parquet"))
        facts = {**entry_facts(one / "one.parquet"), "format": "univip-stream/1"}
        table = index.append_column("candidates", beside.column("candidates")).replace_schema_metadata()
        buffer = io.BytesIO()
        with pq.ParquetWriter(buffer, table.schema, compression="zstd", store_schema=False) as writer:
            writer.write_table(table)
            writer.add_key_value_metadata(facts)
        (one / "one.parquet").write_bytes(buffer.getvalue())
        (one / "entry.json").write_text(json.dumps(entry.as_json()))
    data = (one / "one.parquet").read_bytes()
    said = json.loads((one / "entry.json").read_text())
    said["index"] = FileFacts(bytes=len(data), sha256=hashlib.sha256(data).hexdigest()).as_json()
    del said["candidates"], said["pixels"]
    build(folder, one, ShardEntry.of(said), images // 1000)
    assert read_manifest(folder).format == "univip-stream/1"
    return measured(folder, "old", "first")


def entry_facts(path: Path) -> dict[str, str]:
    """What an index says of itself."""
    import pyarrow.parquet as pq

    return {k.decode(): v.decode() for k, v in pq.read_metadata(path).metadata.items() if k != b"ARROW:schema"}


if __name__ == "__main__":
    main()
