"""Knows how a peer gets a virtual environment of its own, made once and reused while its requirements are the same."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from paceline.benchmark.peers.catalogue import Peer
from paceline.benchmark.peers.process import PeerError

INSTALL_SECONDS = 3600


def environment_python(directory: Path, peer: Peer) -> Path:
    """The Python of the peer's environment in ``directory``, made and filled if it is not there yet.

    An environment made by hand is used if it lies at ``Peer.place()`` and holds an empty file ``complete``.

    Raises:
        PeerError: it could not be made, or a requirement could not be installed; pip's own last line is the reason.
    """
    place = directory / peer.place()
    python = place / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    complete = place / "complete"
    if not complete.exists():
        _run([sys.executable, "-m", "venv", "--clear", str(place)])
        _run([str(python), "-m", "pip", "install", "--quiet", *peer.requirements])
        if peer.unwanted:
            _run([str(python), "-m", "pip", "uninstall", "--quiet", "--yes", *peer.unwanted])
        complete.touch()
    return python


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(  # noqa: S603 (our own commands, without a shell)
            command, capture_output=True, text=True, check=False, timeout=INSTALL_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PeerError(f"its environment could not be made: {error}") from None
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines() or ["no reason was given"]
        raise PeerError(f"its environment could not be made: {said[-1]}")
