"""Each table of the paper has its commands, which the command line takes, and stands beside one's own runs."""

import json
import re
import shlex
import shutil
from dataclasses import asdict
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from univip_stream.cli import cli
from univip_stream.errors import UsageError
from univip_stream.evaluation.detection.protocol import SCHEDULES, DetectionProtocol, rate_for, voc
from univip_stream.evaluation.finetune import protocol_for as finetuning_for
from univip_stream.evaluation.linear import PROTOCOLS
from univip_stream.export.detectron2 import TABLES as DETECTRON2
from univip_stream.pretrain.ablations import ABLATIONS
from univip_stream.pretrain.paper_tables import NETWORKS, TABLES, commands_for, table_of
from univip_stream.pretrain.recipes import RECIPES, recipe
from univip_stream.pretrain.settings import to_dict, with_settings

ROOT = Path(__file__).resolve().parents[2]


def call(*arguments):
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def parsed(line):
    """(name, parameters) of a command of ours, by the command line's own parser; nothing is run."""
    command, words = cli, shlex.split(line)[1:]
    context = click.Context(cli, info_name="univip-stream")
    names = []
    while isinstance(command, click.Group):
        names.append(words.pop(0))
        command = command.get_command(context, names[-1])
        assert command is not None, line
    return " ".join(names), command.make_context(names[-1], words, parent=context).params


