"""Knows how a running service becomes the two sides of an experiment; nothing of how it was started."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from paceline.benchmark.acceptance import acceptance
from paceline.benchmark.arrivals import Load
from paceline.benchmark.client import Answers, Body, Endpoint, RequestChain, Served, send_load
from paceline.benchmark.controls import Control
from paceline.benchmark.in_process import HIGHER_IS_BETTER, Workload
from paceline.benchmark.tokens import first_token_by_turn, mean_inter_token_latency, token_figures
from paceline.benchmark.trial import Experiment, TrialError, TrialResult, Variant
from paceline.benchmark.workloads import Dialogue

SALTED = slice(1, 3)
"""Places of a prompt that tell one trial's prompts from another's; the first stays, as it may open every prompt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """One side of a benchmark of services."""

    service: Endpoint
    label: str
    speculate: bool = True
    number: int
    """0 or 1: which side; its trials' prompts differ from the other's, so that neither finds the other's prefixes."""


def experiment(
    services: tuple[Endpoint, Endpoint],
    control: Control,
    shape: Workload,
    load: Load,
    *,
    metric: str,
    seed: int,
    salts: Sequence[int],
) -> Experiment:
    """The service as it is, beside the one without what ``control`` takes away (the same, if a call can say so).

    Args:
        services: the subject's and the control's.
        salts: token ids that may stand for one another in a prompt.
    """
    sides = [
        Serving(service=services[0], label="as configured", number=0),
        Serving(service=services[1], label=control.label, speculate=control.speculate, number=1),
    ]
    first, second = (Variant(one.label, _trial(one, shape, load, seed, salts)) for one in sides)
    return Experiment(
        name=f"{load.name}, {shape.name}",
        parameters={**shape.parameters, "load": load.name},
        subject=first,
        control=second,
        metric=metric,
        lower_is_better=metric not in HIGHER_IS_BETTER,
    )


def _trial(side: Serving, shape: Workload, load: Load, seed: int, salts: Sequence[int]) -> Callable[[int], TrialResult]:
    model = _get(side.service, "/v1/models")["data"][0]["id"]

    def run(pair: int) -> TrialResult:
        dialogues = shape.dialogues(pair)
        salt = 2 * (pair % 2**20) + side.number

        def conversation(number: int, dialogue: Dialogue) -> RequestChain:
            def body(answers: Answers) -> Body:
                prompt = salted(dialogue.prompt(answers), salt, salts)
                return _body(model, prompt, shape, seed=seed + number, speculate=side.speculate)

            return RequestChain(body, dialogue.num_turns)

        conversations = [conversation(number, dialogue) for number, dialogue in enumerate(dialogues)]
        before = _get(side.service, "/stats")["speculation"]
        seconds, served = asyncio.run(send_load(side.service, conversations, load, seed=seed + pair))
        after = _get(side.service, "/stats")["speculation"]
        categories = [dialogues[one.conversation].category for one in served]
        return _sample(side, seconds, served, categories, acceptance(before, after, [one.times for one in served]))

    return run


def salted(tokens: Sequence[int], salt: int, salts: Sequence[int]) -> list[int]:
    """The tokens, the second and third replaced by ``salt`` written in the digits ``salts``: as many, but different."""
    found = list(tokens)
    places = range(len(found))[SALTED] or range(len(found))
    for place in places:
        salt, digit = divmod(salt, len(salts))
        found[place] = salts[digit]
    return found


def _body(model: str, prompt: list[int], shape: Workload, *, seed: int, speculate: bool) -> Body:
    return {
        "model": model,
        "prompt": prompt,
        "max_tokens": shape.output_length,
        "temperature": shape.temperature,
        "seed": seed,
        "ignore_eos": shape.ignore_eos,
        "speculation": speculate,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def _sample(
    side: Serving, seconds: float, served: Sequence[Served], categories: Sequence[str], accepted: Mapping[str, Any]
) -> TrialResult:
    answered = [one for one in served if one.error is None]
    errors = [one.error for one in served if one.error is not None]
    if not answered:
        raise TrialError(f"{side.label}: no request was answered: {errors[0]}\nTry fewer at a time, or a lower rate.")
    figures = token_figures([one.times for one in answered], seconds=seconds)
    prompt_tokens = sum(one.num_prompt_tokens for one in answered)
    figures |= {
        "num_failed": len(errors),
        "requests_per_second": len(answered) / seconds,
        "mean_in_flight": sum(one.times.times[-1] - one.times.start for one in answered if one.times.times) / seconds,
        "cached_share": sum(one.num_cached_tokens for one in answered) / prompt_tokens if prompt_tokens else 0.0,
    }
    return TrialResult(
        figures,
        {
            "acceptance": dict(accepted),
            "errors": errors,
            "categories": _by_category(served, categories),
            "turns": first_token_by_turn([(one.turn, one.times) for one in answered]),
            "answers": [_kept(one, category) for one, category in zip(served, categories, strict=True)],
        },
    )


def _by_category(served: Sequence[Served], categories: Sequence[str]) -> dict[str, float]:
    found = {}
    for name in dict.fromkeys(categories):
        times = [one.times for one, own in zip(served, categories, strict=True) if own == name and one.error is None]
        value = mean_inter_token_latency(times)
        if value is not None:
            found[name] = value
    return found


def _kept(one: Served, category: str) -> dict[str, Any]:
    return {
        "category": category,
        "turn": one.turn,
        "num_prompt_tokens": one.num_prompt_tokens,
        "num_cached_tokens": one.num_cached_tokens,
        "num_tokens": len(one.times.times),
        "error": one.error,
        "steps": [[round(time - one.times.start, 7), count] for time, count in one.times.steps],
    }


def _get(service: Endpoint, path: str) -> dict[str, Any]:
    try:
        response = httpx.get(f"{service.url}{path}", headers=dict(service.headers), timeout=60, trust_env=False)
        response.raise_for_status()
        found: dict[str, Any] = response.json()
    except (httpx.HTTPError, ValueError) as error:
        cause = str(error).split("\n")[0]  # httpx adds where to read about statuses
        raise TrialError(f"{service.url}{path}: {cause}\nIs it a running paceline serve?") from None
    return found


def context_of(service: Endpoint) -> int:
    """The longest prompt and answer together that the service takes, in tokens."""
    length: int = _get(service, "/v1/models")["data"][0]["max_model_len"]
    return length
