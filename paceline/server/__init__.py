"""Knows HTTP: the OpenAI-compatible endpoints and ``/chat``; nothing of models, caches or drafts."""

try:
    import fastapi  # noqa: F401
    import uvicorn  # noqa: F401
except ImportError as error:
    raise ImportError(
        f"paceline.server needs {error.name}, which is not installed\nInstall it: pip install 'paceline[serve]'",
        name=error.name,
    ) from error

from paceline.core.service_config import Limits, ServiceConfig
from paceline.server.app import create_app
from paceline.server.engine_client import EngineClient
from paceline.server.run import serve

__all__ = ["EngineClient", "Limits", "ServiceConfig", "create_app", "serve"]
