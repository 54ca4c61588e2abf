"""Check what this machine has: each thing is tried out, not only looked up."""

import importlib
import importlib.metadata
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, Literal, NamedTuple

import numpy as np

from univip_stream.errors import InputError
from univip_stream.extras import EXTRAS, cure_for
from univip_stream.images import encode_jpeg
from univip_stream.machine import cpu_quota, usable_cpus

State = Literal["ok", "note", "missing", "broken"]


class Check(NamedTuple):
    """The result of one check."""

    job: str
    """Group of the check: machine, both (jobs), mine or train."""
    what: str
    state: State
    """ok; note: works, but slower or smaller than it could be; missing; broken: installed, but does not work."""
    found: str
    cure: str = ""


JOBS = ("mine", "train")
"""Jobs that a machine may be for; the package has an extra of the same name for each."""
_BOTH = {
    "cv2": "opencv-contrib-python-headless", "pyarrow": "pyarrow", "aiohttp": "aiohttp", "jinja2": "jinja2",
    "matplotlib": "matplotlib",
}  # fmt: skip
"""Module -> package to install, for modules that every machine needs."""

_LEAST_FREE = 20 << 30
_LEAST_FILES = 4096
_DISK_BYTES = 128 << 20


def examine(folder: Path, *, jobs: Sequence[str] = JOBS, ray: bool = True) -> Iterator[Check]:
    """Run all checks and yield their results one by one; a failing check does not raise.

    Args:
        folder: folder that shards or runs will go to; 128 MiB are written there and removed.
        jobs: those of `JOBS` that the machine is for.
        ray: whether to start a local Ray and run a task on it, which takes seconds.

    Raises:
        InputError: the folder does not exist.

    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; expected the place where shards or runs will lie")
    yield from _machine(folder)
    yield from _libraries("both", _BOTH)
    yield _simplejpeg()
    if "mine" in jobs:
        yield from _libraries("mine", EXTRAS["mine"])
        yield _run_check("mine", "selective search", _selective_search)
        yield _run_check("mine", "OpenCV's selective search", _opencv_contrib)
        yield _run_check("mine", "HEIC and JPEG XL", _image_plugins)
        if ray:
            yield _run_check("mine", "a task on a local Ray", _ray_task)
    if "train" in jobs:
        yield from _libraries("train", EXTRAS["train"])
        yield _run_check("train", "torchvision's operators", _operators)
        yield _run_check("train", "torchvision's JPEG decoder", _torchvision_decoder)
        yield _run_check("train", "GPU", _gpu)


def _machine(folder: Path) -> Iterator[Check]:
    version = ".".join(map(str, sys.version_info[:3]))
    fits = (3, 11) <= sys.version_info[:2] <= (3, 12)
    yield Check("machine", "Python", "ok" if fits else "broken", version, "" if fits else "Python 3.11 or 3.12")
    cpus, all_cpus = len(os.sched_getaffinity(0)), os.cpu_count() or 0
    quota = cpu_quota()
    usable = f"{cpus} of {all_cpus} usable" + (f", {quota:g} by the container's quota" if quota else "")
    few = quota is not None and quota < cpus
    yield Check(
        "machine",
        "CPUs",
        "note" if few else "ok",
        usable,
        f"defaults go by the quota: {usable_cpus()} workers" if few else "",
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    yield Check("machine", "memory", "ok" if memory > 7 << 30 else "note", _size(memory))
    shared = shutil.disk_usage("/dev/shm").total if Path("/dev/shm").is_dir() else 0
    yield Check(
        "machine", "shared memory (/dev/shm)", "ok" if shared >= 1 << 30 else "note", _size(shared),
        "" if shared >= 1 << 30 else "loader workers hand batches over there; in a container: --shm-size=8g",
    )  # fmt: skip
    yield _open_files()
    free = shutil.disk_usage(folder).free
    enough = free >= _LEAST_FREE
    yield Check(
        "machine", f"free at {folder}", "ok" if enough else "note", _size(free),
        "" if enough else "shards take the images' own size; COCO is 19 GB, ImageNet 140 GB",
    )  # fmt: skip
    yield _run_check("machine", f"disk at {folder}", lambda: _disk(folder))


def _open_files() -> Check:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = soft >= _LEAST_FILES or soft == resource.RLIM_INFINITY
    cure = "" if enough else f"Ray and many shards want more: ulimit -n {min(hard, 65536)}"
    return Check("machine", "open files", "ok" if enough else "note", f"{soft} (at most {hard})", cure)


def _disk(folder: Path) -> str:
    """Write and read back 128 MiB of incompressible data, bypassing the system's cache if it allows that."""
    block = np.random.default_rng(0).bytes(1 << 20)
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".univip-stream-doctor-") as file:
        began = time.perf_counter()
        for _ in range(_DISK_BYTES >> 20):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
        written = time.perf_counter() - began
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        file.seek(0)
        began = time.perf_counter()
        while file.read(1 << 20):
            pass
        read = time.perf_counter() - began
    return f"writes {_DISK_BYTES / written / 1e6:.0f} MB/s, reads {_DISK_BYTES / read / 1e6:.0f} MB/s"


def _libraries(job: str, packages: Mapping[str, str]) -> Iterator[Check]:
    for module, package in packages.items():
        yield _library(job, module, package)


def _library(job: str, module: str, package: str) -> Check:
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        cure = cure_for(module) or f"pip install {package}"
        return (
            Check(job, package, "missing", "", cure)
            if error.name == module
            else Check(job, package, "broken", _short(error), cure)
        )
    except Exception as error:
        return Check(job, package, "broken", _short(error), f"pip install --force-reinstall {package}")
    return Check(job, package, "ok", _version(package, module))


