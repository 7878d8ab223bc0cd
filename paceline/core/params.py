"""Sampling parameters: what one request asks of the sampling pipeline, checked once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import Any

from paceline.core.errors import InvalidRequestError, out_of_range
from paceline.core.token_set import MAX_SET_TOKEN, TokenSet
from paceline.core.unknown_fields import naming_unknown_fields

MAX_SAMPLES = 64
MAX_LOGPROBS = 20
MAX_STOP_STRINGS = 16
MAX_STOP_LENGTH = 1024
MAX_LIST_LENGTH = 4096
MAX_BAD_WORD_LENGTH = 1024
MAX_BAD_WORDS_LENGTH = 65_536
"""Characters of all bad words of a call together: as many are tokenised in a tenth of a second."""
INT32_MAX = 2**31 - 1
INT64_MAX = 2**63 - 1

ELSEWHERE = {
    "max_new_tokens": "max_tokens",
    "do_sample": "temperature",
    "num_return_sequences": "n",
    "stop_strings": "stop",
    "eos_token_id": "stop_token_ids",
    "max_completion_tokens": "max_tokens",
    "n_predict": "max_tokens",
    "repeat_penalty": "repetition_penalty",
    "bad_words_ids": "bad_words",
}
"""Names of other programs -> the field of ``SamplingParams`` that means the same."""


@naming_unknown_fields(ELSEWHERE)
@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How tokens are chosen and when to stop; names and defaults follow vLLM's ``SamplingParams``. Can be hashed.

    Controls apply in this order: allowed_token_ids, bad_words, min_tokens, logit_bias, repetition, frequency and
    presence penalty, temperature, min_p, top_k, top_p. ``repetition_penalty`` counts prompt and output tokens, the
    other two count output tokens. ``logprobs`` are of the unprocessed distribution.
    Where the controls leave no token at all, the text ends there: finish_reason "stop", stop_reason "every token is
    banned".

    Raises:
        InvalidRequestError: (a ValueError) naming the field, its value and the allowed range.
    """

    n: int = 1
    """How many answers to return."""
    best_of: int | None = None
    """How many answers to sample; the ``n`` with the highest summed log-probability are returned."""
    temperature: float = 1.0
    """0 is greedy."""
    top_p: float = 1.0
    top_k: int = 0
    """0 or -1 keeps every token."""
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] | None = None
    allowed_token_ids: Sequence[int] | bytes | None = None
    """However many; held as a ``TokenSet``, a bit per token, whose ``bits`` may be passed as well."""
    bad_words: Sequence[str] = ()
    """At most 4,096 of at most 1,024 characters each, and of 65,536 characters together."""
    seed: int | None = None
    """The same seed gives the same text. None draws one from the engine's seed."""
    max_tokens: int | None = 16
    """None goes on until the model stops or the context or the cache is full."""
    min_tokens: int = 0
    stop: str | Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False
    include_stop_str_in_output: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    detokenize: bool = True
    skip_special_tokens: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.stop, str):
            _set(self, "stop", (self.stop,))
        for name in ("stop", "stop_token_ids", "bad_words"):
            value = getattr(self, name)
            _set(self, name, () if value is None else _as_tuple(name, value))
        if self.allowed_token_ids is not None:
            _set(self, "allowed_token_ids", _as_set("allowed_token_ids", self.allowed_token_ids))
        _check_counts(self)
        _check_numbers(self)
        _check_lists(self)

    def __hash__(self) -> int:
        biases = None if self.logit_bias is None else frozenset(self.logit_bias.items())
        return hash(tuple(biases if name == "logit_bias" else value for name, value in self.as_dict().items()))

    @property
    def num_samples(self) -> int:
        """How many members the request's group has."""
        return self.n if self.best_of is None else self.best_of

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0

    def as_dict(self) -> dict[str, Any]:
        """The fields as plain values."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return {name: tuple(value) if isinstance(value, TokenSet) else value for name, value in values.items()}


def _as_tuple(name: str, value: Any) -> tuple[Any, ...]:
    """The items of a list, an array, a tensor, a generator, ..."""
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, str | bytes | bytearray | Mapping) or not isinstance(value, Iterable):
        raise out_of_range(name, value, "a list")
    return tuple(value)


def _as_set(name: str, value: Any) -> TokenSet:
    if isinstance(value, bytes):
        value = TokenSet(value)
        if value.highest > MAX_SET_TOKEN:
            raise out_of_range(name, value.highest, f"integers in [0, {MAX_SET_TOKEN}]")
    if isinstance(value, TokenSet):
        return value
    tokens = _as_tuple(name, value)
    if not all(type(token) is int and 0 <= token <= MAX_SET_TOKEN for token in tokens):
        tokens = tuple(_integer(name, token, 0, MAX_SET_TOKEN) for token in tokens)
    return TokenSet.of(tokens)


def _integer(name: str, value: Any, low: int, high: int) -> int:
    """The value as a plain int; NumPy's integers are integers too."""
    if isinstance(value, bool) or not isinstance(value, Integral) or not low <= int(value) <= high:
        raise out_of_range(name, value, f"an integer in [{low}, {high}]")
    return int(value)


