"""Upgrade a shard from version 1 to version 2: its candidates move out of the index, and its tar stays as it is."""

import io
from dataclasses import replace

import pyarrow as pa

from univip_stream.errors import InputError, why
from univip_stream.files import sha256_of_bytes
from univip_stream.parquet import metadata_of, table_of
from univip_stream.shards.entry import FileFacts, ShardEntry
from univip_stream.shards.format import CANDIDATES, FORMAT_1, SCHEMA, SCHEMA_1, as_index, index_name
from univip_stream.shards.write import ROWS_A_GROUP, candidates_facts, index_facts, parquet_writer, pixels_of


def upgraded(index: bytes, entry: ShardEntry) -> tuple[bytes, bytes, ShardEntry]:
    """Return the files that `mine` would have written in version 2 for a shard of version 1.

    Args:
        index: bytes of its index.
        entry: its entry in the manifest.

    Returns:
        (bytes of the file of candidates, bytes of the index, the shard's new entry).

    Raises:
        InputError: it is not the index that the manifest names.

    """
    name = index_name(entry.name)
    if sha256_of_bytes(index) != entry.index.sha256:
        raise InputError(
            f"{name} is not the index that its manifest names; `univip-stream verify` says more, mining again repairs it"
        )
    try:
        metadata = metadata_of(index)
        if metadata.get("format") != FORMAT_1:
            raise InputError(f"{name} has format {metadata.get('format')!r}; expected {FORMAT_1!r}")
        table = as_index(table_of(index), SCHEMA_1.names)
        if "image_id" not in table.schema.names:  # the first shards lack it
            table = table.append_column("image_id", pa.nulls(len(table), pa.int64()))
        fingerprint = metadata["fingerprint"]
    except (pa.ArrowException, OSError, KeyError) as error:
        raise InputError(f"{name}: not an index that can be read ({why(error)}); mine this shard again") from error
    tar = FileFacts(bytes=entry.bytes, sha256=entry.sha256)
    candidates = _file(table, CANDIDATES, candidates_facts(fingerprint, tar.sha256))
    beside = FileFacts(bytes=len(candidates), sha256=sha256_of_bytes(candidates))
    new = _file(table, SCHEMA, index_facts(fingerprint, tar, beside))
    facts = FileFacts(bytes=len(new), sha256=sha256_of_bytes(new))
    return candidates, new, replace(entry, index=facts, candidates=beside, pixels=pixels_of(table))


def _file(table: pa.Table, schema: pa.Schema, facts: dict[str, str]) -> bytes:
    rows = table.select(schema.names).cast(schema).combine_chunks()
    file = io.BytesIO()
    with parquet_writer(file, schema) as writer:
        for first in range(
            0, len(rows) + 1, ROWS_A_GROUP
        ):  # as `write_shard`, which writes what is left, also if that is nothing
            writer.write_table(rows.slice(first, ROWS_A_GROUP))
        writer.add_key_value_metadata(facts)
    return file.getvalue()
