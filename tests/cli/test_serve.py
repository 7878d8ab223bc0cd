"""``paceline serve`` as a process: what it says, and that it answers and ends."""

from __future__ import annotations

import subprocess
import sys

import httpx

from paceline.cli.loopback import running_service
from tests.cli.conftest import model_arguments, root


def test_it_says_where_and_how_it_serves(pair):
    command = [sys.executable, "-u", "-m", "paceline.cli.main", "serve", *model_arguments(pair), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=root()) as serve:
        assert serve.stdout is not None
        said = ""
        for line in serve.stdout:
            said += line
            if "curl" in line:
                break
        serve.terminate()
        serve.communicate(timeout=60)
    for part in ("http://127.0.0.1:", "curl ", "256 tokens", "float32 on cpu", "draft_model, 4 draft tokens"):
        assert part in said


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
