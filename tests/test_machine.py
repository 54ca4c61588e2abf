"""CPUs under a container's quota: folders as the two kinds of cgroups lay them out, given by path."""

import os

import pytest

from univip_stream import machine
from univip_stream.machine import cpu_quota, usable_cpus


@pytest.fixture
def group(tmp_path):
    """Files of a cgroup file system, and of what `/proc/self/cgroup` says; returns both places."""

    def made(files, own="0::/\n"):
        for name, text in files.items():
            path = tmp_path / "cgroup" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        (tmp_path / "own").write_text(own)
        return tmp_path / "cgroup", tmp_path / "own"

    return made


@pytest.mark.parametrize(
    ("files", "own", "quota"),
    [
        ({"cpu.max": "50000 100000\n"}, "0::/\n", 0.5),  # docker --cpus 0.5, cgroup v2
        ({"cpu.max": "max 100000\n"}, "0::/\n", None),
        # systemd: a slice allows three CPUs, and the service in it does not say.
        ({"a.slice/cpu.max": "300000 100000\n", "a.slice/b.service/cpu.max": "max 100000\n"}, "0::/a.slice/b.service\n", 3),
        # The tighter of two limits, wherever it stands.
        ({"cpu.max": "200000 100000\n", "job/cpu.max": "400000 100000\n"}, "0::/job\n", 2),
        # cgroup v1, in a container (its path is the host's) and on a host.
        ({"cpu/cpu.cfs_quota_us": "150000\n", "cpu/cpu.cfs_period_us": "100000\n"}, "4:cpu,cpuacct:/docker/12ab\n", 1.5),
        ({"cpu,cpuacct/cpu.cfs_quota_us": "-1\n", "cpu,cpuacct/cpu.cfs_period_us": "100000\n"}, "4:cpu,cpuacct:/\n", None),
        (
            {"cpu,cpuacct/slurm/job_1/cpu.cfs_quota_us": "80000", "cpu,cpuacct/slurm/job_1/cpu.cfs_period_us": "20000"},
            "5:memory:/elsewhere\n4:cpu,cpuacct:/slurm/job_1\n",
            4,
        ),
        ({"cpu.max": "words\n"}, "no line of it\n", None),
        ({}, "0::/../..\n", None),
    ],
)
def test_a_quota_is_read_as_either_kind_of_cgroup_says_it(files, own, quota, group):
    assert cpu_quota(*group(files, own)) == quota


def test_nothing_there_is_no_quota(tmp_path):
    assert cpu_quota(tmp_path / "none", tmp_path / "none") is None
    assert usable_cpus(tmp_path / "none", tmp_path / "none") == len(os.sched_getaffinity(0))


@pytest.mark.parametrize(("limit", "cpus"), [(50_000, 1), (199_999, 1), (250_000, 2), (10**9, 8)])
def test_work_is_spread_over_whole_cpus_of_the_quota(limit, cpus, group, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))
    assert usable_cpus(*group({"cpu.max": f"{limit} 100000"})) == cpus


def test_every_default_that_counts_cpus_asks_here(monkeypatch):
    """Ray's start is looked at as it is asked for: a Ray of eight CPUs is nothing to start on two."""
    from univip_stream.api import judging
    from univip_stream.mining import runner
    from univip_stream.report import doctor

    for module in (machine, doctor):
        monkeypatch.setattr(module, "cpu_quota", lambda *places: 3.5)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))

    class AskedError(Exception):
        pass

    def asked(ray, address, **settings):
        raise AskedError(settings["num_cpus"])

    monkeypatch.setattr(runner, "attached", asked)
    with pytest.raises(AskedError, match=r"^3$"):
        list(runner.run(len, [()], runner.Compute(), lambda done: None))
    assert judging.reading_workers(None) == 2
    [cpus] = [finding for finding in doctor._machine(doctor.Path()) if finding.what == "CPUs"]
    assert cpus.state == "note"
    assert "3.5" in cpus.found
