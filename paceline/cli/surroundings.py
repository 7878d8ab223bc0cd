"""Knows what a command may count on where it runs: streams, letters, a directory; and tells what the system refused."""

from __future__ import annotations

import codecs
import errno
import os
import sys
from contextlib import suppress

from paceline.core.errors import PacelineError

FIXES = {
    errno.ENOSPC: "Free some space, or write elsewhere.",
    errno.EDQUOT: "Free some space, or write elsewhere.",
    errno.EMFILE: "Raise the limit on open files: ulimit -n 1024",
    errno.ENFILE: "Close other programs: the whole system has no files left.",
    errno.ENOMEM: "Raise the limit on memory (ulimit -v), or free some.",
    errno.EROFS: "Write elsewhere: this file system is read-only.",
    errno.EAGAIN: "Raise the limit on processes (ulimit -u), or end some.",
}
OUT_OF_MEMORY = (
    "allocate memory",
    "failed to map segment",
    "unable to mmap",
    "out of memory",
    "bad_alloc",
    "new thread",
    "Resource temporarily unavailable",
)
"""By which libraries' errors are known that come of too little memory, or of a limit on it."""
UNKNOWING = ("ascii", "utf-8")
"""ASCII is what a system says that knows nothing of letters; UTF-8 contains it."""


def open_streams() -> None:
    """Gives streams that were closed somewhere to go, and the others a way to write every letter.

    What a command opens would get the number of a closed one, and be written to by whoever means that stream.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            with suppress(OSError):
                # Gets the lowest number that is free, which is this one; processes started later have it too.
                os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
        if getattr(sys, name) is None:
            mode = "r" if name == "stdin" else "w"
            with suppress(OSError):
                setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115 (stays open)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")
    encoding = getattr(sys.stdin, "encoding", None)
    if encoding is not None and hasattr(sys.stdin, "reconfigure") and codecs.lookup(encoding).name in UNKNOWING:
        sys.stdin.reconfigure(encoding="utf-8", errors="strict")


def as_typed(text: str) -> str:
    """A text of the command line, also where the system's encoding lacks its letters."""
    try:
        return os.fsencode(text).decode("utf-8")
    except UnicodeError:
        return text


def refusal_of(error: BaseException) -> PacelineError | None:
    """What the system refused, as cause and fix; None: it was not the system."""
    if isinstance(error, OSError) and error.errno is not None:
        place = f": {error.filename}" if error.filename is not None else ""
        fix = FIXES.get(error.errno, "Check the place, its permissions and the limits of this process (ulimit -a).")
        return PacelineError(f"the system says: {error.strerror or error}{place}\n{fix}")
    text = str(error).strip().split("\n")[0]
    if isinstance(error, MemoryError) or any(words in text for words in OUT_OF_MEMORY):
        return PacelineError(f"memory is short ({text or type(error).__name__})\n{FIXES[errno.ENOMEM]}")
    if isinstance(error, UnicodeDecodeError):
        return PacelineError(
            f"the input is not text in {error.encoding} (byte {error.object[error.start]:#x} at {error.start})\n"
            "Give text in UTF-8, and set LC_ALL=C.UTF-8 or PYTHONUTF8=1."
        )
    return None


def end_streams() -> OSError | None:
    """Writes out what is left, and returns what kept it from being written; nothing is tried again after that."""
    failed = None
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError) as error:
            failed = failed or (error if isinstance(error, OSError) else None)
            with suppress(OSError, ValueError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, stream.fileno())
                os.close(nowhere)
    return failed
