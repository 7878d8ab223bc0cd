"""Knows the ways in which arguments of a call are handed over, vLLM's and transformers' among them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Set, Sized
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

from paceline.core.config import EngineConfig
from paceline.core.errors import InvalidRequestError, shown
from paceline.core.params import ELSEWHERE, SamplingParams
from paceline.core.settings import settings_of

NOTHING: Mapping[str, tuple[Any, ...]] = {
    **dict.fromkeys(("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size"), (1,)),
    **dict.fromkeys(("disable_log_stats", "disable_custom_all_reduce"), (False, True)),
    **dict.fromkeys(("use_tqdm_on_load", "async_scheduling", "disable_cascade_attn"), (False, True)),
    **dict.fromkeys(("trust_remote_code", "skip_tokenizer_init", "disable_sliding_window"), (False,)),
    **dict.fromkeys(("enable_lora", "enable_expert_parallel", "enable_sleep_mode"), (False,)),
    **dict.fromkeys(("task", "runner"), ("auto", "generate")),
    **dict.fromkeys(("load_format", "config_format", "tokenizer_mode"), ("auto", "hf", "safetensors")),
    **dict.fromkeys(("hf_overrides", "limit_mm_per_prompt", "mm_processor_kwargs"), ({},)),
    "enable_chunked_prefill": (True,),
    "generation_config": ("auto",),
    "cpu_offload_gb": (0,),
    "swap_space": (0, 4),
}
"""Options of vLLM's ``LLM`` that there are not here -> the values with which they ask for nothing that is not done."""


def asking(options: Mapping[str, Any], model: Any) -> dict[str, Any]:
    """The options of an ``LLM`` but those that ask for nothing: vLLM's at their defaults, and None for a default."""
    known = settings_of(EngineConfig)
    kept = {}
    for name, value in options.items():
        optional = name in known and known[name].optional
        same_tokenizer = name == "tokenizer" and model is not None and str(value) == str(model)
        asks_nothing = any(value is one or value == one for one in NOTHING.get(name, ()))
        if not ((value is None and not optional) or same_tokenizer or asks_nothing):
            kept[name] = value
    return kept


@contextmanager
def named(place: str, number: int, count: int) -> Iterator[None]:
    """Refusals of one of several prompts say which; those of conversations tell of ``messages``."""
    try:
        yield
    except InvalidRequestError as error:
        if place == "messages" and error.param == "prompt":
            error.param = place
        if count == 1:
            raise
        raise InvalidRequestError(
            f"{place}[{number}] of {count}: {error}", param=error.param, code=error.code
        ) from error


def plain(value: Any) -> Any:
    """Arrays and tensors as Python's lists and numbers, anything else as it is."""
    return value.tolist() if hasattr(value, "tolist") else value


def is_many(value: Any) -> bool:
    """Lists, tuples, generators, ...; nothing without an order, and no text."""
    return isinstance(value, Iterable) and not isinstance(value, str | bytes | bytearray | Mapping | Set)


def one_each(name: str, value: Any, count: int) -> list[Any]:
    """``value`` as one per prompt; what holds several has one per prompt already."""
    value = plain(value)
    each = list(value) if is_many(value) else [value] * count
    if len(each) != count:
        raise InvalidRequestError(f"{count} prompts, but {len(each)} {name}", param=name)
    return each


def params_of_each(params: Any, sampling_params: Any, count: int) -> list[SamplingParams]:
    """The parameters of each prompt, under either name of the argument; None is ``SamplingParams()``."""
    if params is not None and sampling_params is not None:
        raise InvalidRequestError("params and sampling_params are one thing\nGive one of them.", param="params")
    given = sampling_params if params is None else params
    each = one_each("params", SamplingParams() if given is None else given, count)
    for number, wanted in enumerate(each):
        if not isinstance(wanted, SamplingParams):
            with named("params", number, count):
                raise InvalidRequestError(f"params must be SamplingParams, got {type(wanted).__name__}", param="params")
    return each


def check_unknown(others: Mapping[str, Any]) -> None:
    """Raises InvalidRequestError for the first argument that there is not, unless it asks for nothing."""
    for name, value in others.items():
        empty = isinstance(value, Sized) and not len(value)
        if value is None or value is False or value == "auto" or empty:
            continue
        field = ELSEWHERE.get(name, name)
        known = field in {item.name for item in fields(SamplingParams)}
        fix = f"Set {field} in SamplingParams({field}=...)." if known else "Leave it out."
        raise InvalidRequestError(f"there is no argument {name}, got {shown(value)}\n{fix}", param=name)
