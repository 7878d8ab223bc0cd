"""Knows what answers look like: for the service's description and for tests, not for writing them."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict


class AnswerModel(BaseModel):
    """Every field is always there, but ``paceline`` where a call or the service leaves it out."""

    model_config = ConfigDict(extra="forbid")


class ErrorDetail(AnswerModel):
    message: str
    type: str
    param: str | None
    code: str | None


class Error(AnswerModel):
    """What every failure looks like."""

    error: ErrorDetail


class PromptTokensDetails(AnswerModel):
    cached_tokens: int


class CompletionTokensDetails(AnswerModel):
    reasoning_tokens: int
    audio_tokens: int
    accepted_prediction_tokens: int
    rejected_prediction_tokens: int


class Usage(AnswerModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails


class Figures(AnswerModel):
    """How a call went; times in seconds. Of several prompts: counts added up, times averaged."""

    drafted_tokens: int
    accepted_tokens: int
    mean_acceptance_length: float
    queue_time: float | None
    prefill_time: float | None
    decode_time: float | None
    time_to_first_token: float | None
    time_per_output_token: float | None
    num_preemptions: int
    num_truncated_tokens: int
    num_slides: int
    num_dropped_tokens: int
    estimated_speedup: float | None


class Tokens(AnswerModel):
    """Each token's text and id, and whether it was an accepted draft token."""

    tokens: list[str]
    token_ids: list[int]
    drafted: list[bool]


class ChatMessage(AnswerModel):
    role: Literal["assistant"]
    content: str
    refusal: None


class TokenLogprob(AnswerModel):
    token: str
    logprob: float
    bytes: list[int]


class ChatTokenLogprobs(TokenLogprob):
    top_logprobs: list[TokenLogprob]


class ChatLogprobs(AnswerModel):
    content: list[ChatTokenLogprobs]
    refusal: None


class ChatChoice(AnswerModel):
    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: str
    stop_reason: int | str | None
    paceline: Tokens | None = None


class ChatCompletion(AnswerModel):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    service_tier: Literal["default"]
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage
    paceline: Figures | None = None


class CompletionLogprobs(AnswerModel):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(AnswerModel):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: str
    stop_reason: int | str | None
    paceline: Tokens | None = None


class Completion(AnswerModel):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Usage
    paceline: Figures | None = None


class Embedding(AnswerModel):
    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingUsage(AnswerModel):
    prompt_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class EmbeddingFigures(AnswerModel):
    queue_time: float | None
    num_preemptions: int
    num_truncated_tokens: int


class Embeddings(AnswerModel):
    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage
    paceline: EmbeddingFigures | None = None


class ChatAnswer(Tokens):
    text: str
    finish_reason: str
    stop_reason: int | str | None
    model: str
    usage: Usage
    metrics: Figures


class Tokenized(AnswerModel):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class Detokenized(AnswerModel):
    prompt: str


class Status(AnswerModel):
    status: Literal["ok", "ready"]
    model: str


class Version(AnswerModel):
    version: str


class Model(AnswerModel):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int


class Models(AnswerModel):
    object: Literal["list"]
    data: list[Model]
