"""Decides how many threads compute: torch's, which native kernels use as many of."""

from __future__ import annotations

import os

import torch

from paceline.core import machine

VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
"""Who sets one of them is believed."""


def num_threads() -> int:
    """As many as torch has, but no more than the process may run on and has the time of.

    Threads meet after every op. Where a container has less time than threads, the one that is kept from running keeps
    the others waiting, and the waiting takes of the same time.
    """
    threads = torch.get_num_threads()
    if any(os.environ.get(name) for name in VARIABLES):
        return threads
    return min(threads, machine.usable_cores(machine.ROOT))


def limit_threads() -> None:
    """Has torch use ``num_threads``."""
    wanted = num_threads()
    if wanted != torch.get_num_threads():
        torch.set_num_threads(wanted)


def choose_threads(count: int) -> None:
    """Has torch use ``count``, and engines that are built after leave it at that."""
    os.environ[VARIABLES[0]] = str(count)
    torch.set_num_threads(count)
