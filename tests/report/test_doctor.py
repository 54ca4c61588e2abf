"""`univip-stream doctor` finds what is there, and what is not."""

import json
import os
import subprocess
import sys

import pytest

from univip_stream.report.doctor import examine


def doctor(*arguments, before=""):
    call = f"import sys\nfrom univip_stream.cli import main\nsys.argv = ['univip-stream', 'doctor', *{arguments!r}]\nmain()"
    code = f"{before}\n{call}"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200)


@pytest.mark.ray
def test_here_everything_is_found_and_a_task_runs_on_ray(tmp_path):
    done = doctor("--path", str(tmp_path), "--json")
    findings = {finding["what"]: finding for finding in json.loads(done.stdout)}
    assert done.returncode == 0, done.stderr
    assert findings["a task on a local Ray"]["found"].startswith("ran")
    assert findings["torchvision's operators"]["state"] == "ok"
    assert not os.listdir(tmp_path)


def test_what_cannot_be_imported_is_missing_with_its_cure_and_status_one(tmp_path):
    block = (
        "import sys\n"
        "class Block:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name in ('numba', 'simplejpeg'):\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Block())"
    )
    done = doctor("--path", str(tmp_path), "--no-ray", before=block)
    assert done.returncode == 1
    assert "MISSING numba" in done.stdout
    assert "pip install 'univip-stream[mine]'" in done.stdout
    assert "without it Pillow and torchvision decode" in done.stdout


def test_a_container_whose_operators_do_not_load_is_told_so(tmp_path, monkeypatch):
    import torchvision

    def broken(*_):
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(torchvision.ops, "nms", broken)
    found = next(finding for finding in examine(tmp_path, ray=False) if finding.what == "torchvision's operators")
    assert found.state == "broken"
    assert "one command" in found.cure


def test_a_folder_that_is_not_there():
    done = doctor("--path", "nowhere")
    assert done.returncode == 1
    assert "nowhere is not a folder" in done.stderr
