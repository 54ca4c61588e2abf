"""Every command, with every kind of input, number and place that it cannot use: a sentence, never a traceback or a hang."""

import contextlib
import os
import re
import signal
import threading
import warnings
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from commands import MORE, TABLE, coco_of, command_of, every_command, line
from small_voc import voc07
from unusable import inputs, numbers, outputs

from univip_stream.cli import cli

AT_MOST = 60
"""Seconds that a refusal may take, on a machine that does other things as well."""
TO_DO = re.compile(
    r"expected|choose|check|give|use|run |needs|allow|mine|set |copy|install|make|holds|leave|there is no|try|name|such|not",
    re.IGNORECASE,
)
NAKED = re.compile(r"\[Errno|Traceback|this should not have happened|\bKeyError|\bTypeError|\bAttributeError|\bIndexError")


class Hang(BaseException):
    """A command did not come back."""


def called(words):
    """(exit status, what was said) of a command in this process; a hang is an error."""

    def late(signum, frame):
        raise Hang

    def release():  # what waits for a writer inside a library, where no signal's handler runs
        for pipe in (word.rpartition("=")[2] for word in words if "pipe" in word):
            with contextlib.suppress(OSError):
                os.close(os.open(pipe, os.O_RDWR | os.O_NONBLOCK))

    before = signal.signal(signal.SIGALRM, late)
    watch = threading.Timer(AT_MOST + 1, release)
    watch.start()
    sigterm = signal.getsignal(signal.SIGTERM)
    signal.alarm(AT_MOST)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # as for a person; not all are ours
            done = CliRunner().invoke(cli, words, catch_exceptions=False)
        return done.exit_code, done.output
    finally:
        watch.cancel()
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        signal.signal(signal.SIGTERM, sigterm)


def fault(words, *, refused=True, named=None):
    """What is wrong with how a command treats these words; None if nothing is."""
    try:
        status, said = called(words)
    except Hang:
        return f"no answer within {AT_MOST} s"
    except Exception as error:  # cannot be: the command says every error
        return f"raised {type(error).__name__}: {error}"
    return fault_of(status, said, refused=refused, named=named)


def fault_of(status, said, *, refused=True, named=None):
    """As `fault`, of what a command left with and said."""
    last = said[-1500:]
    if status not in (0, 1, 2, 75):
        return f"status {status}: {last}"
    if found := NAKED.search(said):
        return f"{found[0]!r} in: {last}"
    if status == 0 and refused:
        return f"was accepted: {last}"
    if status and "rror: " in said and not TO_DO.search(said):  # what `verify` finds is told, and no error
        return f"does not say what to do: {last}"
    if status and named and not any(name in said for name in named):
        return f"does not name {named[0]!r}: {last}"
    if status and len(said) > 25_000:
        return f"says {len(said)} characters: {said[:300]}"
    return None


