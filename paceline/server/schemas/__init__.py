"""Knows the bodies of requests and answers: which fields there are, their strict types, and what becomes of them."""

from paceline.server.schemas.base import Strict
from paceline.server.schemas.chat import ChatCompletionRequest, ChatRequest, Message
from paceline.server.schemas.completions import CompletionRequest
from paceline.server.schemas.embeddings import EmbeddingRequest
from paceline.server.schemas.generation import EngineRequest, SamplingFields
from paceline.server.schemas.tokens import DetokenizeRequest, TokenizeRequest

__all__ = [
    "ChatCompletionRequest",
    "ChatRequest",
    "CompletionRequest",
    "DetokenizeRequest",
    "EmbeddingRequest",
    "EngineRequest",
    "Message",
    "SamplingFields",
    "Strict",
    "TokenizeRequest",
]
