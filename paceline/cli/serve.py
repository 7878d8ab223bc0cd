"""``paceline serve``: the HTTP service, in this process until it is stopped; the engine is a child process."""

from __future__ import annotations

import secrets
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from paceline.cli.announcement import announce
from paceline.cli.engine_options import EngineChoice
from paceline.cli.signals import terminable
from paceline.cli.terminal import is_quiet, note
from paceline.core.errors import ConfigError
from paceline.core.resolution import Resolution
from paceline.core.service_config import Limits, ServiceConfig

if TYPE_CHECKING:
    from paceline.engine.process.client import EngineProcess
    from paceline.engine.worker import EngineWorker

SERVICE_PACKAGES = ("fastapi", "starlette", "uvicorn", "pydantic", "msgspec")


def serve(
    *,
    engine: EngineChoice,
    service: ServiceConfig,
    limits: Limits,
    resolution: Resolution,
) -> None:
    """Serves a model over HTTP: OpenAI's /v1 and /chat."""
    try:
        from paceline.server import run
        from paceline.server.naming import served_name
    except ImportError as error:
        if error.name not in SERVICE_PACKAGES:
            raise
        raise ConfigError(str(error)) from error
    # Before the model is read, which can take long: who asks meanwhile is told so.
    with run.OpenPort(service, limits) as port:
        engine, drawn = _seeded(engine)
        note(f"loading {engine.model or 'the embedded pair'} ...")
        with terminable():  # while the model is read; then the service's own end takes over
            client = _in_process(engine) if service.in_process else _in_child(engine, service)
            try:
                name = service.served_model_name[0] if service.served_model_name else served_name(client.model_name)
                said = partial(announce, client.facts, name, service, resolution, seed=drawn)
                port.serve(client, listening=None if is_quiet() else said)
            finally:
                client.close()


def _seeded(engine: EngineChoice) -> tuple[EngineChoice, int | None]:
    """Draws a seed where none is set, so that unseeded calls of a restarted service do not repeat what it said before.

    Returns the seed too if it was drawn. Below 2^53: every reader of JSON can write it down.
    """
    if "seed" in engine.options:
        return engine, None
    drawn = secrets.randbelow(2**53)
    return replace(engine, options={**engine.options, "seed": drawn}), drawn


def _in_child(engine: EngineChoice, service: ServiceConfig) -> EngineProcess:
    from paceline.engine.process.client import EngineProcess

    try:
        return EngineProcess(
            engine.model,
            speculative_config=engine.speculative,
            kill_seconds=service.kill_seconds or None,
            **engine.options,
        )
    except ConfigError:
        # Names where the option came from. Not before, since it reads all that the child alone needs.
        engine.check_parts()
        raise


def _in_process(engine: EngineChoice) -> EngineWorker:
    from paceline.engine.warm_up import warm_up
    from paceline.engine.worker import EngineWorker

    llm = engine.load()
    warm_up(llm)
    return EngineWorker(llm)
