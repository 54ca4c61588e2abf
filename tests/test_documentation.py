"""Every command in the documentation runs, and the errors it explains are those of the code."""

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path

import boto3
import cv2
import numpy as np
import pytest
from demo_images import SHAPES, draw_scene
from servers import BUCKET, s3_server, web_server

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([DOCS / "tutorial.md", DOCS / "reference" / "python.md", *(DOCS / "how-to").glob("*.md")])
WORD_FOR_WORD = ("tutorial", "own-photographs", "python")
"""Pages for whoever begins: what they say is run as it stands, with fewer steps and nothing else changed."""
AS_INSTALLED = "own-photographs"
"""The page whose first command is the installed one; all others begin warm."""
WITH_TORCHRUN = "slurm"
"""The page that trains on two ranks under torchrun; others that name it train on one, warm."""
ON_RAY = ("tutorial", "own-photographs", "python", "cluster")
"""Pages that start a Ray."""
FEWER = "2"
"""Steps that a training of those pages takes here."""
SHORT = (
    " --steps 2 --batch-size 4 --device cpu --workers 0 --set method.hidden=32 --set method.width=16"
    " --set views.scene_size=64 --set views.instance_size=32 --set accumulate=1"
)
"""Added to every training, which as the page gives it would take minutes to weeks; the last of equal options wins."""

WITH_RESNET_18 = ("coco", "export")
"""Pages whose runs other libraries take; all others train one thirtieth of it."""
MAY_LACK = ("lightning", "lightly", "datasets")
"""Libraries of examples that may not be there. lightly's pins contradict those of a tool that the tests need."""