@pytest.fixture(scope="module")
def places(tmp_path_factory, drawn_folder, drawn_shards, labelled_folder, run_folder, resnet_folder, kernels):
    """Name -> path of what the tables' base arguments name."""
    home = tmp_path_factory.mktemp("walk")
    coco = home / "coco"
    (coco / "train2017").mkdir(parents=True)
    names = sorted(path.name for path in drawn_folder.iterdir())[:2]
    for name in names:
        (coco / "train2017" / name).write_bytes((drawn_folder / name).read_bytes())
    coco_of(coco / "annotations", [(name, 320, 240) for name in names])
    found = {
        "images": str(drawn_folder), "image": str(drawn_folder / names[0]), "labelled": str(labelled_folder), "coco": str(coco),
        "shards": str(drawn_shards), "run": str(run_folder), "resnet": str(resnet_folder), "missing": str(home / "missing"),
        "voc07": str(voc07(home / "voc")),
        "features": str(home / "features.parquet"), "boxes.json": str(coco / "annotations" / "instances_train2017.json"),
    }  # fmt: skip
    base = ["--device", "cpu", "--workers", "0", "--quiet"]
    done = CliRunner().invoke(cli, ["embed", str(run_folder), str(drawn_shards), "--out", found["features"], *base])
    assert done.exit_code == 0, done.output
    for name in ("orl.json", "soco", "detreg", "siamesedetr", "detectron2.pkl"):
        format = name.partition(".")[0]
        more = ["--annotations", found["boxes.json"]] if format == "orl" else []
        done = CliRunner().invoke(
            cli, ["export", "boxes", str(drawn_shards), "--format", format, "--out", str(home / name), "--quiet", *more]
        )
        found[name] = str(home / name) if format != "soco" else str(home / name / "train_ratio3size0308post.json")
    return found


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """A relative path lands nowhere that matters."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


REAL = {
    ".json": "{boxes.json}", ".tar": "{shards}/000.tar", ".parquet": "{features}", ".safetensors": "{run}/backbone.safetensors",
    ".pt": "{run}/checkpoints/step-000000002.pt", ".jpg": "{image}", ".pkl": "{detectron2.pkl}",
}  # fmt: skip


def real(suffix, places):
    if suffix not in REAL:
        return None
    text = REAL[suffix]
    for name, place in places.items():
        text = text.replace(f"{{{name}}}", place)
    return Path(text)


def rows():
    return [*TABLE.items(), *MORE.items()]


def test_every_command_and_each_of_its_options_is_in_the_table():
    commands = every_command()
    assert sorted(commands) == sorted(TABLE), "tests/cli/commands.py walks each command: give a new one its row"
    for name, command in commands.items():
        walked = TABLE[name]
        for option in command.params:
            numeric = isinstance(option.type, click.IntRange | click.FloatRange | click.Choice)
            more = [inputs for row in MORE if command_of(row)[0] == name for inputs in MORE[row].inputs]
            told = {*walked.inputs, *walked.outputs, *walked.texts, *more}
            flag = getattr(option, "is_flag", False)
            assert numeric or flag or option.name in told, f"{name}: say what {option.name} takes"


@pytest.mark.parametrize("name", [*TABLE])
def test_the_base_arguments_work(name, places, tmp_path):
    status, said = called(line(name, places | {"out": str(tmp_path / "out")}))
    assert status == 0 or name == "doctor", said  # which says 1 of a machine that lacks something


ACCEPTED = {
    # Of annotations it takes ids and an order: what these give it is none, and the images' own stand.
    ("export boxes", "huge numbers"),
    ("export boxes", "half a surrogate"),
    # Any folder will do to measure its disk; it is refused only where the machine lacks something.
    ("doctor", "empty folder"),
    ("doctor", "strange folder"),
}


@pytest.mark.parametrize(("name", "parameter"), [(name, one) for name, walked in rows() for one in walked.inputs])
def test_what_cannot_be_read_is_told(name, parameter, places, tmp_path):
    walked = TABLE.get(name) or MORE[name]
    option, _, key = parameter.partition(":")
    faults = []
    for suffix in walked.inputs[parameter]:
        bad = inputs(tmp_path / f"bad{suffix.strip('/')}", suffix, real(suffix, places))
        for number, (kind, path) in enumerate(bad.items()):
            out = {"out": str(tmp_path / f"out-{suffix.strip('/')}-{number}")}
            value = [*walked.base[option], key + path] if key else [path]
            words = line(name, places | out, **{option: value})
            refused = (name, kind) not in ACCEPTED
            if found := fault(words, refused=refused):
                faults.append(f"{suffix} {kind}: {found}")
    assert not faults, f"{len(faults)}:\n" + "\n".join(faults)


@pytest.mark.parametrize(("name", "parameter"), [(name, one) for name, walked in rows() for one in walked.outputs])
def test_where_nothing_can_be_written_is_told(name, parameter, places, tmp_path):
    walked = TABLE[name]
    faults = []
    for kind, path in outputs(tmp_path / "bad", walked.outputs[parameter]).items():
        words = line(name, places | {"out": str(tmp_path / f"out {kind}")}, **{parameter: [path]})
        if found := fault(words, refused=True):
            faults.append(f"{kind}: {found}")
    assert (tmp_path / "bad" / "file").read_text() == "mine"
    assert not faults, f"{len(faults)}:\n" + "\n".join(faults)


@pytest.mark.parametrize("name", [*TABLE])
def test_numbers_that_are_none_or_too_large_are_told(name, places, tmp_path):
    faults = []
    for option in command_of(name)[1].params:
        if not isinstance(option.type, click.IntRange | click.FloatRange):
            continue
        for number in numbers(isinstance(option.type, click.IntRange)):
            words = line(name, places | {"out": str(tmp_path / "out")}, **{option.name: [number]})
            if found := fault(words, named=option.opts):
                faults.append(f"{option.opts[0]} {number[:40]!r}: {found}")
    assert not (tmp_path / "out").exists()
    assert not faults, f"{len(faults)}:\n" + "\n".join(faults)


@pytest.mark.skipif(not os.environ.get("UNIVIP_STREAM_WALK_ALL"), reason="minutes; set UNIVIP_STREAM_WALK_ALL=1")
@pytest.mark.parametrize("name", [*TABLE])
def test_the_least_and_greatest_number_that_is_taken_works_or_is_told(name, places, tmp_path):
    faults = []
    for option in command_of(name)[1].params:
        if isinstance(option.type, click.IntRange | click.FloatRange) and option.name not in TABLE[name].long:
            for number in {option.type.min, option.type.max} - {None}:
                place = {"out": str(tmp_path / f"out-{option.name}-{number}")}
                if found := fault(line(name, places | place, **{option.name: [str(number)]}), refused=False):
                    faults.append(f"{option.opts[0]} {number}: {found}")
    assert not faults, f"{len(faults)}:\n" + "\n".join(faults)


@pytest.mark.parametrize("name", [*TABLE])
def test_unknown_words_are_told(name, places, tmp_path):
    walked, command = TABLE[name], command_of(name)[1]
    faults = []
    for option in command.params:
        if option.name in walked.texts or isinstance(option.type, click.Choice):
            for word in ("nosuch", "", "a:b", "x" * 5000, "no such: =", os.fsdecode(b"\xff"), "os:sep", "=", "k=v"):
                values = [*walked.base.get(option.name, []), word] if option.multiple else [word]
                words = line(name, places | {"out": str(tmp_path / "out")}, **{option.name: values})
                if found := fault(words, refused=isinstance(option.type, click.Choice)):
                    faults.append(f"{option.opts[0]} {word[:40]!r}: {found}")
    assert not faults, f"{len(faults)}:\n" + "\n".join(faults)


def test_settings_that_are_none_are_told(places, tmp_path):
    """Each of them, before anything is read: the shards are not there, and no setting that is refused gets so far."""
    from univip_stream.pretrain import PretrainConfig
    from univip_stream.pretrain.settings import flat

    faults, taken = [], []
    for key, default in flat(PretrainConfig()).items():
        number = isinstance(default, int | float) and not isinstance(default, bool)
        for value in ("nan", "Infinity", "-1", "-0.5", "9" * 400, "x", "", "[]", "null", '"1"'):
            status, said = called(
                ["train", "--shards", places["missing"], "--out", str(tmp_path / "out"), "--set", f"{key}={value}"]
            )
            if found := fault_of(status, said):
                faults.append(f"{key}={value}: {found}")
            if number and value not in ("-1", "-0.5", "null") and places["missing"] in said:
                taken.append(f"{key}={value}")
    assert not faults, f"{len(faults)}:\n" + "\n".join(faults)
    assert not taken, f"taken as a number: {taken}"


def test_source_and_destination_that_are_one_folder_are_told(places, tmp_path):
    """What is read stays as it was: below the source, the source itself, and the other way round."""
    import shutil

    faults = []
    for name, source in (("mine", "sources"), ("import boxes", "sources"), ("refilter", "shards")):
        of = "coco/train2017" if name == "import boxes" else "source"
        for relation in ("itself", "by a link", "within"):
            home = tmp_path / f"{name} {relation}"
            shutil.copytree(places["shards"] if name == "refilter" else places["images"], home / "source")
            if name == "import boxes":
                shutil.copytree(places["coco"], home / "coco")
            (home / "link").symlink_to(home / of)
            before = {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}
            out = {"itself": home / of, "by a link": home / "link", "within": home / of / "shards"}[relation]
            words = line(name, places, **{source: [str(home / of)], "out": [str(out)]})
            for _ in range(2):  # and what the first has written is no source of the second
                if found := fault(words, refused=False):
                    faults.append(f"{name} {relation}: {found}")
            if changed := [path for path, content in before.items() if not path.exists() or path.read_bytes() != content]:
                faults.append(f"{name} {relation}: changed {changed}")
    assert not faults, "\n".join(faults)
