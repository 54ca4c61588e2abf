"""Inputs and outputs that no command can use, of every kind that a person's disk may hold."""

import json
import os
import shutil
import struct
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

JSONS = {
    "a list": "[1, 2, 3]", "a number": "3", "null": "null", "a text": '"images"', "empty object": "{}",
    "deep": "[" * 100_000, "deep object": '{"images":' * 50_000, "not a number": '{"images": [{"id": NaN}], "annotations": []}',
    "other types": '{"images": 3, "annotations": {"a": 1}, "shards": 5, "format": 7, "totals": []}',
    "other members": '{"images": [1, null, "x"], "annotations": [[]], "categories": [3]}',
    "huge numbers": '{"images": [{"id": 1e400, "file_name": "0.jpg", "width": 99999999999999999999999, "height": -1}], '
                    '"annotations": [{"id": 1, "image_id": 1e400, "bbox": [1e999, -5, 1e40, 2], "category_id": 1}], '
                    '"categories": [{"id": 1, "name": "a"}]}',
    "half a surrogate": '{"images": [{"id": 1, "file_name": "\\ud800.jpg", "width": 3, "height": 3}], "annotations": [], '
                        '"categories": []}',
    "utf-16": "utf-16",
}  # fmt: skip


def inputs(folder: Path, suffix: str, real: Path | None) -> dict[str, str]:
    """Kind -> a path that cannot be read as a file with that suffix; with `/`, as a folder.

    Args:
        folder: where they are made.
        suffix: what the command looks for, or `/`.
        real: a file that can be used, to be cut; None if there is none.

    """
    folder.mkdir(parents=True)
    end = "" if suffix == "/" else suffix
    at = {kind: folder / f"{kind.replace(' ', '-')}{end}" for kind in (
        "missing", "empty file", "rubbish", "zeros", "empty folder", "strange folder", "pipe", "broken link", "loop", "unreadable",
    )}  # fmt: skip
    at["empty file"].touch()
    at["rubbish"].write_bytes(np.random.default_rng(0).bytes(5000))
    at["zeros"].write_bytes(bytes(4096))
    at["empty folder"].mkdir()
    at["strange folder"].mkdir()
    (at["strange folder"] / "notes.doc").write_bytes(b"\x00\xff")
    (at["strange folder"] / "manifest.json").write_text('{"format": []}')
    (at["strange folder"] / "config.json").write_text("[]")
    os.mkfifo(at["pipe"])
    at["broken link"].symlink_to("nowhere")
    at["loop"].symlink_to(at["loop"].name)
    at["unreadable"].write_bytes(b"secret")
    at["unreadable"].chmod(0)
    found = {kind: str(path) for kind, path in at.items()}
    if os.geteuid() == 0:
        del found["unreadable"]  # root reads everything
    found["below a file"] = str(at["zeros"] / f"inner{end}")
    found["too long"] = str(folder / ("n" * 300 + end))
    found["no text"] = str(folder / os.fsdecode(b"\xff\xfe")) + end
    found["a line break"] = str(folder / "two\nlines") + end
    found["nothing"] = ""
    found["unknown scheme"] = f"ftp://host/x{end}"
    found["no host"] = "s3://"
    if real is not None and real.is_file():
        for share in (0.1, 0.5) if suffix == ".tar" else (0.1, 0.5, 0.98):  # a tar ends in zeros that nobody misses
            path = folder / f"cut-{share}{suffix}"
            path.write_bytes(real.read_bytes()[: int(real.stat().st_size * share)])
            found[f"cut at {share}"] = str(path)
    for kind, make in _OTHERS.get(suffix, {}).items():
        path = folder / f"{kind.replace(' ', '-')}{suffix}"
        make(path)
        found[kind] = str(path)
    return found


def outputs(folder: Path, suffix: str) -> dict[str, str]:
    """Kind -> a place where nothing can be written: as a file with that suffix, or with `/` a folder."""
    folder.mkdir(parents=True)
    file, full = folder / "file", folder / "folder"
    file.write_text("mine")
    full.mkdir()
    (full / "keep.txt").write_text("mine")
    end = "" if suffix == "/" else suffix
    wrong = folder / f"wrong{end}"
    wrong.write_text("mine") if suffix == "/" else wrong.mkdir()
    return {
        "below a file": str(file / f"x{end}"),
        "in /proc": f"/proc/nowhere/x{end}",
        "of the other kind": str(wrong),
        "too long": str(folder / ("n" * 300 + end)),
        "nothing": "",
        "unknown scheme": f"ftp://host/x{end}",
        "on the web": f"http://127.0.0.1:1/x{end}",
    }


