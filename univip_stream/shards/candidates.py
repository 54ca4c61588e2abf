"""All boxes that an engine proposed, for another filter or program: in a file beside the index or, in version 1, in the index."""

import hashlib
from collections.abc import Callable, Iterator, Sequence

import pyarrow as pa

from univip_stream import storage
from univip_stream.errors import InputError, why
from univip_stream.parquet import batches_of, metadata_of
from univip_stream.shards.entry import FileFacts
from univip_stream.shards.format import FORMAT_1, FORMATS, SCHEMA, as_index, candidates_name, index_name

_CURE = "copy it from where these shards came, or mine this shard again"


def candidates_beside(index: bytes, shard: str, read: Callable[[str], bytes]) -> bytes | None:
    """Return the checked bytes of the candidates file that belongs to an index; None if the index holds the candidates
    itself. Args:
        index: bytes of the index.
        shard: location of the tar.
        read: function that returns the bytes of the file at a location.

    Raises:
        InputError: the file is missing, cut off, damaged, or of another run; the message names it.

    """
    try:
        metadata = metadata_of(index)
        if metadata.get("format") not in FORMATS:
            raise InputError(
                f"{index_name(shard)} has format {metadata.get('format')!r}; this version reads {' and '.join(map(repr, FORMATS))}"
            )
        if metadata["format"] == FORMAT_1:
            return None
        wanted = FileFacts(bytes=int(metadata["candidates_bytes"]), sha256=metadata["candidates_sha256"])
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{index_name(shard)}: not an index that can be read ({why(error)}); mine this shard again"
        ) from error
    name = candidates_name(shard)
    try:
        data = read(name)
    except FileNotFoundError as error:
        raise InputError(f"{name} is missing; it holds the candidates that other boxes are chosen from; {_CURE}") from error
    if len(data) == wanted.bytes and hashlib.sha256(data).hexdigest() == wanted.sha256:
        return data
    try:
        found = metadata_of(data)
    except (pa.ArrowException, OSError, KeyError) as error:
        raise InputError(
            f"{name} has {len(data)} bytes and is not a file of candidates; expected one of {wanted.bytes}: it was cut off or "
            f"damaged; {_CURE}"
        ) from error
    if any(found.get(fact) != metadata.get(fact) for fact in ("fingerprint", "tar_sha256")):
        raise InputError(
            f"{name} holds the candidates of another run or shard than {storage.name_of(index_name(shard))}; {_CURE}"
        )
    raise InputError(f"{name} has other bytes than its index says (SHA-256 differs): it was changed or damaged; {_CURE}")


def rows_with_candidates(
    index: bytes, candidates: bytes | None, size: int = 65536, columns: Sequence[str] | None = None
) -> Iterator[pa.RecordBatch]:
    """Yield the rows of an index with a last column `candidates`, whichever file holds it.

    Args:
        index: bytes of the index.
        candidates: bytes of the file beside it, as `candidates_beside` returns them.
        size: the most rows of a batch.
        columns: columns of the index to read, without `candidates`; None for all.

    Raises:
        pa.ArrowException: the bytes are not Parquet, or not what these files hold.

    """
    needed = [*(SCHEMA.names if columns is None else columns), "candidates"]
    if candidates is None:
        wanted = None if columns is None else [*columns, "candidates"]
        for batch in batches_of(index, size, wanted):
            yield as_index(batch, needed)
        return
    beside = _Rows(as_index(batch, ("key", "candidates")) for batch in batches_of(candidates, size))
    for batch in batches_of(index, size, None if columns is None else list(dict.fromkeys(["key", *columns]))):
        rows = beside.take(batch.num_rows)
        if rows is None or not rows.column("key").equals(batch.column("key")):
            raise pa.ArrowInvalid("the candidates are not those of its rows")
        yield as_index(batch.append_column("candidates", rows.column("candidates")), needed)


class _Rows:
    """Regroups batches of any lengths into batches of the lengths that are asked for."""

    def __init__(self, batches: Iterator[pa.RecordBatch]):
        self.batches = batches
        self.rest: pa.RecordBatch | None = None

    def take(self, count: int) -> pa.RecordBatch | None:
        """Return the next `count` rows; None if fewer remain."""
        parts, missing = [], count
        while missing:
            batch = self.rest if self.rest is not None else next(self.batches, None)
            if batch is None:
                return None
            taken = batch.slice(0, missing)
            self.rest = batch.slice(missing) if batch.num_rows > missing else None
            missing -= taken.num_rows
            parts.append(taken)
        return pa.concat_batches(parts) if len(parts) != 1 else parts[0]
