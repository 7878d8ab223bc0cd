"""``paceline serve`` as a process: what it says, and that it answers and ends."""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import sys
import time

import httpx

from paceline.cli.loopback import free_port, running_service
from tests.cli.conftest import model_arguments, root


def started(*arguments: str, **variables: str) -> tuple[subprocess.Popen[str], list[str]]:
    """A service and the lines that it printed until it showed how to call it."""
    command = [sys.executable, "-u", "-m", "paceline.cli.main", "serve", *arguments, "--port", "0"]
    serve = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=root(),
        env=os.environ | variables,
    )
    assert serve.stdout is not None
    lines = []
    for line in serve.stdout:
        lines.append(line.rstrip("\n"))
        if "curl" in line:
            break
    return serve, lines


def carry_out(line: str) -> httpx.Response:
    """What curl would do with these arguments."""
    url, *options = shlex.split(line)
    headers = dict(options[at + 1].split(": ") for at, option in enumerate(options) if option == "-H")
    body = options[options.index("-d") + 1]
    with httpx.Client(trust_env=False, timeout=60) as client:
        return client.post(url, headers=headers, content=body).raise_for_status()


def test_it_says_where_and_how_it_serves(pair, tmp_path):
    file = tmp_path / "service.toml"
    file.write_text("[engine]\nblock_size = 8\n")
    variables = {"PACELINE_API_KEY": "open-sesame", "PACELINE_MAX_NUM_SEQS": "3"}
    serve, lines = started(*model_arguments(pair), "--config", str(file), "--num-blocks", "99", **variables)
    try:
        answer = carry_out(lines[-1].partition("curl ")[2].replace("$PACELINE_API_KEY", variables["PACELINE_API_KEY"]))
    finally:
        serve.terminate()
        out, errors = serve.communicate(timeout=60)
    assert answer.json()["text"]
    said = "\n".join(lines)
    for part in (
        "http://127.0.0.1:",
        "hosts        localhost, 127.0.0.1, [::1]; others by --allowed-hosts host.docker.internal",
        "float32 on cpu, ",
        "256 tokens",
        "float32, 99 pages of 8 tokens, paged",
        "draft_model, 4 draft tokens per step, verified by match",
        "fcfs, up to 3 sequences at once",
        f"{file}, ",
        "PACELINE_MAX_NUM_SEQS",
        "--num-blocks",
    ):
        assert part in said
    assert "\x1b" not in said + errors
    assert "sesame" not in said + errors + out


def test_a_service_draws_its_seed_and_says_it(pair):
    """Calls without a seed of one that starts anew say other things; with the seed that was said, the same."""
    texts, seeds = [], []
    for more in ((), (), None):
        given = ("--seed", seeds[0]) if more is None else more
        serve, lines = started(*model_arguments(pair), "--served-model-name", "mine", *given)
        try:
            url = lines[-1].partition("curl ")[2].partition("/chat")[0]
            body = {"message": "hello", "temperature": 5.0, "max_tokens": 16, "ignore_eos": True, "model": "mine"}
            texts.append(httpx.post(f"{url}/chat", json=body, trust_env=False, timeout=60).json()["token_ids"])
        finally:
            serve.terminate()
            serve.communicate(timeout=60)
        assert "serves mine at" in lines[0]
        seeds += [line.split()[1].rstrip(",") for line in lines if line.split()[0] == "seed"]
    assert len(seeds) == 2
    assert texts[0] != texts[1]
    assert texts[0] == texts[2]


def test_quiet_says_nothing(pair):
    port = free_port()
    command = [sys.executable, "-m", "paceline.cli.main", "serve", pair[0], "--quiet", "--log-level", "error"]
    with subprocess.Popen(
        [*command, "--port", str(port)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=root()
    ) as serve:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
            while serve.poll() is None:
                with contextlib.suppress(httpx.TransportError):
                    if client.get("/health").status_code == 200:
                        break
                time.sleep(0.1)
        serve.terminate()
        out, errors = serve.communicate(timeout=60)
    assert (serve.returncode, out, errors) == (0, b"", b"")


def test_engine_arguments_reach_the_service(pair):
    with running_service([pair[0], "--max-model-len", "64"]) as client:
        assert client.get("/v1/models").json()["data"][0]["max_model_len"] == 64
        url = str(client.base_url)
    with httpx.Client(trust_env=False) as late:
        try:
            late.get(f"{url}/health")
        except httpx.TransportError:
            return
    raise AssertionError("the service still answers")


def test_limits_reach_the_service_from_a_file(pair, tmp_path):
    file = tmp_path / "service.toml"
    file.write_text("[limits]\nmax_body_bytes = 100\n[engine]\nmax_model_len = 32\n")
    with running_service([*model_arguments(pair), "--config", str(file)]) as client:
        assert client.get("/v1/models").json()["data"][0]["max_model_len"] == 32
        assert client.post("/chat", json={"message": "x" * 200}).status_code == 413
