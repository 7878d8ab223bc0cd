"""The service behind OpenAI's client for JavaScript, where Node and the client are installed."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.live_service import eventually, live
from tests.support.scripted_engine import ScriptedEngine

HERE = Path(__file__).parent / "node"
NODE = shutil.which("node")

pytestmark = [
    pytest.mark.skipif(NODE is None, reason="needs Node"),
    pytest.mark.skipif(not (HERE / "node_modules/openai").is_dir(), reason="needs `npm ci --prefix tests/server/node`"),
]


def test_openai_for_javascript(server, server_process):
    with live(ScriptedEngine(fault="error", fault_after=3)) as broken:
        command = [NODE, "client.mjs", f"{server}/v1", f"{broken.url}/v1"]
        ran = subprocess.run(command, check=False, cwd=HERE, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    seen = json.loads(ran.stdout)
    assert seen["whole"] == seen["streamed"] != ""
    assert (seen["usage"], seen["completions"]) == (12, 2)
    assert seen["requestId"]
    assert seen["embedding"] == pytest.approx(seen["plain"], abs=1e-6)
    assert seen["refused"] == {"name": "BadRequestError", "status": 400, "code": None}
    assert seen["broken"]["name"] == "APIError"
    eventually(lambda: server_process.stats()["pages"]["referenced"] == 0)
