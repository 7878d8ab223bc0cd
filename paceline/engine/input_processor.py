"""Turns what a user asked for into a checked group of requests; rejects whatever is invalid."""

from __future__ import annotations

import itertools
from numbers import Integral
from typing import Any

import numpy as np

from paceline.cache import KVGroup
from paceline.core.call import CallOptions, checked_tokens
from paceline.core.config import EngineConfig
from paceline.core.errors import InvalidRequestError, out_of_range
from paceline.core.params import SamplingParams, check_vocabulary
from paceline.core.request import Group, Pooled, Request
from paceline.engine.engine import Engine
from paceline.engine.overflow import Admission, Ask, context_overflows, longest_is
from paceline.engine.pooling import poolings
from paceline.engine.prompts import as_prompt
from paceline.text import Detokenizer, Tokenizer, bad_word_ids

DEFAULT_OPTIONS = CallOptions()


MAX_NAME = 1024
"""Most characters of a client's name and of a cache salt."""
PRIORITIES = range(-(2**31), 2**31)


class InputProcessor:
    """Checks prompts and parameters against the model, and resolves what they leave open."""

    def __init__(self, engine: Engine, tokenizer: Tokenizer | None) -> None:
        self.engine, self.tokenizer = engine, tokenizer
        self.config: EngineConfig = engine.config
        self.model = engine.runner.model.config
        self.max_model_len = engine.seats.max_len
        own = frozenset() if tokenizer is None else tokenizer.end_token_ids
        self.end_token_ids = self.model.eos_token_ids | {token for token in own if token < self.model.vocab_size}
        """Tokens that end an answer: those of the model's files and of its tokenizer."""
        _ = context_overflows[engine.config.context_overflow]  # raises if there is none of that name
        self._numbers = itertools.count()
        self.num_before = 0
        """Engines that this one takes the place of: it does not repeat the seeds that they drew."""

    def encode(self, prompt: Any) -> list[int]:
        """Token ids of a prompt in any of the ways that ``as_prompt`` reads."""
        asked = as_prompt(prompt)
        if asked.token_ids is not None:
            return checked_tokens(asked.token_ids, self.model.vocab_size)
        if self.tokenizer is None:
            raise InvalidRequestError(
                "the model has no tokenizer, so a prompt cannot be text\nPass token ids.", param="prompt"
            )
        return self._known(self.tokenizer.encode(asked.text or ""))

    def _known(self, tokens: list[int]) -> list[int]:
        """A text's tokens; some that a tokenizer has by name, such as an image's, a model may lack."""
        strange = max(tokens, default=0)
        if strange >= self.model.vocab_size:
            raise InvalidRequestError(
                f"the prompt has token {strange}, the model's end at {self.model.vocab_size - 1}\n"
                f"Leave out what spells it.",
                param="prompt",
            )
        return tokens

    def group(
        self,
        tokens: list[int],
        params: SamplingParams,
        *,
        request_id: str | None = None,
        options: CallOptions = DEFAULT_OPTIONS,
    ) -> Group:
        """A group ready to be added.

        Raises:
            InvalidRequestError: naming the field, and what would be accepted.
        """
        _check_options(options)
        check_vocabulary(params, self.model.vocab_size)
        admission = self._admission(tokens, params, options)
        tokens = tokens[admission.num_truncated_tokens :]
        pooled = None if options.pooling is None else self._pooled(tokens, params, options.pooling)
        self._check_pages(len(tokens), admission, options.speculate)
        self._check_tokenizer(params)
        number = next(self._numbers)
        group = Group(
            id=request_id or f"request-{number}",
            prompt_token_ids=tokens,
            params=params,
            priority=int(options.priority),
            client=options.client,
            part_of=options.part_of,
            cache_salt=options.cache_salt,
            num_truncated_tokens=admission.num_truncated_tokens,
            sliding_context=admission.sliding_context,
            speculate=options.speculate and pooled is None,
            pooled=pooled,
        )
        if self.tokenizer is not None:
            spelled = options.bad_words_token_ids
            group.bad_words_token_ids = bad_word_ids(self.tokenizer, params.bad_words) if spelled is None else spelled
        self._complete(group, number, admission.max_new_tokens)
        return group

    def _complete(self, group: Group, number: int, limit: int) -> None:
        """Adds the members, of at most ``limit`` new tokens each, and what hangs on them; ``number`` is the call's."""
        params = group.params
        group.prompt_logprobs = None if params.prompt_logprobs is None else [None] * len(group.prompt_token_ids)
        seed = params.seed if params.seed is not None else self._draw_seed(number)
        group.members = [self._member(group, index, seed, limit) for index in range(params.num_samples)]
        group.regimes = self.engine.regimes(group.members[0].longest)

    def _check_tokenizer(self, params: SamplingParams) -> None:
        if (params.stop or params.bad_words) and self.tokenizer is None:
            raise InvalidRequestError(
                "stop strings and bad_words need a tokenizer, and the model has none", param="stop"
            )

    def _draw_seed(self, number: int) -> int:
        stream = np.random.default_rng((self.config.seed % 2**64, number, self.num_before))  # 0 changes nothing
        return int(stream.integers(2**63))

    def _member(self, group: Group, index: int, seed: int, limit: int) -> Request:
        params = group.params
        ends = frozenset() if params.ignore_eos else self.end_token_ids
        detokenizer = None
        if self.tokenizer is not None and params.detokenize:
            detokenizer = Detokenizer(
                self.tokenizer, params, prompt_token_ids=group.prompt_token_ids, end_token_ids=ends
            )
        request = Request(
            id=f"{group.id}-{index}",
            group=group,
            sample_index=index,
            seed=seed,
            eos_token_ids=ends,
            max_new_tokens=limit,
            detokenizer=detokenizer,
        )
        request.slide()
        return request

    @property
    def longest(self) -> int:
        """Most tokens of prompt and answer together: what the context holds and one request can have pages for."""
        unwindowed = [group for group in self.engine.cache.groups if group.window is None]
        return min([self.max_model_len, *(group.pages.num_pages * group.page_size for group in unwindowed)])

    def _pooled(self, tokens: list[int], params: SamplingParams, pooling: str) -> Pooled:
        if pooling not in poolings:
            raise out_of_range("pooling", pooling, f"one of {', '.join(poolings)}")
        if params.num_samples > 1:
            raise out_of_range("n", params.num_samples, "1 for an embedding")
        return Pooled(next_row=poolings[pooling](len(tokens)))

    def _admission(self, tokens: list[int], params: SamplingParams, options: CallOptions) -> Admission:
        """How many tokens are kept of the prompt, and how many may follow it."""
        name = self.config.context_overflow if options.context_overflow is None else options.context_overflow
        if name not in context_overflows:
            raise out_of_range("context_overflow", name, f"one of {', '.join(context_overflows)}")
        if not tokens:
            raise InvalidRequestError("the prompt is empty", param="prompt")
        ask = Ask(
            num_prompt=len(tokens),
            max_tokens=params.max_tokens if options.pooling is None else 0,
            min_tokens=params.min_tokens if options.pooling is None else 0,
            context=self.max_model_len,
            longest=self.longest,
            needs_whole_prompt=params.prompt_logprobs is not None,
        )
        return context_overflows[name].admit(ask)

    def _check_pages(self, num_prompt: int, admission: Admission, speculate: bool) -> None:
        """A request that could not finish even alone is refused now, not when pages run out."""
        limit, context = admission.max_new_tokens, admission.sliding_context
        total = num_prompt + limit if context is None else context
        for group in self.engine.cache.groups if speculate else self.engine.runner.groups:
            needed = self._pages(group, total)
            if needed <= group.pages.num_pages:
                continue
            room = group.pages.num_pages * group.page_size - num_prompt
            shorter = room > 0 and group.window is None and context is None
            fix = f"set max_tokens to at most {room}" if shorter else f"set num_blocks to at least {needed}"
            raise InvalidRequestError(
                f"{longest_is(self.longest)} with this cache; {num_prompt} prompt and {limit} output tokens need "
                f"{needed} pages of {group.page_size} tokens, the cache has {group.pages.num_pages}\n"
                f"To make it fit, {fix}.",
                param="max_tokens",
                code="context_length_exceeded",
            )

    def _pages(self, group: KVGroup, num_tokens: int) -> int:
        """Pages that a request of ``num_tokens`` tokens holds at most, while it is alone."""
        whole = -(-num_tokens // group.page_size)
        if group.window is None or not self.engine.cache.kind.retains:
            return whole
        # The tokens of a step and those that the first of them sees, wherever in a page they begin.
        span = group.window - 1 + min(num_tokens, self.config.max_num_batched_tokens)
        return min(whole, -(-(span - 1) // group.page_size) + 1)


def _check_options(options: CallOptions) -> None:
    if not isinstance(options.speculate, bool):
        raise out_of_range("speculate", options.speculate, "true or false")
    whole = isinstance(options.priority, Integral) and not isinstance(options.priority, bool)
    if not whole or int(options.priority) not in PRIORITIES:
        raise out_of_range("priority", options.priority, f"an integer in [{PRIORITIES[0]}, {PRIORITIES[-1]}]")
    for name in ("client", "part_of", "cache_salt"):
        value = getattr(options, name)
        if not isinstance(value, str) or len(value) > MAX_NAME:
            raise out_of_range(name, value, f"text of at most {MAX_NAME} characters")
