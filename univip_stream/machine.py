"""CPUs and memory that this process may use, according to its affinity and a container's limits."""

import os
from collections.abc import Iterator
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")


def usable_cpus(cgroups: Path = _CGROUPS, own: Path = _OWN) -> int:
    """Return the number of CPUs to spread work over: those this process may run on, or fewer if a container's quota is lower.

    Half a CPU counts as one; two and a half count as two, because a third worker would make the others wait.

    Args:
        cgroups: mount point of the cgroup file system.
        own: file that names the cgroups of this process, in the form of `/proc/self/cgroup`.

    """
    affinity = len(os.sched_getaffinity(0))
    quota = cpu_quota(cgroups, own)
    return affinity if quota is None else max(1, min(affinity, int(quota)))


def cpu_quota(cgroups: Path = _CGROUPS, own: Path = _OWN) -> float | None:
    """Return a container's quota in CPUs, from cgroup v2 (`cpu.max`) or v1 (`cpu.cfs_quota_us`); None without a limit.

    A group's limit also applies to the groups in it, so the smallest from the root down counts. Kernel documentation:
    admin-guide/cgroup-v2.rst (`cpu.max`) and scheduler/sched-bwc.rst (`cpu.cfs_quota_us`).

    Args:
        cgroups: mount point of the cgroup file system.
        own: file that names the cgroups of this process, in the form of `/proc/self/cgroup`.

    """
    found = [quota for folder in _folders(cgroups, own) if (quota := _quota_of(folder)) is not None]
    return min(found, default=None)


def available_memory(cgroups: Path = _CGROUPS, own: Path = _OWN, meminfo: Path = Path("/proc/meminfo")) -> int:
    """Bytes that a new program may take: what the kernel calls available, or less where a container's limit says so.

    Args:
        cgroups: where the cgroup file system is mounted.
        own: the file that says which cgroups this process is in, as `/proc/self/cgroup`.
        meminfo: the kernel's account of the memory.

    """
    lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
    available = int(lines["MemAvailable"].split()[0]) << 10
    left = [limit - used for folder in _folders(cgroups, own) for limit, used in _memory_of(folder)]
    return max(0, min([available, *left]))


def _memory_of(folder: Path) -> Iterator[tuple[int, int]]:
    """Yield (limit, use) of a group's memory in bytes; nothing without a limit. The page cache counts as used."""
    for limit, used in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
        try:
            yield int((folder / limit).read_text()), int((folder / used).read_text())
        except (OSError, ValueError):  # not there, or "max"
            continue


def _folders(cgroups: Path, own: Path) -> Iterator[Path]:
    """Yield the folders with this process's limits on CPU time, and those above them."""
    # In a container the mount's root is the process's own group, whatever path the file names.
    roots = {"": cgroups, "cpu": cgroups / "cpu", "cpu,cpuacct": cgroups / "cpu,cpuacct"}
    yield from roots.values()
    try:
        lines = own.read_text().splitlines()
    except (OSError, ValueError):
        return
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and "cpu" not in controllers.split(","):
            continue
        parts = [part for part in path.split("/") if part]
        if ".." in parts:  # a group outside this container's view
            continue
        for root in {roots.get(controllers, cgroups / controllers), *((roots["cpu"],) if controllers else ())}:
            for depth in range(1, len(parts) + 1):
                yield root.joinpath(*parts[:depth])


def _quota_of(folder: Path) -> float | None:
    try:
        limit, period = (folder / "cpu.max").read_text().split()
        return None if limit == "max" else _share(int(limit), int(period))
    except (OSError, ValueError):
        pass
    try:
        return _share(int((folder / "cpu.cfs_quota_us").read_text()), int((folder / "cpu.cfs_period_us").read_text()))
    except (OSError, ValueError):
        return None


def _share(limit: int, period: int) -> float | None:
    return limit / period if limit > 0 and period > 0 else None  # in v1, -1 means no limit
