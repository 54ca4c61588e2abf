"""The words and columns of the format; everything else in `shards/` uses these."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

FORMAT_1 = "univip-stream/1"
"""The layout in which an index has the candidates too; still read."""
FORMAT_2 = "univip-stream/2"
"""Written in every manifest and index; another number means another layout. Candidates lie in a file of their own."""
FORMATS = (FORMAT_1, FORMAT_2)
"""What is read."""
CONTENT = FORMAT_1
"""What a job's fingerprint is made of beside its parameters. It says what the shards hold, which no layout changes: a job that
began in version 1 goes on in version 2, and a set that was turned into version 2 is still that of its job."""

# What became of an image. Only the first two are samples of the tar; every status is a row of the index.
OK = "ok"
NO_BOXES = "no_boxes"
"""The image is there, but no box passed the filter."""
UNREADABLE = "unreadable"
TOO_SMALL = "too_small"
TOO_LARGE = "too_large"
OPTED_OUT = "opted_out"
"""Its web server asks that it is not used (X-Robots-Tag). Nothing is wrong, so it is no failure."""
STATUSES = (OK, NO_BOXES, UNREADABLE, TOO_SMALL, TOO_LARGE, OPTED_OUT)
HELD = frozenset({OK, NO_BOXES})
"""The statuses whose image is in the tar."""
_HELD_TEXT = [status.encode() for status in sorted(HELD)]
HELD_VALUES = pa.StringArray.from_buffers(
    len(_HELD_TEXT),
    pa.py_buffer(np.cumsum([0, *map(len, _HELD_TEXT)], dtype=np.int32)),
    pa.py_buffer(b"".join(_HELD_TEXT)),
)
"""The same for Arrow. Made of their bytes, because `pa.array` imports pandas where that is installed: half a second and 40 MB of
every process that reads an index."""
FAILED = frozenset({UNREADABLE, TOO_LARGE})
"""The statuses that count against `--max-failures`: something is wrong with the file, or with our limits."""

BOXES = pa.list_(pa.list_(pa.int16(), 4))

SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("label", pa.string()),
        pa.field("image_id", pa.int64()),
        pa.field("status", pa.string(), nullable=False),
        pa.field("reason", pa.string()),
        pa.field("suffix", pa.string()),
        pa.field("offset", pa.int64()),
        pa.field("size", pa.int64()),
        pa.field("sha256", pa.string()),
        pa.field("converted", pa.string()),
        pa.field("boxes", BOXES),
    ]
)
"""Columns of the Parquet index beside each tar, one row an image, failures too."""
SCHEMA_1 = SCHEMA.append(pa.field("candidates", BOXES))
"""The same in version 1."""
CANDIDATES = pa.schema([SCHEMA.field("key"), SCHEMA_1.field("candidates")])
"""Columns of the file of candidates: the index's rows, in their order."""


_Rows = TypeVar("_Rows", pa.Table, pa.RecordBatch)


def as_index(rows: _Rows, needed: Iterable[str]) -> _Rows:
    """Rows of an index, with the types of `SCHEMA`, when they are what an index holds; every reader relies on it after. Those of a
    file of candidates too.

    Args:
        rows: of a file that says it is an index; columns that `SCHEMA` has not are left as they are.
        needed: columns that must be there. The first shards had no `image_id`, and need none.

    Raises:
        pa.ArrowInvalid: a column that is missing, of another type, or has what a column of an index never has; it says which.

    """
    if missing := [name for name in needed if name not in (*rows.schema.names, "image_id")]:
        raise pa.ArrowInvalid(f"it lacks the columns {', '.join(missing)}")
    fields = []
    for field, column in zip(rows.schema, rows.columns, strict=True):
        wanted = SCHEMA_1.field(field.name) if field.name in SCHEMA_1.names else field
        fields.append(wanted)
        if not _alike(field.type, wanted.type):
            raise pa.ArrowInvalid(f"its column {field.name} is {field.type}, expected {wanted.type}")
        if column.null_count and not wanted.nullable:
            raise pa.ArrowInvalid(f"its column {field.name} has rows without a value")
    rows = rows.cast(pa.schema(fields, metadata=rows.schema.metadata))
    for name in {"boxes", "candidates"}.intersection(rows.schema.names):
        inner = pc.list_flatten(rows.column(name))
        if inner.null_count or pc.list_flatten(inner).null_count:
            raise pa.ArrowInvalid(f"its column {name} has boxes without their numbers")
    held = pc.is_in(rows.column("status"), HELD_VALUES) if "status" in rows.schema.names else None
    for name in ("width", "height", "offset", "size", "sha256"):
        if name in rows.schema.names:
            column = rows.column(name)
            if held is not None and column.filter(held).null_count:
                raise pa.ArrowInvalid(f"its column {name} lacks the value of a sample")
            if name != "sha256" and len(column) > column.null_count and pc.min(column).as_py() < 0:
                raise pa.ArrowInvalid(f"its column {name} has numbers below 0")
    return rows


