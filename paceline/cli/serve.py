"""``paceline serve``: the HTTP service, in this process until it is stopped."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from paceline.cli.engine_options import EngineChoice
from paceline.cli.terminal import FAINT, console
from paceline.core.errors import ConfigError
from paceline.core.service_config import Limits, ServiceConfig

if TYPE_CHECKING:
    from paceline.engine.llm import LLM

SERVICE_PACKAGES = ("fastapi", "starlette", "uvicorn", "pydantic")


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
    from paceline.engine.worker import EngineWorker

    llm = engine.load()
    _describe(llm)
    worker = EngineWorker(llm)
    try:
        run.serve(worker, service, limits=limits)
    finally:
        worker.close()


def _describe(llm: LLM) -> None:
    """How the engine runs; the service itself tells where, once it listens."""
    parameter = next(llm.engine.runner.model.parameters())
    speculative = llm.engine.config.speculative
    drafts = "off"
    if speculative is not None:
        drafts = f"{speculative.method}, {speculative.num_speculative_tokens} draft tokens per step"
    out = console()
    out.out(f"weights      {str(parameter.dtype).removeprefix('torch.')} on {parameter.device}")
    out.out(f"context      {llm.max_model_len} tokens, K/V cache of {llm.stats()['pages']['total']} pages")
    out.out(f"speculation  {drafts}")
