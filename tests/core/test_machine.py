"""What a machine and a container allow, read from files as Linux writes them."""

from __future__ import annotations

from pathlib import Path

import pytest

from paceline.core import machine

GIB = 2**30


def lay(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


PLAIN = {
    "proc/meminfo": f"MemTotal:       {64 * 2**20} kB\nMemFree: 1 kB\nMemAvailable:   {48 * 2**20} kB\n",
    "proc/cpuinfo": "processor\t: 0\nmodel name\t: Some CPU\nflags\t\t: fpu avx2 avx512f avx512_bf16 amx_int8\n",
    "proc/self/cgroup": "0::/box/inner\n",
    "sys/kernel/mm/transparent_hugepage/enabled": "always [madvise] never\n",
}


def test_a_machine_without_limits(tmp_path):
    root = lay(tmp_path, PLAIN)
    assert machine.memory(root) == machine.Memory(64 * GIB, 48 * GIB, None)
    assert machine.cpu_quota(root) is None
    assert machine.usable_cores(root) == machine.num_cores() >= 1
    assert machine.cpu_model(root) == "Some CPU"
    assert machine.instruction_sets(root) == ["AVX2", "AVX-512", "AVX-512 BF16", "AMX INT8"]
    assert machine.huge_pages(root) == "madvise"


def test_an_arm_machine(tmp_path):
    root = lay(tmp_path, {"proc/cpuinfo": "Features\t: fp asimd asimddp bf16 i8mm\n"})
    assert machine.instruction_sets(root) == ["NEON", "NEON BF16", "NEON dot product", "NEON INT8 matrix"]


LIMITED = {
    "version 2": {
        "sys/fs/cgroup/box/memory.max": str(4 * GIB),
        "sys/fs/cgroup/box/memory.current": str(3 * GIB),
        "sys/fs/cgroup/box/memory.stat": f"anon 5\ninactive_file {2 * GIB}\n",
        "sys/fs/cgroup/box/inner/memory.max": "max",
        "sys/fs/cgroup/box/inner/memory.current": "7",
        "sys/fs/cgroup/box/inner/cpu.max": "max 100000",
        "sys/fs/cgroup/box/cpu.max": "150000 100000",
    },
    "version 2, path of the host": {
        "proc/self/cgroup": "0::/elsewhere/on/the/host\n",
        "sys/fs/cgroup/memory.max": str(4 * GIB),
        "sys/fs/cgroup/memory.current": str(3 * GIB),
        "sys/fs/cgroup/memory.stat": f"inactive_file {2 * GIB}\n",
        "sys/fs/cgroup/cpu.max": "150000 100000",
    },
    "version 1": {
        "proc/self/cgroup": "4:memory:/box\n3:cpu,cpuacct:/box\n2:pids:/\n",
        "sys/fs/cgroup/memory/box/memory.limit_in_bytes": str(4 * GIB),
        "sys/fs/cgroup/memory/box/memory.usage_in_bytes": str(3 * GIB),
        "sys/fs/cgroup/memory/box/memory.stat": f"inactive_file 1\ntotal_inactive_file {2 * GIB}\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
        "sys/fs/cgroup/memory/memory.usage_in_bytes": "5",
        "sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_quota_us": "150000",
        "sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_period_us": "100000",
        "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1",
    },
    "version 1, mounted by other names": {
        "proc/self/cgroup": "5:name=systemd:/box\n4:memory:/box\n3:cpuacct,cpu:/box\n0::/\n",
        "sys/fs/cgroup/memory/box/memory.limit_in_bytes": str(4 * GIB),
        "sys/fs/cgroup/memory/box/memory.usage_in_bytes": str(3 * GIB),
        "sys/fs/cgroup/memory/box/memory.stat": f"total_inactive_file {2 * GIB}\n",
        "sys/fs/cgroup/cpu/box/cpu.cfs_quota_us": "150000",
        "sys/fs/cgroup/cpu/box/cpu.cfs_period_us": "100000",
    },
}


@pytest.mark.parametrize("name", LIMITED)
def test_a_container_is_believed(tmp_path, name, monkeypatch):
    monkeypatch.setattr(machine, "num_cores", lambda: 32)
    root = lay(tmp_path, PLAIN | LIMITED[name])
    assert machine.memory(root) == machine.Memory(64 * GIB, 3 * GIB, 4 * GIB)
    assert machine.cpu_quota(root) == 1.5
    assert machine.usable_cores(root) == 2


@pytest.mark.parametrize(("limit", "cores"), [("10000 100000", 1), ("100000 100000", 1), ("250000 50000", 4)])
def test_cores_that_can_be_used(tmp_path, limit, cores, monkeypatch):
    """At least one, and no more than the process may run on."""
    monkeypatch.setattr(machine, "num_cores", lambda: 4)
    assert machine.usable_cores(lay(tmp_path, PLAIN | {"sys/fs/cgroup/box/cpu.max": limit})) == cores


def test_nothing_is_known_of_an_empty_tree(tmp_path):
    assert machine.memory(tmp_path) == machine.Memory(None, machine.GUESSED_BYTES, None)
    assert machine.instruction_sets(tmp_path) == []
    assert machine.huge_pages(tmp_path) is None


def test_this_machine_has_memory_and_cores():
    assert machine.memory().available > 0
    assert machine.usable_cores() >= 1
