"""Knows how to make .venv hold torch and the package; needs nothing but Python's standard library."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
BIN = VENV / ("Scripts" if os.name == "nt" else "bin")
PYTHON = BIN / ("python.exe" if os.name == "nt" else "python")
STAMP = VENV / "paceline-setup.json"
LOG = VENV / "setup.log"
CONSTRAINTS = ROOT / "constraints.txt"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"

OLDEST = (3, 11)
CPU_GIGABYTES = 1.5
GPU_GIGABYTES = 8.0
CONTAINS = {"serve": {"serve"}, "test": {"serve", "test"}, "dev": {"serve", "test", "dev"}}
NETWORK_SIGNS = (
    "NewConnectionError",
    "Failed to establish a new connection",
    "name resolution",
    "getaddrinfo failed",
    "Network is unreachable",
    "ConnectTimeoutError",
    "ProxyError",
    "Read timed out",
)


class SetupError(Exception):
    """What went wrong, and what to do about it."""

    def __init__(self, cause: str, fix: str) -> None:
        super().__init__(f"{cause}\n{fix}")


def say(text: str) -> None:
    print(f"run.py: {text}", file=sys.stderr, flush=True)


def check_python(version: tuple[int, ...] = sys.version_info[:2]) -> None:
    if version < OLDEST:
        found, needed = (".".join(map(str, numbers)) for numbers in (version, OLDEST))
        raise SetupError(
            f"Python {found} is too old: Paceline needs {needed} or newer.",
            f"Install it and run, for example: python{needed} run.py {' '.join(sys.argv[1:])}",
        )


def check_venv_modules() -> None:
    for module in ("venv", "ensurepip"):
        if importlib.util.find_spec(module) is None:
            raise SetupError(
                f"This Python has no {module} module, so .venv cannot be created.",
                "On Debian and Ubuntu: sudo apt install python3-venv",
            )


def check_disk(needed: float) -> None:
    free = shutil.disk_usage(ROOT).free / 1e9
    if free < needed:
        raise SetupError(
            f"The disk of {ROOT} has {free:.1f} GB free; about {needed:g} GB are needed.",
            "Free some space (pip cache purge may help), then run the same command again.",
        )


def sees_gpu() -> bool:
    """Is there an NVIDIA GPU whose driver answers?"""
    try:
        return subprocess.run(["nvidia-smi", "-L"], capture_output=True, timeout=20, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def reaches_cpu_index() -> bool:
    try:
        with urllib.request.urlopen(f"{CPU_INDEX}/torch/", timeout=5) as answer:  # noqa: S310 (a constant URL)
            return bool(answer.status == 200)
    except (OSError, ValueError):
        return False


def torch_pin() -> str:
    lines = CONSTRAINTS.read_text(encoding="utf-8").split()
    return next(line for line in lines if line.startswith("torch=="))


def torch_choices(*, gpu: bool) -> list[tuple[str, list[str]]]:
    """Ways to get torch, each with what to say of it; the next is tried when one fails."""
    pin, wish = torch_pin(), os.environ.get("PACELINE_TORCH", "").strip()
    plain = (f"Installing {pin} from pip's own index", [pin])
    heavy = (f"{plain[0]}; where that has no CPU build, it is the CUDA build of several GB", [pin])
    cpu = (
        f"Installing {pin}, CPU build",
        [pin, "--index-url", CPU_INDEX, "--extra-index-url", "https://pypi.org/simple"],
    )
    if wish not in ("", "cpu", "default"):
        return [(f"Installing {wish} (PACELINE_TORCH)", [wish])]
    if wish == "cpu":
        return [cpu]
    if gpu or sys.platform == "darwin":
        return [plain]
    if wish == "default" or os.environ.get("CI"):
        return [heavy]
    if reaches_cpu_index():
        return [cpu, heavy]
    say(f"{CPU_INDEX} cannot be reached.")
    return [heavy]


def watch(process: subprocess.Popen[bytes], what: str) -> int:
    """Waits for the process, and shows that time passes."""
    began = last = time.monotonic()
    say(f"{what} ...")
    while True:
        try:
            return process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            now = time.monotonic()
            if now - last >= 20:
                last = now
                say(f"  still at it after {now - began:.0f} s")
        except BaseException:
            process.terminate()
            raise


def pip_install(what: str, arguments: list[str]) -> None:
    """Runs pip quietly, its output going to the log.

    Raises:
        SetupError: pip failed; the message says why and where the log lies.
    """
    with LOG.open("ab") as log:
        start = log.tell()
        command = [str(PYTHON), "-m", "pip", "install", "--disable-pip-version-check", *arguments]
        log.write(f"\n$ {' '.join(command)}\n".encode())
        log.flush()
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT)
        if watch(process, what) == 0:
            return
    output = LOG.read_bytes()[start:].decode(errors="replace")
    raise pip_failure(output)


def pip_failure(output: str) -> SetupError:
    """Reads the cause out of pip's output."""
    again = "then run the same command again."
    if "No space left on device" in output:
        return SetupError(f"The disk ran full while pip was installing (log: {LOG}).", f"Free some space, {again}")
    if any(sign in output for sign in NETWORK_SIGNS):
        return SetupError(
            f"pip cannot reach its package index (log: {LOG}).",
            f"Check the network and the proxy settings (HTTPS_PROXY), {again}",
        )
    errors = [line for line in output.splitlines() if line.startswith("ERROR")] or output.splitlines()[-1:] or ["-"]
    return SetupError(f"pip failed: {errors[-1]} (log: {LOG})", f"Read the log's last lines; delete {VENV}, {again}")


