"""Arrow's threads read no Parquet out of memory of Python's: they let go of it when they like, also while Python ends."""

import ast
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from univip_stream.parquet import batches_of, table_of

PACKAGE = Path(__file__).resolve().parents[1] / "univip_stream"
READERS = ("read_table", "ParquetFile", "ParquetDataset")
HELD = ("BytesIO", "open", "PythonFile", "BufferedReader", "BufferReader", "py_buffer")


def python_files(function: ast.AST) -> set[str]:
    """Names that stand for file objects of Python inside a function: opened in a `with`, made by a call, or typed so."""
    found = set()
    for node in ast.walk(function):
        if isinstance(node, ast.withitem) and isinstance(node.optional_vars, ast.Name):
            found.add(node.optional_vars.id)
        elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Call) and isinstance(node.targets[0], ast.Name):
            if any(word in ast.unparse(node.value.func) for word in HELD):
                found.add(node.targets[0].id)
        elif isinstance(node, ast.arg) and node.annotation is not None and "IO" in ast.unparse(node.annotation):
            found.add(node.arg)
    return found


def read_of_python_files(source: str) -> list[str]:
    """Calls of a reader of Parquet that give it a file object of Python."""
    wrong = []
    for function in [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)]:
        for node in ast.walk(function):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr in READERS
                and node.args
            ):
                given = node.args[0]
                name = given.id if isinstance(given, ast.Name) else None
                called = ast.unparse(given.func) if isinstance(given, ast.Call) else ""
                if name in python_files(function) or any(word in called for word in HELD):
                    wrong.append(ast.unparse(node))
    return wrong


def test_no_file_object_of_python_is_given_to_arrows_threads():
    """`pq.read_table(io.BytesIO(...))` as the last thing a command did left with 134 now and then, all work done."""
    found = [
        f"{path.relative_to(PACKAGE)}: {call}"
        for path in PACKAGE.rglob("*.py")
        if path.name != "parquet.py"  # reads in the thread that calls
        for call in read_of_python_files(path.read_text())
    ]
    assert not found, "\n".join([*found, "expected a path, or univip_stream.parquet for bytes"])


def test_the_search_finds_what_it_is_for():
    for body in (
        "pq.read_table(io.BytesIO(data))",
        "pq.read_table(pa.BufferReader(data))",
        "file = io.BytesIO(data)\n    pq.read_table(file)",
        "with storage.opened(path) as file:\n        pq.ParquetFile(file)",
    ):
        assert read_of_python_files(f"def f(data, path):\n    {body}")
    assert not read_of_python_files("def f(data, path):\n    table_of(data); pq.ParquetFile(path)")


def test_bytes_are_read_as_arrow_itself_reads_them():
    table = pa.table({"a": list(range(1000)), "b": [[n, n] for n in range(1000)], "c": ["x"] * 1000})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, row_group_size=300)
    data = sink.getvalue().to_pybytes()
    assert table_of(data).equals(table)
    assert table_of(data, ["c", "b"]).equals(table.select(["c", "b"]))
    assert pa.Table.from_batches(batches_of(data, 128, ["b", "none"])).equals(table.select(["b"]))
    with pytest.raises(KeyError, match="no column none"):
        table_of(data, ["a", "none"])
    with pytest.raises(pa.ArrowException):
        table_of(b"no Parquet")
