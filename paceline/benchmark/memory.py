"""Knows how much memory a piece of work took at its peak, by part; reads the system's own counters."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@contextmanager
def peak_memory(device: torch.device) -> Iterator[dict[str, int | None]]:
    """Fills in, at its end, ``peak`` bytes and ``activations``: what the work took beyond what was held before.

    On a CPU that is the process's resident memory, on a GPU torch's allocated memory. None where it is not known.
    """
    found: dict[str, int | None] = {}
    before = _reset(device)
    try:
        yield found
    finally:
        peak = _peak(device)
        found["peak"] = peak
        found["activations"] = None if None in (peak, before) else max(0, (peak or 0) - (before or 0))


def memory_by_part(stats: Mapping[str, Any], peak: Mapping[str, int | None]) -> dict[str, int | None]:
    """Weights, K/V and drafter from ``LLM.stats()["memory_bytes"]``, and what ``peak_memory`` found; in bytes."""
    return {**stats, **{f"{name}_memory": value for name, value in peak.items()}}


def _reset(device: torch.device) -> int | None:
    """Bytes in use now; the peak counts from here."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    try:
        CLEAR.write_text("5", encoding="ascii")  # Linux: forget the highest resident size so far
    except OSError:
        return None
    return _status("VmRSS")


def _peak(device: torch.device) -> int | None:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _status("VmHWM")


def _status(name: str) -> int | None:
    try:
        found = re.search(rf"^{name}:\s+(\d+) kB$", STATUS.read_text(encoding="ascii"), re.MULTILINE)
    except OSError:
        return None
    return None if found is None else int(found[1]) * 1024