def _alike(found: pa.DataType, wanted: pa.DataType) -> bool:
    """Whether a cast keeps the meaning: a number is not taken for a text, however it would be written."""
    kinds = (pa.types.is_integer, lambda kind: pa.types.is_string(kind) or pa.types.is_large_string(kind))
    if hasattr(wanted, "value_type"):
        return hasattr(found, "value_type") and _alike(found.value_type, wanted.value_type)
    return bool(found == wanted or pa.types.is_null(found) or any(kind(found) and kind(wanted) for kind in kinds))


INDEX_COLUMNS = ["key", "source", "width", "height", "label", "status", "offset", "size", "sha256", "boxes"]
"""Those that reading samples takes."""


@dataclass(frozen=True, kw_only=True)
class StoredImage:
    """One image of the source, and what mining made of it."""

    key: str
    """Decimal, nine digits, unique in the data set, in source order."""
    source: str
    """The image's name in its source, for people."""
    status: str
    """One of STATUSES."""
    reason: str | None = None
    """Why it is no sample, in words."""
    label: str | None = None
    """Its class, where the source says one."""
    image_id: int | None = None
    """COCO's number of it, where the source says one."""
    width: int | None = None
    """Pixels of the upright image; None where it could not be read."""
    height: int | None = None
    """As `width`."""
    data: bytes = b""
    """The stored image."""
    suffix: str | None = None
    """Of the stored image: jpg, png or webp."""
    sha256: str | None = None
    """Of the stored image, hexadecimal."""
    converted: str | None = None
    """Why the stored bytes are not the source's."""
    proposals: str = ""
    """The engine the boxes come from."""
    boxes: np.ndarray | None = None
    """N x 4 xywh, filtered, best first."""
    candidates: np.ndarray | None = None
    """M x 4 xywh, all of the engine's, best first."""

    def as_json(self) -> bytes:
        """The JSON member beside the image."""
        boxes = [] if self.boxes is None else self.boxes.tolist()
        fields: dict[str, Any] = {
            "key": self.key,
            "source": self.source,
            "width": self.width,
            "height": self.height,
            "label": self.label,
            "boxes": boxes,
            "proposals": self.proposals,
            "converted": self.converted,
            "sha256": self.sha256,
        }
        if self.image_id is not None:
            fields["image_id"] = self.image_id
        return json.dumps(fields, ensure_ascii=False).encode()


def key_of(number: int) -> str:
    """The key of the image at a place in the source order: dot-free, so that WebDataset splits it rightly."""
    return f"{number:09d}"


def shard_name(number: int, count: int) -> str:
    """`000.tar` and on; more digits where there are more than a thousand shards."""
    return f"{number:0{max(3, len(str(count - 1)))}d}.tar"


def index_name(shard: str) -> str:
    """`000.parquet` for `000.tar`, also with folders before it; a web address keeps what follows its `?`."""
    return _beside(shard, ".parquet")


def candidates_name(shard: str) -> str:
    """`000.candidates.parquet` for `000.tar`, as `index_name`."""
    return _beside(shard, ".candidates.parquet")


STAGED = ".upgraded"
"""Ending of an index of version 2 that waits for the manifest that names it; gone when the set is upgraded."""


def files_of(shard: str) -> tuple[str, str, str]:
    """All files of a shard in the order that they are written: the tar, its candidates, and the index, which completes it."""
    return shard, candidates_name(shard), index_name(shard)


def _beside(shard: str, ending: str) -> str:
    path, mark, query = shard.partition("?") if shard.startswith(("http://", "https://")) else (shard, "", "")
    return path.removesuffix(".tar") + ending + mark + query
