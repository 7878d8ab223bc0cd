"""``paceline serve``: the HTTP service, in this process until it is stopped; the engine is a child process."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from paceline.cli.engine_options import EngineChoice
from paceline.cli.terminal import FAINT, console
from paceline.core.errors import ConfigError
from paceline.core.service_config import Limits, ServiceConfig

if TYPE_CHECKING:
    from paceline.engine.facts import EngineFacts
    from paceline.engine.process.client import EngineProcess
    from paceline.engine.worker import EngineWorker

SERVICE_PACKAGES = ("fastapi", "starlette", "uvicorn", "pydantic", "msgspec")


def serve(
    *,
    engine: EngineChoice,
    service: ServiceConfig,
    limits: Limits,
) -> None:
    """Serves a model over HTTP: OpenAI's /v1 and /chat."""
    try:
        from paceline.server import run
    except ImportError as error:
        if error.name not in SERVICE_PACKAGES:
            raise
        raise ConfigError(str(error)) from error
    # Before the model is read, which can take long.
    run.check(service)
    console(sys.stderr).out(f"loading {engine.model or 'the embedded pair'} ...", style=FAINT)
    client = _in_process(engine) if service.in_process else _in_child(engine)
    try:
        _describe(client.facts)
        run.serve(client, service, limits=limits)
    finally:
        client.close()


def _in_child(engine: EngineChoice) -> EngineProcess:
    from paceline.engine.process.client import EngineProcess

    try:
        return EngineProcess(engine.model, speculative_config=engine.speculative, **engine.options)
    except ConfigError:
        from paceline.cli.parts import check_parts

        # Names where the option came from. Not before, since it reads all that the child alone needs.
        check_parts(engine)
        raise


def _in_process(engine: EngineChoice) -> EngineWorker:
    from paceline.engine.warm_up import warm_up
    from paceline.engine.worker import EngineWorker

    llm = engine.load()
    warm_up(llm)
    return EngineWorker(llm)


def _describe(facts: EngineFacts) -> None:
    """How the engine runs; the service itself tells where, once it listens."""
    drafts = "off"
    if facts.speculative_method is not None:
        drafts = f"{facts.speculative_method}, {facts.num_speculative_tokens} draft tokens per step"
    out = console()
    out.out(f"weights      {facts.dtype} on {facts.device}")
    out.out(f"context      {facts.max_model_len} tokens, K/V cache of {facts.num_pages} pages")
    out.out(f"speculation  {drafts}")
