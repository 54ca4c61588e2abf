"""What goes wrong when a run starts, and on the machine while it trains: a sentence, and nothing that stands in the way."""

import json
import shlex
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from warm import PIPE

from univip_stream.cli import cli
from univip_stream.errors import InputError, UsageError
from univip_stream.networks import build_backbone
from univip_stream.pretrain import pretrain
from univip_stream.pretrain.recipes import recipe
from univip_stream.pretrain.settings import with_settings

TINY = [
    "method.backbone=test_resnet", "method.hidden=32", "method.width=16", "views.scene_size=32", "views.instance_size=32",
    "views.instances=2", "views.min_scale=32", "stream.batch_size=4", "stream.workers=1", "precision=fp32",
    "steps=4", "checkpoint_every=3", "record_every=1",
]  # fmt: skip


def tiny(*settings):
    return with_settings(recipe("cpu-demo"), [*TINY, *settings])


def arguments(shards, run, *settings):
    texts = [text for setting in (*TINY, *settings) for text in ("--set", setting)]
    return ["train", "--shards", str(shards), "--out", str(run), "--recipe", "cpu-demo", *texts]


def said_by(*texts):
    result = CliRunner().invoke(cli, list(map(str, texts)))
    assert "Traceback" not in result.output
    return result.exit_code, result.output


@pytest.mark.parametrize(
    ("settings", "status", "words"),
    [
        (["method.backbone=restnet18"], 2, "resnet18"),
        (["knn.train=nosuch", "knn.val=nosuch"], 1, "nosuch"),
        (["method.backbone=vit_tiny_patch16_224", "method.small_stem=true"], 2, "small_stem is for ResNets"),
        (["method.backbone=test_vit", "views.scene_size=96", "views.instance_size=40"], 2, "views.instance_size=32 fits"),
        (["method.pretrained=true", "method.backbone=resnet18"], 1, "the library's weights of resnet18 cannot be had"),
        (["views.pairs=nosuch.parquet", "method.name=orl"], 1, "nosuch.parquet"),
    ],
)
def test_a_start_that_fails_leaves_nothing_and_the_corrected_command_runs(
    settings, status, words, drawn_shards, tmp_path, monkeypatch
):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "weights"))
    monkeypatch.setattr(urllib.request, "_opener", None)  # it would keep these proxies for every test after this one
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # no network, whatever this machine has
    run = tmp_path / "runs" / "run"
    code, said = said_by(*arguments(drawn_shards, run, "stream.workers=0", *settings))
    assert (code, words in said) == (status, True), said
    assert not run.parent.exists()
    pretrain(tiny("stream.workers=0", "steps=1"), str(drawn_shards), run)


def test_a_folder_of_a_run_that_never_began_is_taken_over_and_one_of_a_run_is_not(drawn_shards, tmp_path):
    """Earlier versions wrote config.json first; so does one that fails in its first step."""
    run = tmp_path / "run"
    pretrain(tiny("stream.workers=0", "steps=1"), str(drawn_shards), run)
    with pytest.raises(InputError, match="holds a run of other settings"):
        pretrain(tiny("optim.lr=0.3", "stream.workers=0"), str(drawn_shards), run)
    for path in (*(run / "checkpoints").iterdir(), run / "metrics.jsonl"):
        path.unlink()
    pretrain(tiny("optim.lr=0.3", "stream.workers=0", "steps=1"), str(drawn_shards), run)
    assert json.loads((run / "config.json").read_text())["config"]["optim"]["lr"] == 0.3
    with pytest.raises(InputError, match=r"optim\.lr 0\.3 there, 0\.05 here"):
        pretrain(tiny("stream.workers=0", "steps=1"), str(drawn_shards), run)


def test_a_run_that_is_there_is_said_with_the_command_that_continues_it(drawn_shards, tmp_path):
    """Without its options, the recipe's batch used to be what was complained of."""
    run = tmp_path / "a run"
    changed = ["stream.workers=0", "steps=2", "seed=7", "augment.mean=[0.5, 0.5, 0.5]", "views.overlap=false"]
    assert said_by(*arguments(drawn_shards, run, *changed))[0] == 0
    code, said = said_by("train", "--shards", drawn_shards, "--out", run)
    assert code == 1
    assert "holds a run of other settings" in said
    assert "fewer than one batch" not in said
    [line] = [line for line in said.splitlines() if line.strip().startswith("univip-stream train")]
    code, said = said_by(*shlex.split(line)[1:])
    assert (code, "was finished before" in said) == (0, True), said


