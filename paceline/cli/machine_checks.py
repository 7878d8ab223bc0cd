"""Knows what can be wrong with a machine, and what to do about it."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from pathlib import Path

from paceline.cli.check import BROKEN, OK, WARNING, Check
from paceline.core import machine

GIB = 2**30
LITTLE_DISK, LITTLE_MEMORY = 2 * GIB, GIB
DRIVER = Path("/proc/driver/nvidia/version")


def check_python() -> Check:
    found = platform.python_version()
    old = sys.version_info < (3, 11)
    return Check(
        "python",
        BROKEN if old else OK,
        f"{found} on {platform.platform()}",
        "Use Python 3.11 or newer." if old else None,
        {"version": found, "platform": platform.platform(), "executable": sys.executable},
    )


def check_torch() -> Check:
    import torch

    from paceline.engine.threads import num_threads

    threads, cores = num_threads(), machine.usable_cores()
    capability = torch.backends.cpu.get_cpu_capability()
    many = threads > cores
    warning = f", more than the {cores} that can run at once: they wait for each other" if many else ""
    return Check(
        "torch",
        WARNING if many else OK,
        f"{torch.__version__}, built for {capability}, {threads} threads{warning}",
        f"Set OMP_NUM_THREADS={cores}." if many else None,
        {
            "version": torch.__version__,
            "cuda": torch.version.cuda,
            "cpu_capability": capability,
            "mkl": torch.backends.mkl.is_available(),
            "num_threads": threads,
            "num_interop_threads": torch.get_num_interop_threads(),
        },
    )


def check_cpu() -> Check:
    sets, cores, quota = machine.instruction_sets(), machine.num_cores(), machine.cpu_quota()
    slow = machine.ROOT.joinpath("proc/cpuinfo").is_file() and not {"AVX2", "NEON"} & set(sets)
    limit = "" if quota is None else f", limited to the time of {quota:g}"
    return Check(
        "cpu",
        WARNING if slow else OK,
        f"{machine.cpu_model()}, {cores} cores{limit}; {', '.join(sets) or 'no vector instructions known'}",
        "Use a machine with AVX2: without it matrix products are many times slower." if slow else None,
        {"model": machine.cpu_model(), "num_cores": cores, "quota": quota, "instruction_sets": sets},
    )


def check_kernels() -> Check:
    from paceline.kernels.native import library

    absence, levels = library.reason(), library.levels()
    facts = {"level": library.level(), "levels": levels}
    if absence is not None:
        return Check("kernels", WARNING, f"torch alone, several times slower: {absence.cause}", absence.fix, facts)
    return Check("kernels", OK, f"native, {library.level()}", facts=facts)


def check_memory() -> Check:
    found, pages = machine.memory(), machine.huge_pages()
    little = found.available < LITTLE_MEMORY
    limit = "" if found.limit is None else f" of the container's {found.limit / GIB:.1f} GiB"
    return Check(
        "memory",
        WARNING if little else OK,
        f"{found.available / GIB:.1f} GiB can be had{limit}; huge pages: {pages or 'unknown'}",
        "Free memory: models and the K/V cache will hardly fit." if little else None,
        {"total": found.total, "available": found.available, "limit": found.limit, "huge_pages": pages},
    )


def check_gpu() -> Check:
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        free = [torch.cuda.mem_get_info(index)[0] for index in range(len(names))]
        texts = [f"{name}, {bytes_ / GIB:.1f} GiB can be had" for name, bytes_ in zip(names, free, strict=True)]
        return Check("gpu", OK, "; ".join(texts), facts={"gpus": names, "free_bytes": free})
    if DRIVER.exists() or shutil.which("nvidia-smi"):
        built = torch.version.cuda is not None
        fix = "See nvidia-smi: is the driver too old, the GPU given to another?" if built else "Install torch for CUDA."
        return Check("gpu", WARNING, "there is an NVIDIA driver, but torch sees no GPU", fix, {"gpus": []})
    return Check("gpu", OK, "none; the CPU does the work", facts={"gpus": []})


def check_disk() -> Check:
    from huggingface_hub.constants import HF_HUB_CACHE

    cache = Path(HF_HUB_CACHE)
    existing = next(path for path in (cache, *cache.parents) if path.exists())
    free, writable = shutil.disk_usage(existing).free, os.access(existing, os.W_OK)
    fine = writable and free >= LITTLE_DISK
    return Check(
        "disk",
        OK if fine else WARNING,
        f"{free / GIB:.1f} GiB free for models in {cache}" + ("" if writable else ", which cannot be written"),
        None if fine else "Set HF_HOME to a directory with room that this user can write, or give local directories.",
        {"cache": str(cache), "free_bytes": free, "writable": writable},
    )
