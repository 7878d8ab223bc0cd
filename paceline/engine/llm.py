"""``LLM``: a model held in memory, with which programs generate text."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import torch

from paceline.core.call import CallOptions
from paceline.core.config import EngineConfig, SpeculativeConfig
from paceline.core.errors import ConfigError, InvalidRequestError, shown
from paceline.core.outputs import RequestOutput
from paceline.core.params import SamplingParams
from paceline.core.request import Group
from paceline.engine.arguments import asking, check_unknown, named, one_each, params_of_each
from paceline.engine.build import build_engine
from paceline.engine.conversations import ChatPrompt, conversation, conversations, place_of
from paceline.engine.facts import EngineFacts
from paceline.engine.input_processor import InputProcessor
from paceline.engine.pair import EMBEDDED_SPECULATION, EMBEDDED_TARGET
from paceline.engine.progress_bar import progress_bar
from paceline.engine.prompts import as_prompt, prompt_list
from paceline.engine.report import engine_facts, engine_stats
from paceline.engine.results import output_of
from paceline.engine.turns import Turns, closed
from paceline.engine.vocabulary import check_vocabulary_of
from paceline.models import resolve_model
from paceline.text import Tokenizer

Prompts = str | Mapping[str, Any] | Iterable[Any]
"""One prompt or several, as ``LLM.generate`` tells."""


class LLM:
    """Generates text with one target model and, if asked, a drafter that never changes the text (verifier "match").

    Any number of threads may call one ``LLM``, also as ``await asyncio.to_thread(llm.generate, ...)``: their requests
    run in joined batches, and each gets the texts that it would get alone. An exception, Ctrl-C among them, ends the
    calls of the thread that it reaches and nobody else's; the ``LLM`` can be used on. Memory is given back by
    ``close()``, by leaving a ``with`` block, or by ``del``.

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
        config = EngineConfig.of(**asking(options, model), speculative=SpeculativeConfig.of(speculative_config))
        path = EMBEDDED_TARGET if model is None else resolve_model(model, revision=config.revision)
        self.model_name = "paceline-pair" if model is None else str(model)
        self.model_path = path
        self.tokenizer = Tokenizer.try_load(path)
        check_vocabulary_of(self.tokenizer, path)
        self.engine = build_engine(path, config)
        self.input_processor = InputProcessor(self.engine, self.tokenizer)
        self._turns = Turns(self.engine)
        self._numbers = itertools.count()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Gives back the memory of weights and K/V at once; calls that still run raise EngineDeadError, also in the
        middle of a step.

        Leaving a ``with`` block and ``del llm`` do the same.
        """
        if "engine" not in vars(self):
            return
        turns, on_gpu = self._turns, self.engine.runner.device.type == "cuda"

        def shut() -> None:
            turns.closed = True
            for name in ("engine", "input_processor", "tokenizer", "_turns"):
                vars(self).pop(name, None)

        with self.engine.abandonment.nothing_runs():
            turns.between_steps(shut)
        if on_gpu:
            torch.cuda.empty_cache()

    def __getattr__(self, name: str) -> Any:
        if name in ("engine", "input_processor", "tokenizer", "_turns"):
            raise closed()
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    @property
    def max_model_len(self) -> int:
        """The longest prompt and answer together: what the context and the cache hold."""
        return self.input_processor.longest

    def generate(
        self,
        prompts: Prompts | None = None,
        params: SamplingParams | Iterable[SamplingParams] | None = None,
        *,
        sampling_params: SamplingParams | Iterable[SamplingParams] | None = None,
        prompt_token_ids: Any = None,
        use_tqdm: bool | Callable[..., Any] = True,
        speculate: bool = True,
        priority: int | Sequence[int] = 0,
        client: str | Sequence[str] = "",
        cache_salt: str = "",
        context_overflow: str | None = None,
        **others: Any,
    ) -> list[RequestOutput]:
        """Completes each prompt; outputs come in the order of the prompts.

        Args:
            prompts: text, token ids (a list, an array, a tensor), ``{"prompt": text}``, ``{"prompt_token_ids": ids}``,
                what a tokenizer of transformers returns, or several of those: a list, an array, a generator.
            params: one for all, or one per prompt; None is ``SamplingParams()``. ``sampling_params`` is the same.
            prompt_token_ids: token ids of one prompt or of several, in place of ``prompts`` or beside their texts.
            use_tqdm: whether many prompts show a progress bar, on a terminal only; or what to use in tqdm's place.
            speculate: False decodes plainly, to the same tokens under the verifier "match".
            priority: one for all, or one per prompt; scheduling_policy="priority" serves lower numbers first.
            client: one for all, or one per prompt; scheduling_policy="fair" shares the engine between clients.
            cache_salt: prefixes are shared only with calls of the same salt.
            context_overflow: "error" refuses a prompt that the context cannot hold, and ends an answer where the
                context does; "truncate" cuts off the oldest prompt tokens; "slide" drops the older half of a full
                context and goes on. None is the engine's option.
            others: arguments of vLLM that ask for nothing, such as ``lora_request=None``.

        Raises:
            InvalidRequestError: (a ValueError) before anything is generated, if any prompt or parameter is invalid.
        """
        check_unknown(others)
        many = prompt_list(prompts, prompt_token_ids)
        each = params_of_each(params, sampling_params, len(many))
        options = CallOptions(speculate=speculate, cache_salt=cache_salt, context_overflow=context_overflow)
        return self._run(self._groups(many, each, options, priority, client), use_tqdm)

    def chat(
        self,
        messages: Iterable[Mapping[str, Any]] | Iterable[Iterable[Mapping[str, Any]]],
        params: SamplingParams | Iterable[SamplingParams] | None = None,
        *,
        add_generation_prompt: bool = True,
        **options: Any,
    ) -> list[RequestOutput]:
        """Answers a conversation, or each of several, through the model's chat template.

        Args:
            messages: ``[{"role": "user", "content": "..."}]``, or a list of such conversations.
            add_generation_prompt: whether the prompt ends where the assistant's turn begins.
            options: as ``generate`` has them.
        """
        if self.tokenizer is None:
            raise InvalidRequestError("the model has no tokenizer, so it cannot chat\nUse generate with token ids.")
        many, prompts = conversations(messages), []
        for index, one in enumerate(many):
            with named("messages", index, len(many)):
                ids = self.tokenizer.encode_chat(conversation(one), add_generation_prompt=add_generation_prompt)
                prompts.append(ChatPrompt(prompt_token_ids=ids))
        return self.generate(prompts, params, **options)

    def embed(self, prompts: Prompts, *, pooling: str = "mean") -> list[RequestOutput]:
        """One vector per prompt, in ``embedding`` of its output: the hidden states after the final norm, pooled.

        Args:
            prompts: as in ``generate``; a prompt may fill the context.
            pooling: "mean" of all tokens' hidden states or the "last" token's; either has Euclidean length 1.
        """
        params = SamplingParams(detokenize=False)
        many, groups = prompt_list(prompts), []
        options = CallOptions(pooling=pooling, part_of=self._part_of(many))
        for index, one in enumerate(many):
            with named("prompts", index, len(many)):
                groups.append(self.input_processor.group(self.input_processor.encode(one), params, options=options))
        return self._run(groups)

    @property
    def facts(self) -> EngineFacts:
        """How the engine runs, once every "auto" is resolved."""
        return engine_facts(self.engine, self.model_name, self.model_path, self.max_model_len)

    def stats(self) -> dict[str, Any]:
        """Counters, acceptance by position, pages, and memory by part in bytes."""
        found: list[dict[str, Any]] = []
        engine = self.engine
        self._turns.between_steps(lambda: found.append(engine_stats(engine)))
        return found[0]

    def _groups(
        self,
        many: Sequence[Any],
        each: Sequence[SamplingParams],
        options: CallOptions,
        priority: int | Sequence[int],
        client: str | Sequence[str],
    ) -> list[Group]:
        """The requests of a call, one per prompt; none has begun."""
        options = replace(options, part_of=self._part_of(many))
        numbers, names = one_each("priority", priority, len(many)), one_each("client", client, len(many))
        groups = []
        for index, (given, wanted, number, name) in enumerate(zip(many, each, numbers, names, strict=True)):
            with named(place_of(given), index, len(many)):
                prompt = as_prompt(given)
                salt = options.cache_salt if prompt.cache_salt is None else prompt.cache_salt
                mine = replace(options, priority=number, client=name, cache_salt=salt)
                groups.append(self.input_processor.group(self.input_processor.encode(prompt), wanted, options=mine))
            groups[-1].prompt = prompt.text
        return groups

    def _part_of(self, prompts: Sequence[Any]) -> str:
        """A name of their own for the prompts of a call: beside other threads' they give way as one."""
        return f"call-{next(self._numbers)}" if len(prompts) > 1 else ""

    def _run(self, groups: list[Group], use_tqdm: bool | Callable[..., Any] = False) -> list[RequestOutput]:
        selector = self.engine.selector
        try:
            with progress_bar(groups, use_tqdm) as update:
                self._turns.run(groups, update)
            return [output_of(group, selector) for group in groups]
        finally:
            for group in groups:
                if group.finished:
                    group.members = []  # they know each other: else only the garbage collector would free them
