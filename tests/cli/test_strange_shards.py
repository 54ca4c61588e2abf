"""Folders of shards that lie: every field of a manifest and every column of an index, changed to what it never is."""

import hashlib
import io
import json
import shutil
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_walk import called, fault

VALUES = [None, -1, 1 << 70, 1e308, "", "../../etc/passwd", "/etc/passwd", "\ud800", [], {}, [[]], True, "a" * 5000]


@pytest.fixture(scope="module")
def one_shard(tmp_path_factory, drawn_folder):
    """A folder with one shard of three images."""
    home = tmp_path_factory.mktemp("one")
    (home / "images").mkdir()
    for path in sorted(drawn_folder.iterdir())[:3]:
        shutil.copy(path, home / "images")
    words = ["mine", "--src", str(home / "images"), "--out", str(home / "shards"), "--proposals", "naive", "--inline", "-q"]
    assert called(words)[0] == 0
    return home / "shards"


def leaves(value, path=()):
    """Every place in a JSON value, the inner ones too."""
    if path:
        yield path
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from leaves(inner, (*path, key))


def changed(value, path, to):
    """A copy with another value at a place; `...` takes the place away."""
    copy = json.loads(json.dumps(value))
    inner = copy
    for key in path[:-1]:
        inner = inner[key]
    if to is ...:
        del inner[path[-1]]
    else:
        inner[path[-1]] = to
    return copy


def reading(folder, out):
    """Commands that read a folder of shards and cost little."""
    return [
        ["verify", str(folder), "--inline", "-q"],
        ["export", "boxes", str(folder), "--format", "coco", "--out", f"{out}.json", "-q"],
        ["refilter", str(folder), "--out", f"{out}-refiltered", "--inline", "-q"],
    ]


def looking(folder, out):
    """Commands that open images or make tensors of the index."""
    return [
        ["inspect", str(folder), "--json"],
        ["eval", "knn", "{run}", "--train", str(folder), "--val", str(folder), "--device", "cpu", "--workers", "0", "-q"],
        ["train", "--shards", str(folder), "--out", f"{out}-run", "--recipe", "cpu-demo", "--backbone", "test_resnet",
         "--steps", "1", "--batch-size", "2", "--workers", "0", "--device", "cpu", "--set", "views.scene_size=32",
         "--set", "views.instance_size=32", "--set", "method.hidden=8", "--set", "method.width=8"],
    ]  # fmt: skip