def as_tried(page: str, line: str) -> str:
    """A command of a page for drawn images and two cores: a training of two steps, one shard, two ranks."""
    if page in WORD_FOR_WORD:
        line = re.sub(r"--steps \d+", f"--steps {FEWER}", line)
        return line + f" --steps {FEWER}" if "univip-stream train " in line and "--steps" not in line else line
    if line.startswith("export AWS"):
        return ""  # the test's own server has set them
    line = line.replace("<000..127>", "<000..000>").replace("--nproc-per-node 8", "--nproc-per-node 2 --standalone")
    if page != WITH_TORCHRUN:
        line = re.sub(r"^torchrun .*-m univip_stream ", "univip-stream ", line)
    line = line.replace(" --launcher ray --ranks 2", "")  # pretrain/test_on_ray.py gives it as it stands
    if re.search(r"univip.stream train ", line):
        small = re.search(r"--recipe (vit|convnext)\b", line)
        network = f"test_{small[1]}" if small else "resnet18" if page in WITH_RESNET_18 else "test_resnet"
        line += f"{SHORT} --backbone {network}"
    if "univip-stream doctor" in line:
        line += " --no-ray"  # its own test starts it
    if " eval " in line:
        line += " --workers 0 --image-size 32" + (" --epochs 1" if "eval knn" not in line else "")
    # Ray's start for each command is what other tests are for; the page about Ray keeps it.
    return (
        line + " --inline"
        if re.search(r"univip-stream (mine|import boxes|refilter) (?!.*(--dry-run|--address))", line)
        else line
    )


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def images(tmp_path_factory, kernels):
    """The folders of images that the pages speak of, drawn and small."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(3)
    places = {"photos": 36, "coco/train2017": 8, "coco/unlabeled2017": 4}
    for top in ("labelled", "imagenet"):
        places |= {f"{top}/{part}/{shape}": 6 for part in ("train", "val") for shape in SHAPES[:2]}
    for place, count in places.items():
        (folder / place).mkdir(parents=True)
        for at in range(count):
            scene = cv2.cvtColor(draw_scene(SHAPES[at % len(SHAPES)], rng, 200, 160), cv2.COLOR_RGB2BGR)
            cv2.imwrite(str(folder / place / f"scene{at:02d}.jpg"), scene)
    boxes = [{"id": at + 1, "image_id": at, "category_id": 1, "bbox": [20, 20, 90, 90], "iscrowd": 0} for at in range(8)]
    named = [{"id": at, "file_name": f"scene{at:02d}.jpg", "width": 200, "height": 160} for at in range(8)]
    (folder / "coco/annotations").mkdir()
    content = {"images": named, "annotations": boxes, "categories": [{"id": 1, "name": "thing"}]}
    (folder / "coco/annotations/instances_train2017.json").write_text(json.dumps(content))
    with tarfile.open(folder / "ILSVRC2012_img_train.tar", "w") as whole:
        for label in sorted((folder / "imagenet/train").iterdir()):
            inner = folder / f"{label.name}.tar"
            with tarfile.open(inner, "w") as part:
                for image in sorted(label.iterdir()):
                    part.add(image, image.name)
            whole.add(inner, inner.name)
            inner.unlink()
    return folder


@pytest.fixture
def surroundings(request):
    """What a page needs beside images: a server, a cluster; as variables of the environment."""
    if request.param == "object-stores":
        with s3_server():
            yield {}
    elif request.param == "url-lists":
        with web_server(request.getfixturevalue("images") / "photos") as server:
            yield {"WEB": server.url}
    elif request.param == "cluster":
        from ray.cluster_utils import Cluster

        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
        yield {"RAY_ADDRESS": cluster.address}
        cluster.shutdown()
    else:
        yield {}


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("page", "surroundings"),
    [pytest.param(page, page.stem, marks=[pytest.mark.ray] if page.stem in ON_RAY else [], id=page.stem) for page in PAGES],
    indirect=["surroundings"],
)
def test_every_command_of_a_page_runs(page, surroundings, images, tmp_path, warm):
    desk = tmp_path / "desk"
    shutil.copytree(images, desk)
    (desk / "pipelines").symlink_to(ROOT / "pipelines")
    for code in blocks(page, "python"):
        if name := re.match(r"# (\w+\.py)\n", code):
            (desk / name[1]).write_text(code)
    commands = [as_tried(page.stem, line) for block in blocks(page, "bash") for line in block.splitlines()]
    if page.stem != "python" and (not any("--out shards" in command for command in commands) or page.stem == "resume"):
        commands.insert(0, "univip-stream mine --src photos --out shards --inline")
    if page.stem == "url-lists":
        addresses = [f"{surroundings['WEB']}/{image.name}\n" for image in sorted((desk / "photos").iterdir())]
        (desk / "urls.txt").write_text("".join(addresses))
    if page.stem == "object-stores":
        for image in (desk / "photos").iterdir():
            boto3.client("s3").upload_file(str(image), BUCKET, f"photos/{image.name}")
    if page.stem == AS_INSTALLED:
        commands[0] = f"PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH {commands[0]}"
    script = "\n".join(["set -ex", *commands])
    programs = f"{warm.bin}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    paths = {"PATH": programs, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = subprocess.run(
        ["bash", "-c", script], cwd=desk, env=os.environ | paths | surroundings, capture_output=True, text=True, timeout=800
    )
    assert done.returncode == 0, done.stderr[-3000:]
    missing = set()
    for code in blocks(page, "python"):
        lacks = {
            name for name in MAY_LACK if re.search(rf"^(import|from) {name}\b", code, re.MULTILINE) and not find_spec(name)
        }
        missing |= lacks
        if not lacks:
            if page.stem in WORD_FOR_WORD:
                code = code.replace("steps=60", f"steps={FEWER}")
            else:
                code = code.replace("resnet50", "resnet18")  # which every training above was of
            done = warm.run(["-c", code], cwd=desk)
            assert done.returncode == 0, done.stderr[-3000:]
    if missing:
        pytest.skip(f"all else ran; not installed: {', '.join(sorted(missing))}")


def messages() -> list[str]:
    """What the code can say: its texts, with ... for what is filled in."""
    found = []
    for path in (ROOT / "univip_stream").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = [str(part.value) if isinstance(part, ast.Constant) else "..." for part in node.values]
                found.append("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def test_the_errors_that_are_explained_are_those_of_the_code():
    said = messages()
    headings = re.findall(r"^### (.+)$", (DOCS / "faq.md").read_text(), re.MULTILINE)
    assert len(headings) > 10
    unknown = [text for text in headings if not any(text.strip(". ") in message for message in said)]
    assert not unknown


PLACEHOLDER = re.compile(r"\b(TODO|FIXME|TBD|XXX|PLACEHOLDER)\b|\blorem ipsum\b|\?\?\?", re.IGNORECASE)
LONE = re.compile(r"^[\s|>*_-]*[A-Z][A-Z_]{2,}[\s|*_.-]*$", re.MULTILINE)
"""A word in capitals that is all of its line: what stands where a text is still to be filled in."""


def texts_for_people() -> dict[str, str]:
    """Pages without their code, and docstrings with what stands under fields, by where they are."""
    found = {}
    for path in [*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *ROOT.glob("pipelines/*.md"), *ROOT.glob("shards/*.md")]:
        found[str(path.relative_to(ROOT))] = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    for folder in ("univip_stream", "pipelines", "benchmarks", "docs"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
                    found[f"{path.relative_to(ROOT)}:{node.lineno}"] = node.value.value
    return found


def test_no_text_is_still_to_be_written():
    texts = texts_for_people()
    assert len(texts) > 500
    left = {
        place: found[0].strip() for place, text in texts.items() if (found := PLACEHOLDER.search(text) or LONE.search(text))
    }
    assert not left


@pytest.mark.parametrize(
    "text", ["## Results\n\nLEARNED\n", "| LEARNED |", "todo: the table", "FIXME", "TBD.", "Lorem ipsum dolor", "???"]
)
def test_a_placeholder_is_found(text):
    assert PLACEHOLDER.search(text) or LONE.search(text)


@pytest.mark.parametrize("text", ["LARS at 4.8, weight decay 1e-6", "| `RUN` | a folder |", "What SHARDS is"])
def test_words_in_capitals_within_a_sentence_are_none(text):
    assert not PLACEHOLDER.search(text)
    assert not LONE.search(text)


def test_the_page_of_settings_is_what_the_code_gives():
    """`python docs/hooks.py` writes it anew."""
    assert hooks().SETTINGS.read_text() == hooks().settings_page()


def test_the_tree_in_architecture_names_every_file_with_its_own_words():
    """`python docs/hooks.py` writes it anew."""
    text = hooks().ARCHITECTURE.read_text()
    assert text == hooks().with_tree(text)
    assert "  transport.py            Entropic optimal transport" in text


def hooks():
    """docs/hooks.py, which is no module of the package."""
    found = spec_from_file_location("hooks", DOCS / "hooks.py")
    module = module_from_spec(found)
    found.loader.exec_module(module)
    return module
