"""Lists of paths and URLs, and what all kinds of sources share."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mined import column, mined
from servers import web_server

from univip_stream.errors import InputError
from univip_stream.sources import folder, list_sources, listing, read_bytes


def test_a_text_list_names_files_relative_absolute_and_missing(drawn_folder, tmp_path):
    shutil.copytree(drawn_folder, tmp_path / "images")
    name = os.fsdecode(b"\xff.jpg")
    shutil.copy(drawn_folder / "scene00.jpg", os.fsencode(tmp_path / "images") + b"/\xff.jpg")
    path = tmp_path / "mine.txt"
    lines = [
        "# a comment",
        "",
        "images/scene02.jpg",
        f"./images/{name}",
        str(drawn_folder / "scene01.jpg"),
        "gone.jpg",
        "images",
    ]
    path.write_bytes(b"\xef\xbb\xbf" + os.fsencode("\r\n".join(lines)))
    rows, _ = mined(tmp_path / "out", path)
    said = [
        f"mine/{line.lstrip('/')}" for line in ["images/scene02.jpg", "./images/\\xff.jpg", lines[4], "gone.jpg", "images"]
    ]
    data = [(drawn_folder / f"scene{n:02d}.jpg").read_bytes() for n in (2, 0, 1)]
    assert column(rows, "source", "data") == list(zip(said, [*data, None, None], strict=True))
    assert [row["reason"] for row in rows[3:]] == [
        "FileNotFoundError: No such file or directory", "it is no regular file"
    ]  # fmt: skip


def test_a_list_of_addresses_is_read_from_the_web(drawn_folder, tmp_path):
    with web_server(drawn_folder) as server:
        path = tmp_path / "urls.parquet"
        names = ["scene03.jpg", "scene01.jpg", "nothing.jpg"]
        urls = [f"{server.url}/{name}" for name in names]
        pq.write_table(pa.table({"url": urls, "label": [5, None, 6], "caption": ["x"] * 3}), path)
        rows, report = mined(tmp_path / "out", path)
        (tmp_path / "list.txt").write_text("\n".join(urls))
        server.failures = 1  # a request that fails once is made again
        text, _ = mined(tmp_path / "text", tmp_path / "list.txt")
    data = [(drawn_folder / name).read_bytes() for name in names[:2]]
    assert column(rows, "source", "label", "data") == [
        (f"urls/{urls[0]}", "5", data[0]), (f"urls/{urls[1]}", None, data[1]), (f"urls/{urls[2]}", "6", None)
    ]  # fmt: skip
    assert "FileNotFoundError" in rows[2]["reason"]
    assert report.manifest.classes == ["5", "6"]
    assert [row["data"] for row in text] == [*data, None]


def test_a_tar_is_read_from_the_web(drawn_folder, tmp_path):
    images = sorted(drawn_folder.iterdir())
    with tarfile.open(tmp_path / "web.tar", "w") as tar:
        for path in images:
            tar.add(path, f"set/{path.name}")
    with web_server(tmp_path) as server, list_sources([f"{server.url}/web.tar?key=1.5"]) as found:
        assert found.sources == ["web"]
        assert [image.source for image in found] == [f"web/set/{path.name}" for path in images]
        assert [read_bytes(image) for image in found] == [path.read_bytes() for path in images]


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["a.jpg", "#", "b.jpg", "./a.jpg"], "line 4 names './a.jpg', which line 1 names already"),
        (["a.jpg", "ftp://host/b.jpg"], "line 2: .*ftp:// is not read"),
        (["# nothing"], "holds no image"),
    ],
)
def test_a_wrong_line_is_named(lines, words, tmp_path):
    (tmp_path / "list.txt").write_text("\n".join(lines))
    with pytest.raises(InputError, match=words):
        list_sources([tmp_path / "list.txt"])


def test_an_image_named_by_a_whole_and_by_a_relative_path_is_one(tmp_path, monkeypatch):
    (tmp_path / "a.jpg").touch()
    (tmp_path / "list.txt").write_text(f"a.jpg\n{tmp_path}/a.jpg\n")
    monkeypatch.chdir(tmp_path)
    for location in (tmp_path / "list.txt", "list.txt", f"../{tmp_path.name}/list.txt"):
        with pytest.raises(InputError, match=r"line 2 names .* which line 1 names already"):
            list_sources([location])


def test_a_wrong_table_is_said(tmp_path):
    path = tmp_path / "list.parquet"
    pq.write_table(pa.table({"file": ["a.jpg"]}), path)
    with pytest.raises(InputError, match="has the columns file; expected one of path, url, image_path"):
        list_sources([path])
    pq.write_table(pa.table({"path": ["a.jpg", None]}), path)
    with pytest.raises(InputError, match="row 2 names None"):
        list_sources([path])
    path.write_bytes(b"words")
    with pytest.raises(InputError, match="not a Parquet file"):
        list_sources([path])


def test_sources_of_several_kinds_make_one_set(drawn_folder, tmp_path):
    shutil.copytree(drawn_folder, tmp_path / "set")
    (tmp_path / "set.txt").write_text("set/scene00.jpg\n")
    with list_sources([tmp_path / "set", tmp_path / "set.txt"]) as found:
        assert found.sources == ["set", "set.txt"]
        assert [image.source for image in found][11:] == ["set/scene11.jpg", "set.txt/set/scene00.jpg"]


def test_more_images_than_a_batch_are_sorted_on_disk_and_sliced_anywhere(tmp_path, monkeypatch):
    """Small limits, so that a hundred names take several sorted runs and batches."""
    monkeypatch.setattr(folder, "_NAMES_AT_ONCE", 16)
    monkeypatch.setattr(listing, "_ROWS", 7)
    names = [
        b"%d%s.jpg" % (number * 37 % 101, b"\n" * (number % 3 == 0) + b"\xff" * (number % 5 == 0)) for number in range(100)
    ]
    for name in names:
        with open(os.path.join(os.fsencode(tmp_path), name), "wb"):
            pass
    with list_sources([tmp_path]) as found:
        paths = [os.fsencode(image.path) for image in found]
        assert paths == sorted(os.path.join(os.fsencode(tmp_path), name) for name in names)
        for first, last in ((0, 100), (0, 0), (6, 8), (7, 14), (93, 200), (50, 51)):
            assert [os.fsencode(image.path) for image in found.slice(first, last)] == paths[first:last]


@pytest.mark.slow
def test_memory_does_not_grow_with_the_source(tmp_path, monkeypatch):
    """Small limits, so that two thousand files are already many times what is held at once."""
    monkeypatch.setattr(folder, "_NAMES_AT_ONCE", 200)
    monkeypatch.setattr(listing, "_ROWS", 100)

    def peak(images):
        place = tmp_path / str(images)
        place.mkdir()
        for number in range(images):
            (place / f"{number:050d}.jpg").touch()
        tracemalloc.start()
        with list_sources([place]) as found:
            assert sum(1 for _ in found) == images
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    peak(300)
    assert peak(8000) < peak(2000) + 6000 * 87  # what the names alone take; a row takes several times that


FORMS = {
    "path label": ("{0} {1}", "a path and a label a line, with a blank between"),
    "tab": ("{0}\t{1}", "with a tab between"),
    "comma": ("{0},{1}", "with a comma between"),
    "quoted comma": ('"{0}","{1}"', "with a comma between"),
    "quoted": ('"{0}"', "quotes around them"),
    "trailing blank": ("{0} ", "blanks or quotes around them"),
    "backslashes": ("{2}", "backslashes for slashes"),
    "backslashes and label": ("{2} {1}", "with a blank between, backslashes for slashes"),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_lists_as_other_tools_write_them_are_read_and_said(form, encoding, drawn_folder, tmp_path):
    line, words = FORMS[form]
    shutil.copytree(drawn_folder, tmp_path / "tr ain" / "n01")
    names = [f"tr ain/n01/scene{n:02d}.jpg" for n in range(3)] + ["tr ain/n01/gone.jpg"]
    text = "".join(line.format(name, n, name.replace("/", "\\")) + "\r\n" for n, name in enumerate(names))
    (tmp_path / "list.txt").write_bytes(("filename,label\r\n" * ("," in line) + text).encode(encoding))
    rows, report = mined(tmp_path / "out", tmp_path / "list.txt")
    labels = ["0", "1", "2", "3"] if "{1}" in line else [None] * 4
    assert column(rows, "source", "label") == list(zip([f"list/{name}" for name in names], labels, strict=True))
    assert [row["data"] for row in rows] == [(tmp_path / name).read_bytes() for name in names[:3]] + [None]
    assert report.ignored == ({"headings of lists": 1} if "," in line else {})
    with list_sources([tmp_path / "list.txt"]) as found:
        assert words in found.remarks[0]


def test_a_plain_list_stays_one_whatever_its_names_hold(tmp_path):
    """What is there as it stands wins: blanks, commas, quotes, backslashes and numbers at the end are parts of names."""
    names = ["a b.jpg 5", "c,d.jpg", '"e".jpg', "f\\g.jpg", "h.jpg "]
    for name in names:
        (tmp_path / name).touch()
    (tmp_path / "list.txt").write_text("\n".join(names))
    with list_sources([tmp_path / "list.txt"]) as found:
        assert [(image.source, image.label) for image in found] == [(f"list/{name}", None) for name in names]
        assert found.remarks == []


def test_no_line_vanishes_for_beginning_with_a_hash(tmp_path):
    for name in ("#1.jpg", "2.jpg", "# 3.jpg", "5.jpg"):
        (tmp_path / name).touch()
    (tmp_path / "list.txt").write_text("# my list\n#1.jpg\n2.jpg\n# 3.jpg\n#4.jpg\n#5.jpg\n#\n")
    with list_sources([tmp_path / "list.txt"]) as found:
        # #4.jpg could be a name, and is a row that says that it is missing; #5.jpg is 5.jpg, left out by hand.
        assert [image.source for image in found] == [f"list/{name}" for name in ("#1.jpg", "2.jpg", "# 3.jpg", "#4.jpg")]
        assert found.ignored == {"comments in lists": 3}
        assert found.remarks == ["left out: 3 comments in lists"]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"Dear all,\nmy notes.\n", "none of its 2 lines names a file that is there: relative paths start at .*'Dear all,'"),
        (b"gone/1.jpg 0\ngone/2.jpg 1\n", "none of its 2 lines .*'gone/1.jpg 0'"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "is not text"),
        (b"\xff\xfea\0.\0j\0p\0g\0", "none of its 1 lines .*'a.jpg'"),
        (b"\xff\xfea\0.\0j\0p\0g", "begins as UTF-16 but is not"),
    ],
)  # fmt: skip
def test_a_text_that_is_no_list_is_one_sentence(data, words, tmp_path):
    (tmp_path / "notes.txt").write_bytes(data)
    with pytest.raises(InputError, match=words):
        list_sources([tmp_path / "notes.txt"])


def test_addresses_with_labels_are_told_from_addresses_with_blanks(tmp_path):
    (tmp_path / "some.txt").write_text("https://host.org/a b.jpg\nhttps://host.org/c.jpg?size=1 2\n")
    (tmp_path / "labels.txt").write_text("https://host.org/a.jpg 5\nhttps://host.org/c.jpg\t6\n")
    with list_sources([tmp_path / "some.txt"]) as found:
        assert [(image.path, image.label) for image in found] == [
            ("https://host.org/a b.jpg", None), ("https://host.org/c.jpg?size=1 2", None)
        ]  # fmt: skip
    (tmp_path / "labels.txt").write_text("https://host.org/a.jpg 5\nhttps://host.org/c.jpg 6\n")
    with list_sources([tmp_path / "labels.txt"]) as found:
        assert [(image.path, image.label) for image in found] == [
            ("https://host.org/a.jpg", "5"), ("https://host.org/c.jpg", "6")
        ]  # fmt: skip


def test_addresses_of_which_nothing_is_known_are_taken_as_they_stand(tmp_path):
    (tmp_path / "list.txt").write_text(" https://host.org/view 5\n")
    with list_sources([tmp_path / "list.txt"]) as found:
        assert len(found) == 1


def test_labels_of_a_table_are_text_or_whole_numbers(drawn_folder, tmp_path):
    paths = [str(drawn_folder / f"scene{n:02d}.jpg") for n in range(3)]
    for labels, expected in (
        ([0.0, 1.0, None], ["0", "1", None]),
        ([0.0, 1.0, float("nan")], ["0", "1", None]),
        (["a", "", "c"], ["a", None, "c"]),
        ([True, False, None], ["True", "False", None]),
    ):
        pq.write_table(pa.table({"path": paths, "label": labels}), tmp_path / "list.parquet")
        with list_sources([tmp_path / "list.parquet"]) as found:
            assert [image.label for image in found] == expected
    for labels in ([0.0, 0.5, 1.0], [[1], [2], [3]]):
        pq.write_table(pa.table({"path": paths, "label": labels}), tmp_path / "list.parquet")
        with pytest.raises(InputError, match=r"row [12] has the label .*expected text or a whole number"):
            list_sources([tmp_path / "list.parquet"])


def test_images_in_a_table_and_tables_of_nothing_are_said(tmp_path):
    path = tmp_path / "train-00000-of-00001.parquet"
    pq.write_table(pa.table({"image": [{"bytes": b"\xff\xd8", "path": "a.jpg"}], "label": [0]}), path)
    with pytest.raises(InputError, match=r"holds the images themselves .*Hugging Face.*write the images to files"):
        list_sources([path])
    pq.write_table(pa.table({"path": ["a.jpg", "b.jpg"]}), path)
    with pytest.raises(InputError, match="none of its 2 rows names a file that is there"):
        list_sources([path])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("list.csv", 'path,label\nscene00.jpg,cat\n"scene01.jpg","a, b"\n\nscene02.jpg,\n'),
        ("list.CSV", '\ufeffid,Label,Path\r\n1,cat,scene00.jpg\r\n2,"a, b",scene01.jpg\r\n3,,scene02.jpg\r\n'),
        ("list.csv", "image_path;label\nscene00.jpg;cat\nscene01.jpg;a, b\nscene02.jpg;\n"),
        ("list.tsv", "label\tpath\ncat\tscene00.jpg\na, b\tscene01.jpg\n\tscene02.jpg\n"),
    ],
)
def test_a_table_of_text_names_its_columns(name, text, drawn_folder, tmp_path):
    for path in drawn_folder.iterdir():
        shutil.copy(path, tmp_path)
    (tmp_path / name).write_bytes(text.encode())
    rows, _ = mined(tmp_path / "out", tmp_path / name)
    assert column(rows, "source", "label") == [
        ("list/scene00.jpg", "cat"), ("list/scene01.jpg", "a, b"), ("list/scene02.jpg", None)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "begins with ''; expected a first line that names the columns"),
        ("scene00.jpg,cat\n", "a list without such a line can be read as .txt"),
        ("path,label\nscene00.jpg,cat\nscene01.jpg\n", r"line 3 has 1 columns \['scene01.jpg'\]; expected path, label"),
        ("path,label\n,cat\n", r"line 2 has 2 columns"),
        ('path,label\n"scene00.jpg,cat\n', "not a table that can be read"),
        ("path,label\nscene00.jpg,cat\nscene00.jpg,dog\n", "line 3 names 'scene00.jpg', which line 2 names already"),
        ("path\nnowhere.jpg\n", "none of its 1 rows names a file that is there"),
    ],
)
def test_a_table_of_text_that_cannot_be_used_says_where(text, words, drawn_folder, tmp_path):
    for path in drawn_folder.iterdir():
        shutil.copy(path, tmp_path)
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(InputError, match=words):
        mined(tmp_path / "out", tmp_path / "list.csv")


def test_a_long_list_is_planned_in_little_memory_and_time(tmp_path):
    """Fifty thousand addresses in a process of its own: 60 s and 1 GB are the bounds of a million."""
    names = [f"https://images{number % 97}.example.org/folder/of/photographs/{number:09d}.jpg" for number in range(50_000)]
    pq.write_table(
        pa.table({"url": names, "label": [str(number % 100) for number in range(50_000)]}), tmp_path / "list.parquet"
    )
    code = """if True:
        import json, resource, sys, time
        from univip_stream.sources import list_sources
        peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        before, began = peak(), time.process_time()
        count = len(list_sources([sys.argv[1]]))
        print(json.dumps([count, time.process_time() - began, peak() - before]))
    """
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "list.parquet"], capture_output=True, text=True)
    count, seconds, grown = json.loads(done.stdout)
    assert count == 50_000
    assert seconds < 60 / 20
    assert grown < 100
