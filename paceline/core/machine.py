"""Knows what this machine has, and what a container leaves of it: processors, instruction sets, memory; needs no torch.

Every function reads files of Linux below ``root`` and answers less elsewhere.
"""

from __future__ import annotations

import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/")
GUESSED_BYTES = 2**32
"""Free memory where nothing tells."""
INSTRUCTION_SETS = {
    "AVX2": "avx2",
    "AVX-512": "avx512f",
    "AVX-512 BF16": "avx512_bf16",
    "AVX-512 FP16": "avx512_fp16",
    "AVX-512 VNNI": "avx512_vnni",
    "AVX VNNI": "avx_vnni",
    "AMX BF16": "amx_bf16",
    "AMX INT8": "amx_int8",
    "NEON": "asimd",
    "NEON BF16": "bf16",
    "NEON dot product": "asimddp",
    "NEON INT8 matrix": "i8mm",
    "SVE": "sve",
}
"""Name -> the kernel's word for it, of x86 and of Arm."""
_UNLIMITED = 2**60  # how version 1 of control groups writes "no limit"


@dataclass(frozen=True, slots=True)
class Memory:
    """In bytes."""

    total: int | None
    available: int
    """What could still be had, within the limit."""
    limit: int | None
    """What the container or service manager allows, if it limits at all."""


def cpu_model(root: Path = ROOT) -> str:
    return _find(root / "proc/cpuinfo", r"^model name\s*: (.+)$") or platform.processor() or platform.machine()


def instruction_sets(root: Path = ROOT) -> list[str]:
    """Those that matter for matrix products, in the order of ``INSTRUCTION_SETS``."""
    flags = set((_find(root / "proc/cpuinfo", r"^(?:flags|Features)\s*: (.+)$") or "").split())
    return [name for name, flag in INSTRUCTION_SETS.items() if flag in flags]


def num_cores() -> int:
    """Logical processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_quota(root: Path = ROOT) -> float | None:
    """Processors' worth of time that the container allows; None without a limit."""
    quotas = []
    for directory in _control_groups(root, "cpu"):
        limit, _, period = _read(directory / "cpu.max").partition(" ")
        if not limit:
            limit, period = _read(directory / "cpu.cfs_quota_us"), _read(directory / "cpu.cfs_period_us")
        if limit.isdecimal() and period.isdecimal() and int(period):
            quotas.append(int(limit) / int(period))
    return min(quotas, default=None)


def usable_cores(root: Path = ROOT) -> int:
    """How many threads can really run at once."""
    quota = cpu_quota(root)
    return num_cores() if quota is None else max(1, min(num_cores(), round(quota)))


def memory(root: Path = ROOT) -> Memory:
    """Of the machine, and of the control groups that this process is in."""
    total, available = (_kilobytes(root, name) for name in ("MemTotal", "MemAvailable"))
    if available is None and root == ROOT and "SC_AVPHYS_PAGES" in getattr(os, "sysconf_names", ()):
        available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limits = [_memory_limit(directory) for directory in _control_groups(root, "memory")]
    found = [limit for limit in limits if limit is not None]
    left = [GUESSED_BYTES if available is None else available, *(max(0, limit - used) for limit, used in found)]
    return Memory(total, min(left), min((limit for limit, _ in found), default=None))


def huge_pages(root: Path = ROOT) -> str | None:
    """Who gets transparent huge pages: "always", "madvise" or "never"."""
    return _find(root / "sys/kernel/mm/transparent_hugepage/enabled", r"\[(\w+)\]")


def _memory_limit(directory: Path) -> tuple[int, int] | None:
    """A control group's limit, and what of it is used and could not be given up, in bytes."""
    for limit_file, used_file, cache in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        limit, used = _read(directory / limit_file), _read(directory / used_file)
        if limit.isdecimal() and used.isdecimal() and int(limit) < _UNLIMITED:
            given_up = int(_find(directory / "memory.stat", rf"^{cache} (\d+)$") or 0)
            return int(limit), max(0, int(used) - given_up)
    return None


def _control_groups(root: Path, controller: str) -> list[Path]:
    """Directories of this process's groups that may limit it, inner ones first, of version 2 and 1."""
    mounted = root / "sys/fs/cgroup"
    directories = []
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        inner = Path(path.lstrip("/"))
        # Version 1 is mounted by the names of its controllers, in any order, with links by each of them. Inside a
        # container the path may be the host's, where only the root is visible.
        for base in (mounted / controllers, mounted / controller) if controllers else (mounted,):
            directories += [base / part for part in (inner, *inner.parents)]
    return list(dict.fromkeys(directories))


def _kilobytes(root: Path, name: str) -> int | None:
    found = _find(root / "proc/meminfo", rf"^{name}: +(\d+) kB$")
    return None if found is None else int(found) * 1024


def _find(path: Path, pattern: str) -> str | None:
    found = re.search(pattern, _read(path), re.MULTILINE)
    return None if found is None else found[1].strip()


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