def test_a_warm_up_longer_than_the_run_is_said(drawn_shards, tmp_path):
    said = []
    values = pretrain(tiny("stream.workers=0", "steps=2"), str(drawn_shards), tmp_path / "run", say=said.append)
    [line] = [line for line in said if "warm-up" in line]
    assert line.startswith("the warm-up takes 3 steps and the run 2: the rate gets no higher than ")
    assert f"{values['lr']:g}" in line


def test_a_run_that_burst_with_finite_numbers_does_not_end_without_a_word(drawn_shards, tmp_path):
    said = []
    pretrain(tiny("stream.workers=0", "steps=2"), str(drawn_shards), tmp_path / "sound", say=said.append)
    assert not [line for line in said if "largest weight" in line]
    wild = tiny("stream.workers=0", "steps=2", "optim.lr=5000", "optim.warmup_epochs=0")
    pretrain(wild, str(drawn_shards), tmp_path / "wild", say=said.append)
    [line] = [line for line in said if "largest weight" in line]
    assert "optim.lr (it is 5000)" in line


@pytest.mark.parametrize("device", ["gpu", "mps", "cuda:x", "cuda:-1", "meta"])
def test_a_device_that_is_none_is_said_in_our_words(device, drawn_shards, tmp_path):
    code, said = said_by(*arguments(drawn_shards, tmp_path / "run"), "--device", device)
    assert code == 2
    assert f"--device {device}: there is no such device here; expected auto, cpu, cuda or cuda:N" in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
            "out of GPU memory with batch size 4 (",
        ),
        (
            RuntimeError(
                "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"
            ),
            "out of memory with batch size 4",
        ),
        (MemoryError(), "out of memory with batch size 4"),
    ],
)
@pytest.mark.parametrize("method", ["univip", "own"])
def test_memory_that_is_full_is_said_with_what_helps(error, words, method, drawn_shards, tmp_path, monkeypatch):
    from univip_stream.methods import UniVIP

    def forward(self, *arguments, **more):
        raise error

    monkeypatch.setattr(UniVIP, "forward", forward)
    name = "univip" if method == "univip" else "univip_stream.methods:UniVIP"
    with pytest.raises(InputError) as caught:
        pretrain(tiny("stream.workers=0", f"method.name={name}"), str(drawn_shards), tmp_path / "run")
    assert words in str(caught.value)
    assert "--set accumulate=2" in str(caught.value)


SLOW = """
import sys, time
import univip_stream.stream.reader as module
read, calls = module.Reader.image, []
def image(self, sample):
    calls.append(sample)
    if len(calls) > {images}:
        print("waits", file=sys.stderr, flush=True)
        time.sleep(3600)
    return read(self, sample)
module.Reader.image = image
from univip_stream.cli import cli
cli.main(sys.argv[1:], prog_name="univip-stream")
"""


@pytest.mark.parametrize(
    ("images", "more", "words", "checkpoints"),
    [
        (10, [], "stopped after step 2 of 4, waiting for images; saved; run the same command to continue", 1),
        (2, [], "stopped after step 0 of 4, waiting for images; nothing was trained yet", 0),
        # Half a step was computed: statistics and queues are of neither step.
        (10, ["accumulate=2"], "stopped after step 2 of 4, waiting for images; nothing was trained yet", 0),
    ],
)
def test_one_sigterm_ends_a_run_that_waits_for_its_images(images, more, words, checkpoints, drawn_shards, tmp_path, warm):
    run = tmp_path / "run"
    texts = arguments(drawn_shards, run, "stream.prefetch=1", *more)
    process = warm.start(["-c", SLOW.format(images=images), *texts], stderr=PIPE)
    for line in process.stderr:
        if line == "waits\n":
            break
    time.sleep(2)
    process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    _, said = process.communicate(timeout=60)
    assert process.returncode == 75
    assert words in said
    assert "Traceback" not in said
    assert time.monotonic() - began < 20
    assert len(list((run / "checkpoints").glob("*.pt")) if checkpoints else []) == checkpoints