def _version(package: str, module: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # another build of the same module, as OpenCV has several
        return str(getattr(sys.modules[module], "__version__", "of unknown version"))


class _Note(Exception):  # noqa: N818 - it is not an error
    """Raised by a check for something that works with a limitation, or is broken: what was found, and its cure."""

    def __init__(self, found: str, cure: str, state: State = "note"):
        super().__init__(found)
        self.found, self.cure, self.state = found, cure, state


def _run_check(job: str, what: str, check: Callable[[], str]) -> Check:
    try:
        return Check(job, what, "ok", check())
    except _Note as note:
        return Check(job, what, note.state, note.found, note.cure)
    except ModuleNotFoundError as error:
        return Check(job, what, "missing", f"needs {error.name}", cure_for(error.name or "") or f"pip install {error.name}")
    except Exception as error:
        return Check(job, what, "broken", _short(error))


def _picture() -> np.ndarray:
    """Return 640 x 480 pixels of noise over blobs: neither as easy as a flat image nor as hard as pure noise."""
    rng = np.random.default_rng(0)
    blobs = np.kron(rng.integers(0, 256, (12, 16, 3)), np.ones((40, 40, 1)))
    return np.clip(blobs + rng.normal(0, 8, blobs.shape), 0, 255).astype(np.uint8)


def _selective_search() -> str:
    from univip_stream.proposals import propose

    image = _picture()
    began = time.perf_counter()
    propose(image)
    first = time.perf_counter() - began
    return f"{_milliseconds(lambda: propose(image), 5):.1f} ms for 640 x 480, the first in a process {first:.1f} s"


def _opencv_contrib() -> str:
    import cv2

    if not hasattr(cv2, "ximgproc"):
        raise _Note("this OpenCV lacks its contrib part", "only for --proposals opencv-*: opencv-contrib-python-headless")
    return "there"


def _image_plugins() -> str:
    from univip_stream.filetypes import PLUGINS

    lacking = []
    for module, package, called in PLUGINS.values():
        try:
            importlib.import_module(module)
        except ImportError:
            lacking.append((package, called))
    if lacking:
        packages, formats = zip(*lacking, strict=True)
        raise _Note(f"{' and '.join(formats)} are not read", f"only for such files: pip install {' '.join(packages)}")
    return "there"


def _operators() -> str:
    import torch
    import torchvision

    try:
        torchvision.ops.nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([1.0]), 0.5)
    except (RuntimeError, AttributeError, NotImplementedError) as error:
        pair = f"torch {torch.__version__} and torchvision {torchvision.__version__} do not fit each other"
        raise _Note(pair, "install both in one command: pip install torch torchvision", "broken") from error
    return f"load with torch {torch.__version__}"


def _gpu() -> str:
    import torch

    if not torch.cuda.is_available():
        built = torch.version.cuda
        why = "this torch is built without CUDA" if built is None else f"torch (CUDA {built}) sees none"
        raise _Note(f"none: {why}", "training works on CPUs, for small networks and images; nvidia-smi shows what there is")
    gpus = []
    for at in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(at)
        gpus.append(f"{facts.name}, {_size(facts.total_memory)}")
    x = torch.ones(64, 64, device="cuda", dtype=torch.bfloat16)
    assert float((x @ x)[0, 0]) == 64
    return "; ".join(gpus) + ("; bf16" if torch.cuda.is_bf16_supported() else "; no bf16, so fp32")


def _simplejpeg() -> Check:
    def timed() -> str:
        import simplejpeg

        data = encode_jpeg(_picture())
        return f"{_milliseconds(lambda: simplejpeg.decode_jpeg(data), 20):.2f} ms for 640 x 480"

    found = _run_check("both", "simplejpeg", timed)
    cure = "pip install simplejpeg; without it Pillow and torchvision decode, slower"
    return found if found.state == "ok" else found._replace(state="note", cure=cure)


def _torchvision_decoder() -> str:
    import torch
    from torchvision.io import decode_jpeg

    held = torch.frombuffer(bytearray(encode_jpeg(_picture())), dtype=torch.uint8)
    return f"{_milliseconds(lambda: decode_jpeg(held), 20):.2f} ms for 640 x 480"


def _ray_task() -> str:
    import subprocess

    code = (
        "import ray; ray.init(num_cpus=1, include_dashboard=False, logging_level='ERROR', log_to_driver=False)\n"
        "print(ray.get(ray.remote(lambda: 42).remote()))"
    )
    began = time.perf_counter()
    # In a process of its own: it must work if Ray hangs, or if this process is part of a Ray already. A cluster named by the
    # environment is left alone.
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    try:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=90, env=environment)
    except subprocess.TimeoutExpired as error:
        raise _Note("no answer in 90 s", "mine --inline works without Ray, on one CPU", "broken") from error
    if done.stdout.strip() != "42":
        last = (done.stderr.strip().splitlines() or ["no output"])[-1][:200]
        raise _Note(last, "mine --inline works without Ray, on one CPU", "broken")
    return f"ran, {time.perf_counter() - began:.1f} s with Ray's start"


def _milliseconds(call: Callable[[], Any], rounds: int) -> float:
    call()
    took = []
    for _ in range(rounds):
        began = time.perf_counter()
        call()
        took.append(time.perf_counter() - began)
    return 1e3 * median(took)


def _size(count: float) -> str:
    return f"{count / (1 << 30):.1f} GiB"


def _short(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
