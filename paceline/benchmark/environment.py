"""Knows on what a run was made: hardware, versions, build flags, threads, the commit; nothing of what was run."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import paceline
from paceline.core import machine
from paceline.kernels.native import library

PACKAGES = ("torch", "numpy", "transformers", "tokenizers", "triton")
SETTINGS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "KMP_AFFINITY", "GOMP_CPU_AFFINITY", "THP_MEM_ALLOC_ENABLE")
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
            "native_kernels": library.level(),
        },
        "threads": {"compute": torch.get_num_threads(), "interop": torch.get_num_interop_threads()},
        "settings": {name: os.environ.get(name) for name in SETTINGS} | {"huge_pages": machine.huge_pages()},
        "commit": commit(ROOT),
    }


def hardware() -> dict[str, Any]:
    """CPU, cores, what a container allows of them, memory, GPUs."""
    return {
        "cpu": machine.cpu_model(),
        "instruction_sets": machine.instruction_sets(),
        "num_cores": machine.num_cores(),
        "cpu_quota": machine.cpu_quota(),
        "memory_bytes": machine.memory().total,
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
    }


def describe(record: dict[str, Any]) -> str:
    """One line for tables and plots."""
    found, software = record["hardware"], record["software"]
    where = ", ".join(found["gpus"]) or f"{found['cpu']}, {found['num_cores']} cores"
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
