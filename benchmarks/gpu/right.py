"""Part a: `pytest -m gpu`, and what each test said."""

import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

from part import Part, running

ROOT = Path(__file__).resolve().parents[2]


def tests(part: Part) -> None:
    report = part.work / "gpu-tests.xml"
    report.unlink(missing_ok=True)
    # Warnings are not errors here: another version's must not hide what the GPU has to say. No shape checks, which need packages.
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "tests/gpu", "-o", "addopts=", "-o", "filterwarnings=default"]
    command += ["-o", "tmp_path_retention_policy=none", "-p", "no:cacheprovider", "-q", "-rA", "--durations=10"]
    command += [f"--junitxml={report}", "--show-capture=no", "--tb=short"]
    process = subprocess.Popen(
        command, cwd=ROOT, env=os.environ | {"UNIVIP_GPU_TESTS": part.device.type}, stdout=sys.stdout, stderr=sys.stderr
    )
    try:
        status = process.wait(timeout=None if part.rehearse else max(5.0, part.left() - 10))
    except subprocess.TimeoutExpired:
        process.terminate()
        status = process.wait()
    if not report.exists():
        part.keep("pytest", {"error": f"exit status {status} and no report"})
        return
    for case in ET.parse(report).iter("testcase"):
        name, seconds = case.get("name", ""), float(case.get("time", 0))
        facts = {entry.get("name"): entry.get("value") for entry in case.iter("property")}
        if (bad := case.find("failure")) is not None or (bad := case.find("error")) is not None:
            part.keep(name, {"error": (bad.get("message") or "")[:1500], "seconds": seconds, **facts})
        elif (skipped := case.find("skipped")) is not None:
            part.keep(name, {"left_out": skipped.get("message"), **facts})
        else:
            part.keep(name, {"passed": True, "seconds": seconds, **facts})


if __name__ == "__main__":
    with running() as part:
        tests(part)