def numbers(whole: bool) -> list[str]:
    """Texts that are no use as a number, or as large as a slip of the finger makes them."""
    slips = ["-1", "nan", "inf", "-inf", "x", "", "1e400", "9" * 30, "9" * 5000, "0x10", "1_0_", "--"]
    return [*slips, "1.5"] if whole else slips


def _parquet(columns):
    return lambda path: pq.write_table(pa.table(columns), path)


def _text(content):
    return lambda path: path.write_bytes(content if isinstance(content, bytes) else content.encode())


def _safetensors(header, body=b""):
    def make(path):
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + body)

    return make


def _tensor(**more):
    return {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | more}


def _pickled(value):
    def make(path):
        import torch

        torch.save(value, path)

    return make


def _tar(*members):
    import io
    import tarfile

    def make(path):
        with tarfile.open(path, "w") as tar:
            for name, content in members:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))

    return make


_OTHERS = {
    ".json": {kind: (lambda path, text=text: path.write_bytes(
        '{"images": []}'.encode("utf-16") if text == "utf-16" else text.encode())) for kind, text in JSONS.items()},
    ".txt": {
        "no path there": _text("a/b.jpg 3\nc.jpg\n"), "utf-16": _text("a.jpg\n".encode("utf-16")), "only blanks": _text("\n \n\n"),
        "one long line": _text("x" * 300_000), "nul": _text(b"a\0b.jpg\n"),
    },
    ".parquet": {
        "other columns": _parquet({"a": [1, 2]}), "no rows": _parquet({"path": pa.array([], pa.string())}),
        "other types": _parquet({"path": [1.5, 2.5], "key": [[1], [2]], "feature": ["x", "y"], "image": [b"1", b"2"]}),
        "nulls": _parquet({"path": pa.array([None, None], pa.string()), "label": pa.array([None, None], pa.int64())}),
    },
    ".safetensors": {
        "lying length": _text(struct.pack("<Q", 1 << 62) + b"{}"), "no json": _safetensors(b"xxxx"),
        "offsets outside": _safetensors(_tensor(data_offsets=[0, 1 << 40])),
        "backwards": _safetensors(_tensor(data_offsets=[8, 0])),
        "huge shape": _safetensors(_tensor(shape=[1 << 40, 1 << 40]), bytes(8)), "a list": _safetensors(b"[]"),
        "other tensors": _safetensors(_tensor(), bytes(8)), "no metadata": _safetensors({"__metadata__": {}}),
        "strange metadata": _safetensors({"__metadata__": {"config": "{]"}} | _tensor(), bytes(8)),
        "other type": _safetensors(_tensor(dtype="Q99"), bytes(8)),
    },
    ".pt": {
        "a list": _pickled([1, 2]), "a dictionary": _pickled({"model": 3}), "a number": _pickled(3.0), "none": _pickled(None),
        "strange config": _pickled({"config": {"method": 3}, "model": {}, "step": "x"}),
    },
    ".tar": {
        "no images": _tar(("a.txt", b"x")), "images that are none": _tar(("a.jpg", b"x"), ("b.jpg", b"")),
        "no member": _tar(), "absolute names": _tar(("/etc/a.jpg", b"x"), ("../b.jpg", b"y")),
        "the same name twice": _tar(("a.jpg", b"x"), ("a.jpg", b"y")),
        "two folders": _tar(("a/b.jpg", b"x"), ("a/b.json", b"[]"), ("c", b"")),
    },
    ".pkl": {
        "a call": _text(b"cos\nsystem\n(S'touch ran'\ntR."), "a list": _text(b"(lp0\nI1\na."), "not ended": _text(b"\x80\x04]"),
    },
    ".jpg": {"a web page": _text("<!DOCTYPE html><html></html>"), "only a start": _text(b"\xff\xd8\xff\xe0\0\x10JFIF")},
}  # fmt: skip


def remove(folder: Path) -> None:
    """Delete what was made."""
    shutil.rmtree(folder, ignore_errors=True)
