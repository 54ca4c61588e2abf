"""Parquet is read by Arrow's threads, which must hold nothing of Python's that they could let go of while Python ends."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "univip_stream"
READERS = ("read_table", "ParquetFile", "ParquetDataset")


def python_files(function: ast.AST) -> set[str]:
    """Names that stand for file objects of Python inside a function: opened in a `with`, made by a call, or typed so."""
    found = set()
    for node in ast.walk(function):
        if isinstance(node, ast.withitem) and isinstance(node.optional_vars, ast.Name):
            found.add(node.optional_vars.id)
        elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Call) and isinstance(node.targets[0], ast.Name):
            if any(word in ast.unparse(node.value.func) for word in ("BytesIO", "open", "PythonFile", "BufferedReader")):
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
                if name in python_files(function) or any(word in called for word in ("BytesIO", "open", "PythonFile")):
                    wrong.append(ast.unparse(node))
    return wrong


def test_no_file_object_of_python_is_given_to_arrows_threads():
    """`pq.read_table(io.BytesIO(...))` as the last thing a command did left with 134 now and then, all work done."""
    found = [
        f"{path.relative_to(PACKAGE)}: {call}"
        for path in PACKAGE.rglob("*.py")
        for call in read_of_python_files(path.read_text())
    ]
    assert not found, "\n".join([*found, "expected a path, or pa.BufferReader of the bytes"])


def test_the_search_finds_what_it_is_for():
    for body in (
        "pq.read_table(io.BytesIO(data))",
        "file = io.BytesIO(data)\n    pq.read_table(file)",
        "with storage.opened(path) as file:\n        pq.ParquetFile(file)",
    ):
        assert read_of_python_files(f"def f(data, path):\n    {body}")
    assert not read_of_python_files("def f(data, path):\n    pq.read_table(pa.BufferReader(data)); pq.ParquetFile(path)")