def _number(name: str, value: Any, low: float, high: float, *, above: bool = False) -> float:
    """The value as a plain float; a NaN is in no range, and an int too large for a float is compared as it is."""
    real = isinstance(value, Real) and not isinstance(value, bool)
    if not real or not low <= value <= high or (above and float(value) == low):
        raise out_of_range(name, value, f"a number in {'(' if above else '['}{low:g}, {high:g}]")
    return float(value)


def _set(params: SamplingParams, name: str, value: object) -> None:
    object.__setattr__(params, name, value)


def _check_counts(p: SamplingParams) -> None:
    _set(p, "n", _integer("n", p.n, 1, MAX_SAMPLES))
    _set(p, "top_k", _integer("top_k", p.top_k, -1, INT64_MAX))
    ranges = (
        ("best_of", p.n, MAX_SAMPLES),
        ("seed", -INT64_MAX - 1, INT64_MAX),
        ("max_tokens", 1, INT32_MAX),
        ("logprobs", 0, MAX_LOGPROBS),
        ("prompt_logprobs", 0, MAX_LOGPROBS),
    )
    for name, low, high in ranges:
        if getattr(p, name) is not None:
            _set(p, name, _integer(name, getattr(p, name), low, high))
    most = INT32_MAX if p.max_tokens is None else p.max_tokens
    _set(p, "min_tokens", _integer("min_tokens", p.min_tokens, 0, most))
    for name in ("ignore_eos", "include_stop_str_in_output", "detokenize", "skip_special_tokens"):
        if not isinstance(getattr(p, name), bool):
            raise out_of_range(name, getattr(p, name), "true or false")


def _check_numbers(p: SamplingParams) -> None:
    _set(p, "temperature", _number("temperature", p.temperature, 0.0, 1e4))
    _set(p, "top_p", _number("top_p", p.top_p, 0.0, 1.0, above=True))
    _set(p, "min_p", _number("min_p", p.min_p, 0.0, 1.0))
    for name in ("presence_penalty", "frequency_penalty"):
        _set(p, name, _number(name, getattr(p, name), -2.0, 2.0))
    _set(p, "repetition_penalty", _number("repetition_penalty", p.repetition_penalty, 0.0, 1e3, above=True))
    if p.logit_bias is not None:
        if not isinstance(p.logit_bias, Mapping) or len(p.logit_bias) > MAX_LIST_LENGTH:
            raise out_of_range("logit_bias", type(p.logit_bias).__name__, f"a map of at most {MAX_LIST_LENGTH} entries")
        biases = ((_integer("logit_bias key", token, 0, INT32_MAX), bias) for token, bias in p.logit_bias.items())
        _set(p, "logit_bias", {token: _number(f"logit_bias[{token}]", bias, -100.0, 100.0) for token, bias in biases})


def _check_lists(p: SamplingParams) -> None:
    if len(p.stop) > MAX_STOP_STRINGS:
        raise out_of_range("stop", f"{len(p.stop)} strings", f"at most {MAX_STOP_STRINGS} strings")
    for text in p.stop:
        if not isinstance(text, str) or not 1 <= len(text) <= MAX_STOP_LENGTH:
            shown = text if not isinstance(text, str) or len(text) < 40 else f"{len(text)} characters"
            raise out_of_range("stop", shown, f"strings of 1 to {MAX_STOP_LENGTH} characters")
    if p.stop and not p.detokenize:
        raise InvalidRequestError("stop strings need detokenize=True, got detokenize=False", param="stop")
    _check_bad_words(p.bad_words)
    if len(p.stop_token_ids) > MAX_LIST_LENGTH:
        allowed = f"at most {MAX_LIST_LENGTH} entries"
        raise out_of_range("stop_token_ids", f"{len(p.stop_token_ids)} entries", allowed)
    _set(p, "stop_token_ids", tuple(_integer("stop_token_ids", token, 0, INT32_MAX) for token in p.stop_token_ids))
    if p.allowed_token_ids is not None and not p.allowed_token_ids:
        raise InvalidRequestError("allowed_token_ids must not be empty, got []", param="allowed_token_ids")


def _check_bad_words(words: Sequence[Any]) -> None:
    if len(words) > MAX_LIST_LENGTH:
        raise out_of_range("bad_words", f"{len(words)} entries", f"at most {MAX_LIST_LENGTH} entries")
    for text in words:
        if not isinstance(text, str) or not text:
            raise out_of_range("bad_words", text, "non-empty strings")
        if len(text) > MAX_BAD_WORD_LENGTH:
            allowed = f"strings of 1 to {MAX_BAD_WORD_LENGTH} characters"
            raise out_of_range("bad_words", f"{len(text)} characters", allowed)
    total = sum(map(len, words))
    if total > MAX_BAD_WORDS_LENGTH:
        allowed = f"at most {MAX_BAD_WORDS_LENGTH} characters together"
        raise out_of_range("bad_words", f"{total} characters", allowed)


def check_vocabulary(params: SamplingParams, vocab_size: int) -> None:
    """Raises InvalidRequestError if a token id in ``params`` lies outside ``[0, vocab_size)``."""
    allowed = params.allowed_token_ids
    listed = (
        ("logit_bias", params.logit_bias or ()),
        ("allowed_token_ids", [allowed.highest] if isinstance(allowed, TokenSet) else ()),
        ("stop_token_ids", params.stop_token_ids),
    )
    for name, tokens in listed:
        for token in tokens:
            if token >= vocab_size:
                raise out_of_range(name, token, f"token ids in [0, {vocab_size - 1}]")
