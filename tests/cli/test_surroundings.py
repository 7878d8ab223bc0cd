"""Odd surroundings: a command works, or ends with two lines; never with a traceback."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys

import httpx
import pytest

from paceline.cli.loopback import free_port
from paceline.server.naming import served_name
from tests.cli.conftest import model_arguments, root
from tests.support.waiting import wait_for

COMMAND = f'"{sys.executable}" -m paceline.cli.main'
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits and streams as Linux has them")


def shell(line: str, text: bytes = b"", **variables: str) -> subprocess.CompletedProcess[bytes]:
    environment = os.environ | {"PYTHONPATH": str(root()), "OMP_NUM_THREADS": "1"} | variables
    return subprocess.run(
        ["bash", "-c", line], input=text, capture_output=True, env=environment, check=False, timeout=200
    )


def refused(done: subprocess.CompletedProcess[bytes], word: str) -> None:
    assert done.returncode == 2, done.stderr
    cause, fix = done.stderr.decode().rstrip("\n").split("\n")
    assert word in cause
    assert cause.startswith("error: ")
    assert fix


def test_letters_without_an_encoding(pair) -> None:
    line = f'{COMMAND} generate {pair[0]} --prompt "héllo" --max-tokens 4'
    found = json.loads(shell(f"{line} --json", **ASCII).stdout)
    assert found["prompt"] == "héllo"
    assert found == json.loads(shell(f"{line} --json").stdout) | {"metrics": found["metrics"]}
    piped = shell(f"{COMMAND} generate {pair[0]} --max-tokens 4 --json", "héllo".encode(), **ASCII)
    assert json.loads(piped.stdout)["text"] == found["text"]
    printed = shell(f'{COMMAND} generate {pair[0]} --prompt "héllo" --max-tokens 40 --temperature 3 --seed 1', **ASCII)
    assert (printed.returncode, printed.stderr) == (0, b"")
    assert printed.stdout.isascii()


def test_input_that_is_no_text(pair) -> None:
    refused(shell(f"{COMMAND} generate {pair[0]}", b"\xff\xfe"), "0xff")
    refused(shell(f"{COMMAND} generate {pair[0]}", b"\xff\xfe", **ASCII), "0xff")


@pytest.mark.parametrize("command", ["models", "config show", "generate --prompt x", "chat", "doctor", "serve"])
def test_a_working_directory_that_is_gone(command, tmp_path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    refused(shell(f'cd "{gone}"; rmdir "{gone}"; {COMMAND} {command}'), "working directory")


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize("command", ["config init -", "generate {0} --prompt x --max-tokens 2", "chat {0}"])
def test_closed_streams(closed, command, pair) -> None:
    done = shell(f"{COMMAND} {command.format(pair[0])} {closed}")
    assert done.returncode == 0
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("closed", [[0, 1, 2], [2], [0, 1]])
def test_a_service_without_streams(closed, pair) -> None:
    """Its engine's process must have some too."""
    port = free_port()
    line = f"exec {COMMAND} serve --port {port} {shlex.join(model_arguments(pair))} " + " ".join(
        f"{number}{'<' if number == 0 else '>'}&-" for number in closed
    )
    environment = os.environ | {"PYTHONPATH": str(root()), "OMP_NUM_THREADS": "1"}
    serve = subprocess.Popen(
        ["bash", "-c", line], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment
    )
    try:
        wait_for(lambda: serve.poll() is not None or answers_200(port), 120)
        assert serve.poll() is None
    finally:
        serve.terminate()
        assert serve.wait(60) == 0


def answers_200(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/ready", trust_env=False, timeout=10).status_code == 200
    except httpx.HTTPError:
        return False


@pytest.mark.parametrize("command", ["latency", "throughput"])
def test_a_benchmark_takes_no_pipe_or_device_for_its_record(command, pair, tmp_path) -> None:
    """It would read one for ever, or put a file in the place of /dev/null."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for place in (pipe, "/dev/full"):
        quick = "--input-lens 4 --output-lens 2 --pairs 1 --warmup 0 --threads 1"
        done = shell(f"{COMMAND} bench {command} {shlex.join(model_arguments(pair))} {quick} --raw {place}")
        assert done.returncode == 2
        assert b"is not a regular file" in done.stderr
        assert b"Traceback" not in done.stderr
    assert pipe.is_fifo()


@pytest.mark.parametrize("command", ["--version", "--help", "config show", "generate {0} --prompt x --max-tokens 2"])
def test_a_full_device(command, pair) -> None:
    refused(shell(f"{COMMAND} {command.format(pair[0])} >/dev/full"), "No space left")
    assert shell(f"{COMMAND} {command.format(pair[0])} >/dev/full 2>/dev/full").returncode == 2


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_device_for_both_streams(unbuffered) -> None:
    """What a stream does not take fails when it is written, or when it is flushed."""
    assert shell(f"PYTHONUNBUFFERED={unbuffered} {COMMAND} --version >/dev/full 2>/dev/full").returncode == 2


@pytest.mark.parametrize("kilobytes", [250_000, 700_000])
def test_a_limit_on_memory(kilobytes) -> None:
    refused(shell(f"ulimit -v {kilobytes}; {COMMAND} generate --prompt x --max-tokens 2"), "memory")


def test_the_library_in_a_directory_that_is_gone(tmp_path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    program = "from paceline import ConfigError, LLM"
    found = shell(f'cd "{gone}"; rmdir "{gone}"; "{sys.executable}" -c "{program}"')
    assert found.returncode == 1
    assert b"ConfigError: the working directory cannot be used" in found.stderr


def test_no_temporary_directory_and_no_compiler_are_needed(pair) -> None:
    code = (
        "import sys; from paceline import LLM, SamplingParams; llm = LLM(sys.argv[1], device='cpu');"
        "llm.generate([[5]], SamplingParams(max_tokens=2));"
        "print([name for name in ('torch._inductor', 'torch._dynamo', 'sympy') if name in sys.modules])"
    )
    done = shell(f'"{sys.executable}" -c "{code}" {pair[0]}', TMPDIR="/nowhere")
    assert (done.stdout.strip(), done.returncode) == (b"[]", 0), done.stderr


def test_a_directory_is_served_under_its_name(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = tmp_path / "my-model" / "inner"
    inner.mkdir(parents=True)
    monkeypatch.chdir(inner.parent)
    names = [".", "./", "./inner/..", "inner/", "./inner", str(inner), "owner/name", "name"]
    expected = ["my-model", "my-model", "my-model", "inner", "inner", "inner", "owner/name", "name"]
    assert [served_name(name) for name in names] == expected
    monkeypatch.chdir(inner)
    assert served_name("..") == "my-model"
    assert served_name("/")
