"""What the parts share: arguments, a JSON that is whole after every entry, failures that are recorded, and the clock."""

import argparse
import contextlib
import json
import platform
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch


class OutOfTimeError(KeyboardInterrupt):
    """The part was asked to stop. A KeyboardInterrupt, which neither `except Exception` nor pytest takes for a failure."""


@dataclass
class Part:
    """One part of the script, while it runs."""

    path: Path
    """Of its JSON."""
    work: Path
    device: torch.device
    limit: float
    """Seconds."""
    rehearse: bool
    entries: dict[str, dict[str, Any]] = field(default_factory=dict)
    began: float = field(default_factory=time.monotonic)
    machine: dict[str, Any] = field(default_factory=dict)

    def left(self) -> float:
        """Seconds until the part is asked to stop."""
        return self.limit - (time.monotonic() - self.began)

    def attempt(self, name: str, work: Callable[[], dict[str, Any]], *, wants: float = 0.0) -> dict[str, Any]:
        """Do one thing and keep what it found, or why it failed; left out where fewer than `wants` seconds are left."""
        if not self.rehearse and self.left() < wants:
            entry: dict[str, Any] = {"left_out": f"{self.left():.0f} s left, {wants:.0f} wanted"}
        else:
            start = time.monotonic()
            try:
                entry = work()
            except OutOfTimeError:
                self.keep(name, {"left_out": f"stopped after {time.monotonic() - start:.0f} s"})
                raise
            except KeyboardInterrupt:
                raise
            except BaseException as error:
                traceback.print_exc()
                entry = {"error": f"{type(error).__name__}: {error}"[:2000]}
            entry["seconds"] = round(time.monotonic() - start, 2)
        self.keep(name, entry)
        return entry

    def keep(self, name: str, entry: dict[str, Any]) -> None:
        """Write an entry, and everything before it, to disk."""
        self.entries[name] = entry
        self.write()
        with contextlib.suppress(OSError):  # nobody may read it any more
            print(f"   {name}: {json.dumps(entry)}", flush=True)

    def write(self) -> None:
        """Write all entries to disk. A full one is no reason to end: the words have the numbers too."""
        part = self.path.with_suffix(".part")
        try:
            part.write_text(json.dumps({"machine": self.machine, "entries": self.entries}, indent=1) + "\n")
            part.replace(self.path)
        except OSError as error:
            with contextlib.suppress(OSError):
                print(f"   {self.path} cannot be written: {error.strerror}", flush=True)

    def wait(self) -> None:
        """Until the device has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def forget(self) -> None:
        """Free what is not in use, and begin to count memory anew."""
        import gc

        gc.collect()
        torch._dynamo.reset()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)

    def peak(self) -> dict[str, float]:
        """GiB of the device that were in use at most."""
        if self.device.type != "cuda":
            return {}
        return {"peak_gib": round(torch.cuda.max_memory_allocated(self.device) / 2**30, 2)}


@contextlib.contextmanager
def running() -> Iterator[Part]:
    """The part that the arguments say; asked to stop, it ends with what it has."""
    parser = argparse.ArgumentParser()
    parser.add_argument("path", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--limit", type=float, default=600)
    parser.add_argument("--rehearse", action="store_true")
    args = parser.parse_args()

    def stop(number: int, frame: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough: the next one would come while it saves
        raise OutOfTimeError

    if args.device == "cuda" and not torch.cuda.is_available():
        sys.exit("error: torch finds no GPU here; --rehearse runs everything in small on the CPU")
    args.work.mkdir(parents=True, exist_ok=True)
    device = torch.device(args.device)
    # Looked up beforehand: a part that is asked to stop has seconds to write what it found.
    part = Part(args.path, args.work, device, args.limit, args.rehearse, machine=machine(device))
    signal.signal(signal.SIGTERM, stop)
    try:
        yield part
    except OutOfTimeError:
        part.write()  # it may have been stopped while it wrote
        with contextlib.suppress(OSError):
            print("   stopped", flush=True)
    if any("error" in entry for entry in part.entries.values()):
        sys.exit(1)


def machine(device: torch.device) -> dict[str, Any]:
    """What ran."""
    import torchvision

    facts: dict[str, Any] = {
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "python": platform.python_version(),
    }
    if device.type == "cuda":
        facts |= {"gpu": torch.cuda.get_device_name(device), "cudnn": torch.backends.cudnn.version()}
    return facts
