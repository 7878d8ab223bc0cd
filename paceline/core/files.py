"""Knows whether a file of a model is really there, not what a download left in its place, and how long it may be."""

from __future__ import annotations

import re
from pathlib import Path

from paceline.core.errors import CheckpointError

POINTERS = (b"version https://git-lfs.github.com/spec/", b"version https://hawser.github.com/spec/")
"""How what Git LFS leaves begins: three lines with the version, the hash and the size of what was not fetched."""
POINTER_BYTES = 1024
"""A pointer is shorter, says its specification."""
MOST_BYTES = 64 * 2**20
"""Of a file that is read whole; the longest published ones, indexes and tokenizers, have a third of that."""


def is_fetched(path: Path) -> bool:
    """Whether there is such a regular file.

    Raises:
        CheckpointError: only what stands for it is there: a Git LFS pointer, a link to nothing, a pipe or a device.
    """
    if path.is_symlink() and not path.exists():
        raise CheckpointError(f"{path} is a link to {path.readlink()}, which is missing\nDownload the model again.")
    if not path.is_file():
        if path.exists() and not path.is_dir():
            # A pipe or a device may never end.
            raise CheckpointError(f"{path} is a pipe, a socket or a device, not a regular file\nCopy the file there.")
        return False
    try:
        with path.open("rb") as file:
            head = file.read(POINTER_BYTES)
    except OSError:
        return True  # whoever reads it says why it cannot be read
    if head.startswith(POINTERS):
        size = re.search(rb"^size (\d{1,18})\s*$", head, re.MULTILINE)
        of = f" of {int(size[1])} bytes" if size else ""
        raise CheckpointError(
            f"{path} is a Git LFS pointer to a file{of}, which was not fetched\n"
            f"Run `git lfs pull` in {path.parent}, or download the model again."
        )
    return True


def read_whole(path: Path) -> bytes:
    """What a file of a model holds that is read into memory at once.

    Raises:
        OSError: it cannot be read.
        CheckpointError: it is longer than any such file.
    """
    with path.open("rb") as file:
        data = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        size = f"over {MOST_BYTES >> 20} MiB"
        raise CheckpointError(f"{path} has {size}, more than any such file\nDownload the model again.")
    return data