def install_torch(*, gpu: bool) -> None:
    choices = torch_choices(gpu=gpu)
    for number, (what, arguments) in enumerate(choices, 1):
        try:
            pip_install(what, arguments)
            return
        except SetupError as error:
            if number == len(choices):
                raise
            say(f"that did not work: {str(error).splitlines()[0]}")


def create_venv() -> None:
    """Makes .venv, unless there is one that works."""
    probe = f"import sys, pip; sys.exit(sys.version_info < {OLDEST})"
    if PYTHON.exists():
        tried = subprocess.run([str(PYTHON), "-c", probe], capture_output=True, check=False)
        if tried.returncode == 0:
            return
    check_venv_modules()
    say(f"Creating {VENV} with Python {'.'.join(map(str, sys.version_info[:3]))}")
    command = [sys.executable, "-m", "venv", "--clear", str(VENV)]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    if made.returncode != 0:
        cause = (made.stderr or made.stdout).strip().splitlines() or ["no output"]
        raise SetupError(f".venv could not be created: {cause[-1]}", f"Try it by hand: {' '.join(command)}")


def digest() -> str:
    """Changes when the packages have to be installed again."""
    sources = sorted((ROOT / "paceline" / "kernels" / "native" / "csrc").iterdir())
    files = [*(ROOT / name for name in ("pyproject.toml", CONSTRAINTS.name, "setup.py")), *sources]
    parts = [str(ROOT).encode(), *(file.read_bytes() for file in files)]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def installed_extras() -> set[str]:
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        stamp = json.loads(STAMP.read_text(encoding="utf-8"))
        if stamp["digest"] == digest() and PYTHON.exists():
            return set(stamp["extras"])
    return set()


def prepare(extra: str) -> None:
    """Makes .venv hold torch and the package with the extra; does nothing when it already does."""
    if extra in installed_extras():
        return
    gpu = sees_gpu()
    if not STAMP.exists():
        check_disk(GPU_GIGABYTES if gpu else CPU_GIGABYTES)
    with locked():
        installed = installed_extras()
        if extra in installed:
            return
        create_venv()
        if not installed:
            install_torch(gpu=gpu)
        pip_install(f"Installing paceline[{extra}]", ["-e", f".[{extra}]", "-c", str(CONSTRAINTS)])
        stamp = {"digest": digest(), "extras": sorted(installed | CONTAINS[extra])}
        STAMP.write_text(json.dumps(stamp), encoding="utf-8")
    say(f"{VENV} is ready")


@contextlib.contextmanager
def locked():  # noqa: ANN201 (a generator type needs an import that Python 3.8 lacks)
    """Lets one run at a time install."""
    if fcntl is None:
        yield
        return
    with (ROOT / ".venv.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
