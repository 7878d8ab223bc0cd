"""Knows the body of ``POST /v1/embeddings``."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, ClassVar, Literal

from pydantic import PlainValidator, WithJsonSchema

from paceline.core.call import CallOptions
from paceline.core.params import SamplingParams
from paceline.server.schemas.generation import EngineRequest, PromptEncoder
from paceline.server.schemas.prompts import Prompt, as_prompts, prompts_schema
from paceline.server.schemas.reading import FieldRules
from paceline.server.schemas.unsupported import IGNORED

MAX_INPUTS = 2048


class EmbeddingRequest(EngineRequest):
    """``POST /v1/embeddings``: one vector per input."""

    rules: ClassVar[FieldRules] = FieldRules(IGNORED, {"dimensions": (), "truncate_prompt_tokens": (-1,)})

    input: Annotated[list[Prompt], PlainValidator(as_prompts(MAX_INPUTS)), WithJsonSchema(prompts_schema(MAX_INPUTS))]
    stream: Literal[False] | None = None
    encoding_format: Literal["float", "base64"] | None = None
    pooling: Literal["mean", "last"] | None = None
    add_special_tokens: bool | None = None

    def prompts(self, encoder: PromptEncoder) -> list[list[int]]:
        special = self.add_special_tokens is not False
        return [encoder.prompt(prompt, "input", add_special_tokens=special) for prompt in self.input]

    def params(self, default_max_tokens: int) -> SamplingParams:  # noqa: ARG002 (nothing is generated)
        return SamplingParams(detokenize=False)

    def options(self, client: str) -> CallOptions:
        return replace(super().options(client), pooling=self.pooling or "mean")
