"""A real engine for the service: tiny, with a drafter that is sometimes right."""

from __future__ import annotations

from pathlib import Path

import pytest

from paceline import LLM
from paceline.engine.worker import EngineWorker
from tests.support.checkpoints import perturb, tiny_llama, tiny_tokenizer
from tests.support.server_process import serving


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> tuple[Path, Path]:
    """The directories of a target and of a draft."""
    root = tmp_path_factory.mktemp("service")
    target, draft = root / "target", root / "draft"
    tiny_llama(target, max_positions=2048)
    tiny_tokenizer(target, max_length=2048)
    perturb(target, draft, 0.2)
    return target, draft


@pytest.fixture
def worker(tiny):
    target, draft = tiny
    speculative = {"method": "draft_model", "model": str(draft)}
    worker = EngineWorker(LLM(str(target), speculative_config=speculative, num_blocks=400, max_num_seqs=4))
    yield worker
    worker.close()


@pytest.fixture(scope="session")
def server_process(tiny, tmp_path_factory):
    """A server with the tiny model and a draft, in a process of its own."""
    target, draft = tiny
    log = tmp_path_factory.mktemp("log") / "server.txt"
    with serving(log, str(target), "--draft", str(draft)) as process:
        yield process


@pytest.fixture(scope="session")
def server(server_process):
    return server_process.url
