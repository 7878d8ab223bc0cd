"""Knows how much a call asks for, and refuses what the service gives to nobody."""

from __future__ import annotations

from paceline.core.errors import InvalidRequestError
from paceline.core.params import SamplingParams
from paceline.engine.overflow import Ask


def check_answers(num_prompts: int, num_samples: int, most: int | None) -> None:
    """Raises InvalidRequestError if the call asks for more than ``most`` answers."""
    wanted = num_prompts * num_samples
    if most is not None and wanted > most:
        fits = num_prompts <= most
        raise InvalidRequestError(
            f"the call asks for {wanted} answers, this service gives at most {most} to one\n"
            + (f"Set n and best_of to at most {most // num_prompts}." if fits else f"Send at most {most} prompts."),
            param="n" if fits else "prompt",
        )


def ask_of(num_prompt: int, params: SamplingParams, context: int, *, generates: bool) -> Ask:
    """What the engine will be asked; it knows besides how much its cache holds."""
    return Ask(
        num_prompt=num_prompt,
        max_tokens=params.max_tokens if generates else 0,
        min_tokens=params.min_tokens if generates else 0,
        context=context,
        longest=context,
        needs_whole_prompt=params.prompt_logprobs is not None,
    )
