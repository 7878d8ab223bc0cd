"""``LLM``: a model held in memory, with which programs generate text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from numbers import Integral
from pathlib import Path
from typing import Any

from paceline.core.call import CallOptions
from paceline.core.config import EngineConfig, SpeculativeConfig
from paceline.core.errors import ConfigError, InvalidRequestError, shown
from paceline.core.outputs import RequestOutput
from paceline.core.params import SamplingParams
from paceline.core.request import Group
from paceline.engine.build import build_engine
from paceline.engine.facts import EngineFacts
from paceline.engine.intake import Intake
from paceline.engine.pair import EMBEDDED_SPECULATION, EMBEDDED_TARGET
from paceline.engine.report import engine_facts, engine_stats
from paceline.engine.results import output_of
from paceline.models import resolve_model
from paceline.text import Tokenizer


class LLM:
    """Generates text with one target model and, if asked, a drafter that never changes the text (verifier "match").

    Args:
        model: directory or Hub id of a Hugging Face checkpoint; None is the embedded pair.
        speculative_config: ``{"method": "draft_model", "model": DIR, "num_speculative_tokens": 4}``,
            ``{"method": "ngram"}`` or None. The default, "auto", drafts with the embedded draft if ``model`` is None.
        options: every field of ``EngineConfig``: dtype, device, kv_cache_dtype, block_size, num_blocks,
            max_model_len, max_num_seqs, max_num_batched_tokens, enable_prefix_caching, scheduling_policy, seed, ...

    Raises:
        ConfigError: an option that is unknown or cannot work, with the one to change.
        CheckpointError: a model that is missing, corrupt, unsupported or unsafe.
    """

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        speculative_config: Mapping[str, Any] | SpeculativeConfig | str | None = "auto",
        **options: Any,
    ) -> None:
        if model is not None and not isinstance(model, str | Path):
            raise ConfigError(f"model must be a directory or a Hub id, got {shown(model)}")
        if isinstance(speculative_config, str):
            if speculative_config != "auto":
                raise ConfigError(
                    f'speculative_config is {shown(speculative_config)}\nFor example {{"method": "ngram"}}.'
                )
            speculative_config = EMBEDDED_SPECULATION if model is None else None
        if "speculative" in options:
            raise ConfigError("unknown engine option 'speculative'\nUse speculative_config.")
        config = EngineConfig.of(**options, speculative=SpeculativeConfig.of(speculative_config))
        path = EMBEDDED_TARGET if model is None else resolve_model(model)
        self.model_name = "paceline-pair" if model is None else str(model)
        self.model_path = path
        self.tokenizer = Tokenizer.try_load(path)
        self.engine = build_engine(path, config)
        self.intake = Intake(self.engine, self.tokenizer)

    @property
    def max_model_len(self) -> int:
        """The longest prompt and answer together: what the context and the cache hold."""
        return self.intake.longest

    def generate(
        self,
        prompts: str | Sequence[Any] | Mapping[str, Any],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        speculate: bool = True,
        priority: int | Sequence[int] = 0,
        client: str | Sequence[str] = "",
        cache_salt: str = "",
        context_overflow: str | None = None,
    ) -> list[RequestOutput]:
        """Completes each prompt; outputs come in the order of the prompts.

        Args:
            prompts: text, token ids, ``{"prompt": text}``, ``{"prompt_token_ids": ids}``, or a list of those.
            params: one for all, or one per prompt; None is ``SamplingParams()``.
            speculate: False decodes plainly, to the same tokens under the verifier "match".
            priority: one for all, or one per prompt; scheduling_policy="priority" serves lower numbers first.
            client: one for all, or one per prompt; scheduling_policy="fair" shares the engine between clients.
            cache_salt: prefixes are shared only with calls of the same salt.
            context_overflow: "error" refuses a prompt that the context cannot hold, and ends an answer where the
                context does; "truncate" cuts off the oldest prompt tokens; "slide" drops the older half of a full
                context and goes on. None is the engine's option.

        Raises:
            InvalidRequestError: (a ValueError) before anything is generated, if any prompt or parameter is invalid.
        """
        many = _prompt_list(prompts)
        each = _checked_params(_one_each("params", SamplingParams() if params is None else params, len(many)))
        options = CallOptions(speculate=speculate, cache_salt=cache_salt, context_overflow=context_overflow)
        numbers, names = _one_each("priority", priority, len(many)), _one_each("client", client, len(many))
        groups = []
        for prompt, wanted, number, name in zip(many, each, numbers, names, strict=True):
            mine = replace(options, priority=number, client=name)
            groups.append(self.intake.group(self.intake.encode(prompt), wanted, options=mine))
            groups[-1].prompt = _text_of(prompt)
        return self._run(groups)

    def chat(
        self,
        messages: Sequence[Mapping[str, str]] | Sequence[Sequence[Mapping[str, str]]],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        speculate: bool = True,
        priority: int | Sequence[int] = 0,
        client: str | Sequence[str] = "",
        cache_salt: str = "",
        context_overflow: str | None = None,
    ) -> list[RequestOutput]:
        """Answers a conversation, or each of several, through the model's chat template.

        Args:
            messages: ``[{"role": "user", "content": "..."}]``, or a list of such conversations.
        """
        if self.tokenizer is None:
            raise InvalidRequestError("the model has no tokenizer, so it cannot chat\nUse generate with token ids.")
        prompts = [{"prompt_token_ids": self.tokenizer.encode_chat(one)} for one in _conversations(messages)]
        return self.generate(
            prompts,
            params,
            speculate=speculate,
            priority=priority,
            client=client,
            cache_salt=cache_salt,
            context_overflow=context_overflow,
        )

    def embed(self, prompts: str | Sequence[Any] | Mapping[str, Any], *, pooling: str = "mean") -> list[RequestOutput]:
        """One vector per prompt, in ``embedding`` of its output: the hidden states after the final norm, pooled.

        Args:
            prompts: as in ``generate``; a prompt may fill the context.
            pooling: "mean" of all tokens' hidden states or the "last" token's; either has Euclidean length 1.
        """
        params = SamplingParams(detokenize=False)
        options = CallOptions(pooling=pooling)
        groups = [self.intake.group(self.intake.encode(one), params, options=options) for one in _prompt_list(prompts)]
        return self._run(groups)

    @property
    def facts(self) -> EngineFacts:
        """How the engine runs, once every "auto" is resolved."""
        return engine_facts(self.engine, self.model_name, self.model_path, self.max_model_len)

    def stats(self) -> dict[str, Any]:
        """Counters, acceptance by position, pages, and memory by part in bytes."""
        return engine_stats(self.engine)

    def _run(self, groups: list[Group]) -> list[RequestOutput]:
        for group in groups:
            self.engine.add(group)
        try:
            while not all(group.finished for group in groups):
                self.engine.step()
        except BaseException:
            for group in groups:
                self.engine.abort(group)
            raise
        return [output_of(group, self.engine.selector) for group in groups]


def _checked_params(each: Sequence[Any]) -> Sequence[SamplingParams]:
    for wanted in each:
        if not isinstance(wanted, SamplingParams):
            raise InvalidRequestError(f"params must be SamplingParams, got {type(wanted).__name__}", param="params")
    return each


def _text_of(prompt: Any) -> str | None:
    """What a prompt says, where it is text."""
    text = prompt.get("prompt") if isinstance(prompt, Mapping) else prompt
    return text if isinstance(text, str) else None


def _one_each(name: str, value: Any, count: int) -> list[Any]:
    """``value`` as one per prompt; a sequence has one per prompt already."""
    several = isinstance(value, Sequence) and not isinstance(value, str)
    each = list(value) if several else [value] * count
    if len(each) != count:
        raise InvalidRequestError(f"{count} prompts, but {len(each)} {name}", param=name)
    return each


def _prompt_list(prompts: Any) -> list[Any]:
    """One prompt or many: a list of integers is one prompt of token ids."""
    if isinstance(prompts, str | Mapping):
        return [prompts]
    if not isinstance(prompts, Sequence) or isinstance(prompts, bytes | bytearray) or not prompts:
        raise InvalidRequestError("prompts must be text, token ids or a non-empty list of them", param="prompts")
    return [prompts] if isinstance(prompts[0], Integral) else list(prompts)


def _conversations(messages: Any) -> list[list[Mapping[str, Any]]]:
    """One conversation or many: a list of messages is one."""
    many = [messages] if isinstance(messages, Sequence) and any(isinstance(m, Mapping) for m in messages) else messages
    lists = isinstance(many, Sequence) and all(isinstance(one, Sequence) for one in many)
    if not (lists and all(isinstance(message, Mapping) for one in many for message in one)):
        raise InvalidRequestError("messages must be a list of messages, or a list of such lists", param="messages")
    for message in (message for one in many for message in one):
        if not isinstance(message.get("content"), str):
            raise InvalidRequestError(
                f"a message's content must be text, got {shown(message.get('content'))}", param="messages"
            )
    return [list(one) for one in many]