def faults_of(folder, tmp_path, commands, what):
    found = []
    for words in commands:
        if said := fault(words, refused=False):
            found.append(f"{words[0]} {what}: {said[:600]}")
    for path in tmp_path.glob("out*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return found


@pytest.mark.slow
def test_every_field_of_a_manifest_may_lie(one_shard, tmp_path):
    folder = tmp_path / "shards"
    shutil.copytree(one_shard, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    faults = []
    for at, path in enumerate(leaves(manifest)):
        for number, value in enumerate([..., *VALUES]):
            (folder / "manifest.json").write_text(json.dumps(changed(manifest, path, value)))
            # All of the values for the first command; the others share them out, so that each place meets each command.
            commands = reading(folder, tmp_path / "out")
            chosen = [commands[0]] + ([commands[1 + number % 2]] if (at + number) % 3 == 0 else [])
            faults += faults_of(folder, tmp_path, chosen, f"{path} = {value!r:.40}")
    assert not faults, f"{len(faults)}:\n" + "\n".join(faults[:30])


def other_columns(table, name):
    """(kind, a column of other content or another type); None for none at all."""
    rows, box = table.num_rows, pa.list_(pa.list_(pa.int32(), 4))
    return [
        ("no column", None),
        ("nulls", pa.nulls(rows, table.schema.field(name).type)),
        ("text", pa.array(["../../x"] * rows)),
        ("numbers", pa.array([7] * rows)),
        ("negative", pa.array([-5] * rows)),
        ("huge", pa.array([1 << 62] * rows)),
        ("reals", pa.array([float("nan")] * rows)),
        ("lists", pa.array([[[1, 2, 3]]] * rows)),
        ("holes", pa.array([[None, [1, 2, None, 4]]] * rows, box)),
        ("boxes outside", pa.array([[[-9, -9, 9999, 9999]]] * rows, box)),
        ("bytes", pa.array([b"\xff"] * rows)),
    ]


def test_every_column_of_an_index_may_lie(one_shard, run_folder, tmp_path):
    """Every reader of indexes for every lie; what opens images too for some, so that each column meets them all."""
    folder = tmp_path / "shards"
    shutil.copytree(one_shard, folder)
    table = pq.read_table(folder / "000.parquet")
    manifest = json.loads((folder / "manifest.json").read_text())
    faults = []
    lies = [(at, *lie) for at, name in enumerate(table.schema.names) for lie in other_columns(table, name)]
    for number, (at, kind, column) in enumerate(lies):
        name = table.schema.names[at]
        made = table.remove_column(at) if column is None else table.set_column(at, name, column)
        pq.write_table(made.replace_schema_metadata(table.schema.metadata), folder / "000.parquet")
        data = (folder / "000.parquet").read_bytes()
        told = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        (folder / "manifest.json").write_text(json.dumps(changed(manifest, ("shards", 0, "index"), told)))
        look = [[word.replace("{run}", str(run_folder)) for word in words] for words in looking(folder, tmp_path / "out")]
        commands = reading(folder, tmp_path / "out") + ([look[number // 2 % 3]] if number % 2 else [])
        faults += faults_of(folder, tmp_path, commands, f"{name} {kind}")
    assert not faults, f"{len(faults)}:\n" + "\n".join(faults[:40])


def tar_of(path, members, **pax):
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for name, data, more in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            for key, value in more.items():
                setattr(info, key, value)
            info.pax_headers = pax.get("pax_headers", {})
            tar.addfile(info, io.BytesIO(data))


@pytest.mark.parametrize(
    "kind",
    [
        "absolute",
        "parent",
        "link",
        "fifo",
        "same name",
        "pax size",
        "pax path",
        "pax numbers",
        "negative size",
        "no name",
        "deep json",
    ],
)
def test_tars_that_lie_are_told(kind, drawn_folder, run_folder, tmp_path):
    image = next(drawn_folder.iterdir()).read_bytes()
    folder = tmp_path / "tars"
    folder.mkdir()
    path = folder / "000.tar"
    plain = [("a.jpg", image, {}), ("a.json", b'{"label": 1, "boxes": []}', {}), ("b.jpg", image, {}), ("c.jpg", image, {})]
    if kind == "absolute":
        tar_of(path, [("/etc/a.jpg", image, {}), *plain])
    elif kind == "parent":
        tar_of(path, [("../../a.jpg", image, {}), *plain])
    elif kind == "link":
        tar_of(path, [("l.jpg", b"", {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}), *plain])
    elif kind == "fifo":
        tar_of(path, [("f.jpg", b"", {"type": tarfile.FIFOTYPE}), *plain])
    elif kind == "same name":
        tar_of(path, [*plain, ("a.jpg", image[:-2], {})])
    elif kind == "pax size":
        tar_of(path, plain, pax_headers={"size": "99999999999999999999"})
    elif kind == "pax path":
        tar_of(path, plain, pax_headers={"path": "../\0x.jpg"})
    elif kind == "pax numbers":
        tar_of(path, plain, pax_headers={"mtime": "nan", "uid": "x", "GNU.sparse.size": "-4", "GNU.sparse.map": "1,2,x"})
    elif kind == "negative size":
        tar_of(path, plain)
        data = bytearray(path.read_bytes())
        data[124:136] = b"\xff" * 12  # base 256, minus one
        path.write_bytes(data)
    elif kind == "no name":
        tar_of(path, [("", image, {}), (".", image, {}), (".jpg", image, {}), *plain])
    else:
        tar_of(path, [("a.jpg", image, {}), ("a.json", b"[" * 200_000, {})])
    look = [[word.replace("{run}", str(run_folder)) for word in words] for words in looking(folder, tmp_path / "out")]
    mine = ["mine", "--src", str(folder), "--out", str(tmp_path / "out-mined"), "--proposals", "none", "--inline", "-q"]
    faults = faults_of(folder, tmp_path, [mine, look[0], look[2]], kind)
    assert not faults, "\n".join(faults)
    assert sorted(entry.name for entry in tmp_path.iterdir()) in (["here", "tars"], ["tars"])