def hooks():
    spec = spec_from_file_location("hooks", ROOT / "docs" / "hooks.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_written_from_the_tables():
    assert (ROOT / "docs" / "tables.md").read_text() == hooks().tables_page(), "run `python docs/hooks.py`"


def test_every_command_of_the_page_is_taken_by_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # options that name files of results try whether they can be written
    page = (ROOT / "docs" / "tables.md").read_text()
    ours = [line for line in re.findall(r"^univip-stream .*$", page, re.MULTILINE)]
    ours += re.findall(r"`(univip-stream train [^`]*)`", page)
    assert len(ours) > 150
    made = {}
    for line in dict.fromkeys(ours):
        name, parameters = parsed(line)
        made.setdefault(name, []).append(parameters)
        if name == "train":
            assert parameters["recipe"] in RECIPES
            assert parameters["ablation"] is None or parameters["ablation"] in ABLATIONS
        if name == "export backbone":
            assert parameters["table"] in DETECTRON2
    assert set(made) == {"mine", "train", "eval linear", "eval finetune", "eval detect", "export backbone"}
    # Whatever a command reads, another makes.
    shards = {Path(str(parameters["out"])).name for parameters in made["mine"]}
    assert {name for parameters in made["train"] for name in parameters["shards"]} <= shards
    runs = {str(parameters["out"]) for parameters in made["train"]}
    judged = {str(parameters.get("run")) for name in made if name.startswith(("eval", "export")) for parameters in made[name]}
    assert judged - {"None"} == runs
    # Detectron2's commands name configurations that the export beside them writes.
    for number in DETECTRON2:
        for row in TABLES[number].rows:
            lines = commands_for(TABLES[number], row)
            for config in re.findall(r"--config-file (\S+)\.yaml", "\n".join(lines)):
                suffixes = [f"-{schedule}" for schedule in DETECTRON2[number].schedules] if number == 5 else [""]
                assert config in {f"{row.network}-table-{number}{suffix}" for suffix in suffixes}


def test_all_tables_are_there_and_a_row_of_ours_or_byols_has_its_command():
    assert list(TABLES) == list(range(1, 14))
    for number, table in TABLES.items():
        for row in table.rows:
            assert len(row.numbers) == len(table.columns), (number, row)
            assert row.network is None or row.network in NETWORKS
            if row.method in ("BYOL", "UniVIP") or number in (7, 8, 9):
                assert commands_for(table, row), (number, row)
        assert table.protocol
        assert "derived" in table.hours
    # Some that are easily confused, from the paper.
    numbers = {(n, row.method, row.data, row.epochs): row.numbers for n in TABLES for row in TABLES[n].rows}
    assert numbers[1, "BYOL", "COCO+", 800] == (59.6,)
    assert numbers[4, "BYOL", "ImageNet", 300] == (40.9, 37.0)
    assert numbers[6, "UniVIP", "ImageNet", 200] == (53.0, 78.8, 67.1, 88.5)
    assert numbers[11, "UniVIP", "COCO", 800] == (41.0, 60.6, 44.6, 35.6, 57.4, 37.8)
    with pytest.raises(UsageError, match="no Table 14; expected 1 to 13"):
        table_of(14)


@pytest.mark.parametrize("name", [name for name in RECIPES if name in NETWORKS])
def test_a_recipe_begins_with_its_promise(name):
    """Hardware, hours, number and command, those of the tables; and the loss scale and rate that go together."""
    text = " ".join(RECIPES[name].__doc__.split())
    network, config = NETWORKS[name], RECIPES[name]()
    first = RECIPES[name].__doc__.splitlines()[0]
    assert f"{network.hours():.0f} h on one H200 (derived)" in first
    rows = {number: next(row for row in TABLES[number].rows if row.network == name) for number in (1, 4)}
    assert f"top-1 {rows[1].numbers[0]}" in first
    assert f"box AP {rows[4].numbers[0]}" in first
    assert network.train in text
    assert parsed(network.train)[1]["recipe"] == name
    assert re.search(rf"(loss_scale=|loss scale ){config.method.loss_scale:g}\b", text)
    assert re.search(rf"rate {config.optim.lr:g}\b", text)


FULL = {
    "imagenet": {"train": {"images": 1_281_167}, "val": {"images": 50_000}, "classes": 1000, "image_size": 224},
    "coco": {"train": {"images": 118_287}, "val": {"images": 5_000}},
    "voc": {"train": {"images": 16_551}, "val": {"images": 4_952}},
}
"""How many images the paper's data sets have."""


def result_of(line):
    """What `eval` would record of a command of a table, by the protocols that it would really follow."""
    name, told = parsed(line)
    given = {"backbone": "resnet50", "small_stem": False, "run": told["run"] or told["subject"]}
    if name == "eval linear":
        given |= {"protocol": "linear", "linear": asdict(PROTOCOLS[told["protocol"]]), "top1": 0.1, **FULL["imagenet"]}
    elif name == "eval finetune":
        share = float(told["fraction"].rstrip("%")) / 100
        given |= {"protocol": "finetune", "fraction": share, "finetune": asdict(finetuning_for(share)), "top1": 0.1, "top5": 0.2,
                  "labelled": {0.01: 12_811, 0.1: 128_116}[share], **FULL["imagenet"]}  # fmt: skip
    else:
        own = {"model": told["model"], "rate": rate_for(told["model"], 16)}
        if told["schedule"]:
            own["iterations"] = SCHEDULES[told["schedule"]]
        protocol = voc(**own) if told["voc"] else DetectionProtocol(**own)
        six = {name: 0.3 for name in ("AP", "AP50", "AP75")}
        given |= {"protocol": "detect", "detect": asdict(protocol) | {"falls": protocol.falls()}, "bbox": six, "segm": six,
                  **({"voc": six} if told["voc"] else {}), **FULL["voc" if told["voc"] else "coco"]}  # fmt: skip
    return json.loads(json.dumps(given, default=str))


def test_what_a_tables_commands_record_is_by_its_protocol_and_in_its_columns_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number, table in TABLES.items():
        for row in table.rows:
            made = [result_of(line) for line in commands_for(table, row) if " eval " in line]
            recipe = {"coco": "coco", "coco+": "coco-plus", "imagenet": f"imagenet-{row.epochs}"}.get(row.data.lower(), "")
            made = [one | {"recipe": recipe if str(one["run"]).startswith("runs") else ""} for one in made]
            for column in table.columns if made else ():
                of_column = [one for one in map(column.of, made) if one is not None]
                assert [one.differs for one in of_column] == [()], (number, row.method, row.data, column.name, of_column)


def changed(result, place, value):
    *groups, name = place.split(".")
    result = json.loads(json.dumps(result))
    inner = result
    for group in groups:
        inner = inner[group]
    inner[name] = value
    return result


@pytest.mark.parametrize(("number", "place", "value"), [
    (2, "detect.rate", 0.01), (2, "detect.sides", [64]), (2, "detect.batch_size", 8), (2, "val.images", 80),
    (2, "backbone", "resnet18"),
    (1, "linear.rates", [0.1]), (1, "train.images", 60), (1, "image_size", 64), (1, "linear.name", "features"),
    (1, "recipe", "imagenet-200"),
    (6, "labelled", 20), (6, "classes", 3), (6, "finetune.weight_decay", 1e-4), (12, "train.images", 60),
    (12, "detect.sides", [800]),
])  # fmt: skip
def test_a_number_by_another_protocol_on_other_data_or_of_another_network_is_not_the_papers(
    number, place, value, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    row = next(row for row in TABLES[number].rows if row.network == "coco")
    line = next(line for line in commands_for(TABLES[number], row) if " eval " in line)
    column, result = TABLES[number].columns[0], result_of(line) | {"recipe": "coco"}
    assert column.of(result).differs == ()
    found = column.of(changed(result, place, value))
    assert any(place in reason for reason in found.differs), found


def detected(model, iterations, run, **more):
    protocol = DetectionProtocol(model=model, iterations=iterations, rate=rate_for(model, 16))
    facts = {"protocol": "detect", "run": run, "backbone": "resnet50", "small_stem": False, **FULL["coco"]}
    return {**facts, "detect": asdict(protocol) | {"falls": protocol.falls()}, **more}


def test_a_table_stands_beside_ones_own_runs_and_references(run_folder, tmp_path):
    run = tmp_path / "mine"
    shutil.copytree(run_folder, run, ignore=shutil.ignore_patterns("checkpoints"))
    (run / "eval").mkdir()
    exact = detected("mask-rcnn", 90_000, "runs/mine", bbox={"AP": 0.4012}, segm={"AP": 0.3567})
    (run / "eval" / "mask-rcnn-1x.json").write_text(json.dumps(exact))
    (run / "eval" / "a-quick-look.json").write_text(
        json.dumps(detected("mask-rcnn", 500, "runs/mine", bbox={"AP": 0.02}, segm={"AP": 0.01}))
    )
    longer = detected("mask-rcnn", 180_000, "runs/mine", bbox={"AP": 0.42}, segm={"AP": 0.38})
    (run / "eval" / "mask-rcnn-2x.json").write_text(json.dumps(longer))
    (run / "eval" / "c4.json").write_text(
        json.dumps(detected("mask-rcnn-c4", 90_000, "runs/mine", bbox={"AP": 0.1}, segm={"AP": 0.1}))
    )
    reference = tmp_path / "random.json"
    reference.write_text(json.dumps(detected("mask-rcnn", 500, "random:resnet50", bbox={"AP": 0.05}, segm={"AP": 0.04})))
    done = call("results", "--paper", 2, run, reference)
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    assert any(re.match(r"UniVIP +COCO +800 +40\.8 +36\.8$", line) for line in lines)
    assert any(re.match(r"SwAV +ImageNet +200 +38\.5 +35\.4$", line) for line in lines)
    assert any(re.match(r"mine +cpu-demo univip +yours, [0-9.]+ +40\.1 +35\.7$", line) for line in lines), done.output
    assert any(re.match(r"random:resnet50 +- +yours +5\.0\* +4\.0\*$", line) for line in lines)
    assert "* random:resnet50, not as in the paper: detect.iterations is 500, the paper's 90000" in done.output
    # The schedule of each table, whatever the names of the files.
    assert re.search(r"mine .* 42\.0 +38\.0\n", call("results", "--paper", 3, run).output)
    assert re.search(r"mine .* 40\.1 +42\.0 +-\n", call("results", "--paper", 5, run).output)
    told = json.loads(call("results", "--paper", 10, run, "--json").output)
    assert told["runs"][0]["numbers"][0] == {"value": 10.0, "exact": True, "differs": []}
    assert told["columns"][:2] == ["box AP", "box AP50"]
    assert len(told["rows"]) == 9
    # Without runs, the paper's rows alone.
    alone = call("results", "--paper", 13)
    assert "yours" not in alone.output
    assert "38.5" in alone.output


def test_a_run_is_told_with_its_ablation_and_its_epochs_and_references_by_their_folder(run_folder, tmp_path):
    for name in ("7b", "8b-naive", "7a"):
        run = tmp_path / "runs" / name
        shutil.copytree(run_folder, run, ignore=shutil.ignore_patterns("checkpoints"))
        facts = json.loads((run / "config.json").read_text())
        config = with_settings(recipe("coco"), ABLATIONS[name].settings)
        (run / "config.json").write_text(json.dumps(facts | {"config": to_dict(config)}))
    (tmp_path / "runs" / "7a" / "other.json").write_text(
        json.dumps(detected("mask-rcnn", 90_000, "random:resnet50", bbox={"AP": 0.3}))
    )
    place = tmp_path / "references" / "random"
    place.mkdir(parents=True)
    (place / "voc.json").write_text(json.dumps(detected("mask-rcnn", 90_000, "random:resnet50", bbox={"AP": 0.31})))
    told = json.loads(call("results", "--paper", 8, tmp_path / "runs", tmp_path / "references", "--json").output)["runs"]
    of = [(one["name"], one["recipe"], one["ablation"], one["numbers"][1] and one["numbers"][1]["value"]) for one in told]
    assert of == [
        ("7a", "coco byol", "7a", None), ("random:resnet50", "", "", 30.0), ("7b", "coco univip", "7b", None),
        ("8b-naive", "coco univip", "8b-naive", None), ("random:resnet50", "", "", 31.0),
    ]  # fmt: skip
    assert told[0]["epochs"] > 0


def test_what_is_no_table_or_no_result_is_told(tmp_path):
    assert call("results", "--paper").exit_code == 0  # the ablations, as ever
    for arguments, said, status in (
        (["--paper", "14"], "the paper has no Table 14", 2), (["--paper", "runs"], "expected the number of a table", 2),
        ([], "expected run folders", 2), (["--paper", "2", tmp_path], "holds no result", 1),
    ):  # fmt: skip
        done = call("results", *arguments)
        assert done.exit_code == status, done.output
        assert said in done.output + done.stderr
    (tmp_path / "broken.json").write_text("{")
    done = call("results", "--paper", "2", tmp_path / "broken.json")
    assert done.exit_code == 1
    assert "expected JSON that `eval ... --out` wrote" in done.output + done.stderr
