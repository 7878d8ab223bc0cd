"""Knows on what a run was made: hardware, versions, build flags, threads, the commit; nothing of what was run."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import paceline

PACKAGES = ("torch", "numpy", "transformers", "tokenizers", "triton")
SETTINGS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "KMP_AFFINITY", "GOMP_CPU_AFFINITY", "THP_MEM_ALLOC_ENABLE")
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
ROOT = Path(paceline.__file__).resolve().parent.parent


def environment() -> dict[str, Any]:
    """Everything that must be the same for two runs' figures to be of one kind; plain JSON."""
    return {
        "hardware": hardware(),
        "software": {
            "paceline": paceline.__version__,
            "python": platform.python_version(),
            "platform": platform.platform(),
            **{name: _version(name) for name in PACKAGES},
            "torch_build": hashlib.sha256(torch.__config__.show().encode()).hexdigest()[:16],
            "torch_instructions": torch.backends.cpu.get_cpu_capability(),
        },
        "threads": {"compute": torch.get_num_threads(), "interop": torch.get_num_interop_threads()},
        "settings": {name: os.environ.get(name) for name in SETTINGS} | {"huge_pages": _huge_pages()},
        "commit": commit(ROOT),
    }


def hardware() -> dict[str, Any]:
    """CPU, cores, memory, GPUs."""
    cpu = _first(Path("/proc/cpuinfo"), r"^model name\s*: (.+)$") or platform.processor() or platform.machine()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    kilobytes = _first(Path("/proc/meminfo"), r"^MemTotal: +(\d+) kB$")
    return {
        "cpu": cpu,
        "cpu_flags": _relevant_flags(),
        "num_cores": cores,
        "memory_bytes": None if kilobytes is None else int(kilobytes) * 1024,
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
    }


def describe(record: dict[str, Any]) -> str:
    """One line for tables and plots."""
    machine, software = record["hardware"], record["software"]
    where = ", ".join(machine["gpus"]) or f"{machine['cpu']}, {machine['num_cores']} cores"
    return (
        f"{where}; {record['threads']['compute']} threads; torch {software['torch']}, paceline {software['paceline']}"
    )


def commit(directory: Path) -> dict[str, Any] | None:
    """The commit of a git checkout, and a digest of what was changed since; None elsewhere."""
    git = shutil.which("git")
    if git is None or not (directory / ".git").exists():
        return None

    def ask(*arguments: str) -> str:
        command = [git, "-C", str(directory), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout  # noqa: S603

    try:
        changes = ask("diff", "HEAD", "--", "*.py", "*.cpp", "*.toml")
        digest = hashlib.sha256(changes.encode()).hexdigest()[:16] if changes.strip() else None
        return {"id": ask("rev-parse", "HEAD").strip(), "changes": digest}
    except (OSError, subprocess.SubprocessError):
        return None


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _first(path: Path, pattern: str) -> str | None:
    try:
        found = re.search(pattern, path.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
    except OSError:
        return None
    return None if found is None else found[1].strip()


def _relevant_flags() -> list[str]:
    flags = (_first(Path("/proc/cpuinfo"), r"^flags\s*: (.+)$") or "").split()
    return [flag for flag in flags if re.match(r"avx|amx|fma", flag)]


def _huge_pages() -> str | None:
    return _first(HUGE_PAGES, r"\[(\w+)\]")
