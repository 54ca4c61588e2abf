"""Lists of images in columns: Parquet, or text with commas or tabs between, whose first line names the columns."""

import csv
import math
from collections.abc import Iterator
from itertools import repeat
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from univip_stream.errors import InputError, why
from univip_stream.shards.samples import label_of

TABLES = (".parquet", ".csv", ".tsv")
"""Suffixes of lists in columns."""
_COLUMNS = ("path", "url", "image_path")
Row = tuple[str, str, str | None]
"""(position in the list, path or URL, label)"""


def table_rows(location: str, path: Path) -> Iterator[Row]:
    """Yield the rows of a list in columns.

    Args:
        location: location of the list, for messages.
        path: local file with the list.

    Raises:
        InputError: it cannot be read, or has no column of paths or URLs.

    """
    suffix = path.suffix.lower()
    return _parquet(location, path) if suffix == ".parquet" else _text(location, path, "\t" if suffix == ".tsv" else ",")


def _text(location: str, path: Path, between: str) -> Iterator[Row]:
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            heading = file.readline()
            if (
                between == "," and "," not in heading and ";" in heading
            ):  # as spreadsheets write it where the comma is decimal
                between = ";"
            names = [name.strip().lower() for name in next(csv.reader([heading], delimiter=between), [])]
            column = next((names.index(name) for name in _COLUMNS if name in names), None)
            if column is None:
                raise InputError(
                    f"{location} begins with {heading.strip()[:80]!r}; expected a first line that names the columns, one of them "
                    f"{', '.join(_COLUMNS)}, and perhaps label (a list without such a line can be read as .txt)"
                )
            label = names.index("label") if "label" in names else None
            reader = csv.reader(file, delimiter=between, strict=True)
            for row in reader:
                place = reader.line_num + 1
                if not row:
                    continue
                if len(row) <= max(column, label or 0) or not row[column]:
                    raise InputError(
                        f"{location}: line {place} has {len(row)} columns {row!r:.80}; expected {', '.join(names)}"
                    )
                yield f"line {place}", row[column], None if label is None else label_of(row[label])
    except (csv.Error, OSError) as error:
        raise InputError(f"{location}: not a table that can be read ({why(error)})") from error


def _parquet(location: str, path: Path) -> Iterator[Row]:
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            column = next((name for name in _COLUMNS if name in names), None)
            held = [name for name in names if column is None and _holds_images(file.schema_arrow.field(name).type)]
            if held:
                raise InputError(
                    f"{location} holds the images themselves (bytes in the column {held[0]}), as Hugging Face's data sets do; "
                    "expected paths or URLs: write the images to files, or to a tar of WebDataset samples, and name these"
                )
            if column is None:
                raise InputError(
                    f"{location} has the columns {', '.join(names)}; expected one of {', '.join(_COLUMNS)}, and perhaps label"
                )
            number = 0
            for batch in file.iter_batches(8192, columns=[column, *({"label"} & set(names))]):
                # Columns, not a dictionary a row: a list may have millions of rows.
                labels = batch.column("label").to_pylist() if "label" in names else repeat(None)
                for value, label in zip(batch.column(column).to_pylist(), labels, strict=False):
                    number += 1
                    yield f"row {number}", _path(location, number, value), _label(location, number, label)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(f"{location}: not a Parquet file that can be read ({why(error)})") from error


def _path(location: str, number: int, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise InputError(f"{location}: row {number} names {value!r}; expected a path or URL")
    return value


def _label(location: str, number: int, value: Any) -> str | None:
    if value is None or (isinstance(value, float) and math.isnan(value)):  # pandas writes either for a missing label
        return None
    if isinstance(value, bool):
        return str(value)
    label = label_of(value)
    if label is None and value != "":
        raise InputError(f"{location}: row {number} has the label {value!r}; expected text or a whole number")
    return label


def _holds_images(kind: pa.DataType) -> bool:
    binary = (pa.types.is_binary, pa.types.is_large_binary)
    fields = [kind.field(at).type for at in range(kind.num_fields)] if pa.types.is_struct(kind) else [kind]
    return any(is_binary(field) for field in fields for is_binary in binary)
