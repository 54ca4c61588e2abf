"""Names, statuses and columns of the shard format, which everything else in `shards/` uses."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

FORMAT_1 = "univip-stream/1"
"""Version 1 of the layout, whose indexes hold the candidates too. It is still read."""
FORMAT_2 = "univip-stream/2"
"""Version 2 of the layout, which has candidates in a separate file. Every manifest and index states its version."""
FORMATS = (FORMAT_1, FORMAT_2)
"""Versions of the layout that are read."""
CONTENT = FORMAT_1
"""Part of a job's fingerprint besides its parameters. It stands for the contents of shards, which the layout does not change:
a job that began in version 1 continues in version 2, and a set that was upgraded to version 2 still belongs to its job."""

# The status of an image. Only images of the first two are samples in the tar; the index has a row for every image.
OK = "ok"
NO_BOXES = "no_boxes"
"""The image is there, but no box passed the filter."""
UNREADABLE = "unreadable"
TOO_SMALL = "too_small"
TOO_LARGE = "too_large"
OPTED_OUT = "opted_out"
"""The image's web server asks that it not be used (X-Robots-Tag). This is not a failure, as nothing is wrong."""
STATUSES = (OK, NO_BOXES, UNREADABLE, TOO_SMALL, TOO_LARGE, OPTED_OUT)
HELD = frozenset({OK, NO_BOXES})
"""The statuses whose image is in the tar."""
_HELD_TEXT = [status.encode() for status in sorted(HELD)]
HELD_VALUES = pa.StringArray.from_buffers(
    len(_HELD_TEXT),
    pa.py_buffer(np.cumsum([0, *map(len, _HELD_TEXT)], dtype=np.int32)),
    pa.py_buffer(b"".join(_HELD_TEXT)),
)
"""`HELD` as an Arrow array. It is made from bytes because `pa.array` imports pandas if that is installed, which costs every
process that reads an index half a second and 40 MB."""
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
"""Columns of the Parquet index beside each tar, which has one row for each image, failed ones included."""
SCHEMA_1 = SCHEMA.append(pa.field("candidates", BOXES))
"""Columns of the index in version 1."""
CANDIDATES = pa.schema([SCHEMA.field("key"), SCHEMA_1.field("candidates")])
"""Columns of the file of candidates, whose rows correspond to those of the index."""


_Rows = TypeVar("_Rows", pa.Table, pa.RecordBatch)


def as_index(rows: _Rows, needed: Iterable[str]) -> _Rows:
    """Check rows of an index or a file of candidates, and return them with the types of `SCHEMA`; all readers rely on this.

    Args:
        rows: rows of a file that claims to be an index or a file of candidates; columns that `SCHEMA` lacks stay as they are.
        needed: columns that must exist. `image_id` may always be missing, because the first shards did not have it.

    Raises:
        pa.ArrowInvalid: a column is missing, has another type, or has values that are not allowed; the message says which.

    """
    if missing := [name for name in needed if name not in (*rows.schema.names, "image_id")]:
        raise pa.ArrowInvalid(f"it lacks the columns {', '.join(missing)}")
    fields = []
    for field, column in zip(rows.schema, rows.columns, strict=True):
        wanted = SCHEMA_1.field(field.name) if field.name in SCHEMA_1.names else field
        fields.append(wanted)
        if not _is_compatible(field.type, wanted.type):
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


def _is_compatible(found: pa.DataType, wanted: pa.DataType) -> bool:
    """Return whether a cast keeps the meaning: numbers must not become text, nor text numbers."""
    kinds = (pa.types.is_integer, lambda kind: pa.types.is_string(kind) or pa.types.is_large_string(kind))
    if hasattr(wanted, "value_type"):
        return hasattr(found, "value_type") and _is_compatible(found.value_type, wanted.value_type)
    return bool(found == wanted or pa.types.is_null(found) or any(kind(found) and kind(wanted) for kind in kinds))


INDEX_COLUMNS = ["key", "source", "width", "height", "label", "status", "offset", "size", "sha256", "boxes"]
"""Columns that are needed to read samples."""


@dataclass(frozen=True, kw_only=True)
class StoredImage:
    """One image of the source, with the result of mining it."""

    key: str
    """Decimal number of nine digits, unique in the data set, in the order of the source."""
    source: str
    """Name of the image in its source, for people."""
    status: str
    """One of STATUSES."""
    reason: str | None = None
    """Reason why it is not a sample."""
    label: str | None = None
    """Class of the image, if the source gives one."""
    image_id: int | None = None
    """COCO's image id, if the source gives one."""
    width: int | None = None
    """Width of the upright image in pixels; None if it could not be read."""
    height: int | None = None
    """Height of the upright image in pixels; None if it could not be read."""
    data: bytes = b""
    """Bytes of the stored image."""
    suffix: str | None = None
    """Suffix of the stored image: jpg, png or webp."""
    sha256: str | None = None
    """SHA-256 of the stored image, hexadecimal."""
    converted: str | None = None
    """Reason why the stored bytes are not those of the source; None if they are."""
    proposals: str = ""
    """Name of the engine that proposed the boxes."""
    boxes: np.ndarray | None = None
    """N x 4, xywh in pixels: the boxes that passed the filter, best first."""
    candidates: np.ndarray | None = None
    """M x 4, xywh in pixels: all boxes that the engine proposed, best first."""

    def as_json(self) -> bytes:
        """Return the bytes of the JSON member beside the image."""
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
    """Return the key of the image at a place of the source's order. It has no dot, so that WebDataset splits it correctly."""
    return f"{number:09d}"


def shard_name(number: int, count: int) -> str:
    """Return the file name of a shard: `000.tar` for number 0, with more digits if `count` is above a thousand."""
    return f"{number:0{max(3, len(str(count - 1)))}d}.tar"


def index_name(shard: str) -> str:
    """Return the location of a shard's index: `000.parquet` for `000.tar`. A web address keeps what follows its `?`."""
    return _beside(shard, ".parquet")


def candidates_name(shard: str) -> str:
    """Return the location of a shard's candidates: `000.candidates.parquet` for `000.tar`, as in `index_name`."""
    return _beside(shard, ".candidates.parquet")


STAGED = ".upgraded"
"""Ending of an index of version 2 until the manifest that names it is written; it is gone when the set is upgraded."""


def files_of(shard: str) -> tuple[str, str, str]:
    """Return the files of a shard in the order in which they are written: tar, candidates, and the index, which completes it."""
    return shard, candidates_name(shard), index_name(shard)


def _beside(shard: str, ending: str) -> str:
    path, mark, query = shard.partition("?") if shard.startswith(("http://", "https://")) else (shard, "", "")
    return path.removesuffix(".tar") + ending + mark + query