def test_workers_of_a_killed_run_are_gone_within_five_seconds(drawn_shards, tmp_path, warm):
    texts = arguments(drawn_shards, tmp_path / "run", "stream.workers=8", "steps=4000", "stream.prefetch=4")
    process = warm.start(["-m", "univip_stream", *texts], stderr=PIPE)
    for line in process.stderr:
        if line.startswith("step"):
            break
    found = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
    workers = [pid for pid in found if Path(f"/proc/{pid}/comm").read_text().startswith("pt_data")]
    assert len(workers) == 8
    process.kill()
    process.communicate()
    until = time.monotonic() + 5
    while any(Path(f"/proc/{worker}").exists() for worker in workers):
        assert time.monotonic() < until
        time.sleep(0.05)


SMALL_DISK = """
import ctypes, subprocess, sys
from pathlib import Path
from univip_stream.cli import cli
size, folder, *words = sys.argv[1:]
NEW_MOUNTS = 0x00020000
if ctypes.CDLL(None).unshare(NEW_MOUNTS):
    sys.exit("unshare: refused")
subprocess.run(["mount", "--make-rprivate", "/"], check=True)
if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=" + size, "tmpfs", folder]).returncode:
    sys.exit("mount: refused")
Path(folder, "other").write_bytes(bytes(4096))
try:
    cli.main(words, prog_name="univip-stream")
finally:
    print("", *(path for path in Path(folder).rglob("*") if path.is_file()), sep="\\n")
"""


def on_small_disk(warm, size, folder, *words):
    """What a command says whose output folder is a disk of so many bytes, and the files that it leaves there."""
    done = warm.run(["-c", SMALL_DISK, size, folder, *words])
    if done.returncode and ("unshare:" in done.stderr or "mount:" in done.stderr):
        pytest.skip("needs the right to mount a file system, which is not given here")
    return done, [Path(line).relative_to(folder) for line in done.stdout.splitlines() if line.startswith(str(folder))]


@pytest.mark.parametrize(
    ("size", "file", "wanted"),
    [
        ("60m", "checkpoints/step-000000003.pt", "it takes about"),  # a network and its target, their momentum
        ("170m", "checkpoints/step-000000004.pt", "it takes about"),
        ("4k", "config.json", "it takes about"),
    ],
)
def test_a_full_disk_is_said_with_the_file_and_nothing_half_written_is_left(size, file, wanted, drawn_shards, tmp_path, warm):
    folder = tmp_path / "disk"
    folder.mkdir()
    words = arguments(drawn_shards, folder / "run", "stream.workers=0", "method.backbone=resnet18")
    done, left = on_small_disk(warm, size, folder, *words)
    assert done.returncode == 1
    assert f"error: no room to write {folder / 'run' / file} (No space left on device)" in done.stderr
    assert wanted in done.stderr
    assert " free. Make room" in done.stderr
    assert "Traceback" not in done.stderr
    assert not [path for path in left if path.suffix == ".tmp"]


LIMITED = """
import resource, sys
from pathlib import Path
from univip_stream.record import Recorder
folder = Path(sys.argv[1])
recorder = Recorder(folder, resumed=0)
recorder.write({"step": 1})
resource.setrlimit(resource.RLIMIT_FSIZE, (20, 20))
try:
    recorder.write({"step": 2})
except Exception as error:
    print(type(error).__name__, error)
recorder.close()
"""


def test_a_line_of_metrics_that_does_not_fit_is_not_begun(tmp_path):
    """A limit on the size of files stands in for the disk: the same error from the same call."""
    done = subprocess.run([sys.executable, "-c", LIMITED, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(
        f"NoRoomError no room to write {tmp_path / 'metrics.jsonl'} (File too large); it takes about 12 "
    )
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1}\n'


def test_weights_that_cannot_be_had_are_an_error_and_a_mistake_is_none_of_them():
    with pytest.raises(InputError, match="the library's weights of test_vit4 cannot be had"):
        build_backbone("test_vit4", pretrained=True)
    with pytest.raises(UsageError):
        build_backbone("restnet18", pretrained=True)
