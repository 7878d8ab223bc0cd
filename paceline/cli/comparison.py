"""Knows how to ask one service the same question with speculation off and on, and what follows from the answers."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from paceline.cli.loopback import ServiceError
from paceline.cli.token_spans import Span, TokenSpans

if TYPE_CHECKING:
    import httpx

Show = Callable[[Span], None]


@dataclass(frozen=True, slots=True)
class Question:
    text: str
    temperature: float = 0.0
    seed: int = 0
    max_tokens: int = 80


@dataclass(slots=True)
class StreamedAnswer:
    """One streamed answer and what the service says of it."""

    spans: list[Span]
    num_tokens: int
    seconds_per_token: float | None
    """Mean over the tokens after the first; None with fewer than two."""
    num_drafted: int
    num_accepted: int
    mean_acceptance_length: float

    @property
    def text(self) -> str:
        return "".join(text for text, _ in self.spans)


@dataclass(slots=True)
class ServiceComparison:
    """A question's answers, in the order in which they were asked: off, on, off, on."""

    question: Question
    plain: list[StreamedAnswer] = field(default_factory=list)
    speculated: list[StreamedAnswer] = field(default_factory=list)

    @property
    def identical(self) -> bool:
        return len({answer.text for answer in self.plain + self.speculated}) == 1

    @property
    def ratios(self) -> list[float]:
        """Per pair, how many times faster the speculated answer's tokens came."""
        return [
            off.seconds_per_token / on.seconds_per_token
            for off, on in zip(self.plain, self.speculated, strict=True)
            if off.seconds_per_token and on.seconds_per_token
        ]


def ask(client: httpx.Client, question: Question, *, speculation: bool, show: Show | None = None) -> StreamedAnswer:
    """Streams one answer; ``show`` sees its parts as they come.

    Raises:
        ServiceError: the service refused, or the stream broke off.
    """
    body = {
        "messages": [{"role": "user", "content": question.text}],
        "stream": True,
        "speculation": speculation,
        "max_tokens": question.max_tokens,
        "temperature": question.temperature,
        "seed": question.seed,
    }
    spans: list[Span] = []
    splitter = TokenSpans()
    with client.stream("POST", "/chat", json=body) as response:
        if response.status_code != 200:
            response.read()
            raise ServiceError(f"the service answered {response.status_code}: {response.text[:300]}")
        for event in _events(response):
            if "error" in event:
                raise ServiceError(f"the service failed: {event['error']['message']}")
            for span in splitter.split(event["delta"], event["tokens"], event["drafted"]):
                spans.append(span)
                if show is not None:
                    show(span)
            if "metrics" in event:
                return _answer(spans, event)
    raise ServiceError("the stream ended without its last event\nTry paceline serve and look at its log.")


def _events(response: httpx.Response) -> Iterator[dict[str, Any]]:
    from httpx_sse import EventSource

    # Not the response's own lines: those end at U+2028 too, which may stand in an answer.
    for event in EventSource(response).iter_sse():
        yield json.loads(event.data)


def _answer(spans: list[Span], event: Mapping[str, Any]) -> StreamedAnswer:
    metrics = event["metrics"]
    return StreamedAnswer(
        spans=spans,
        num_tokens=event["usage"]["completion_tokens"],
        seconds_per_token=metrics["time_per_output_token"],
        num_drafted=metrics["drafted_tokens"],
        num_accepted=metrics["accepted_tokens"],
        mean_acceptance_length=metrics["mean_acceptance_length"],
    )


def tokens_per_second(answers: Sequence[StreamedAnswer]) -> float | None:
    """Over all answers: tokens after each first one, by the time they took."""
    timed = [(answer.num_tokens - 1, answer.seconds_per_token) for answer in answers if answer.seconds_per_token]
    seconds = sum(count * each for count, each in timed)
    return sum(count for count, _ in timed) / seconds if seconds else None


def summary(comparisons: Sequence[ServiceComparison]) -> dict[str, Any]:
    """The figures over some questions."""
    plain = [answer for one in comparisons for answer in one.plain]
    speculated = [answer for one in comparisons for answer in one.speculated]
    ratios = [ratio for one in comparisons for ratio in one.ratios]
    drafted = sum(answer.num_drafted for answer in speculated)
    steps = sum(answer.num_tokens / answer.mean_acceptance_length for answer in speculated)
    return {
        "tokens_per_second_off": tokens_per_second(plain),
        "tokens_per_second_on": tokens_per_second(speculated),
        "speedup": statistics.median(ratios) if ratios else None,
        "num_pairs": len(ratios),
        "num_drafted": drafted,
        "num_accepted": sum(answer.num_accepted for answer in speculated),
        "acceptance": sum(answer.num_accepted for answer in speculated) / drafted if drafted else None,
        "mean_acceptance_length": sum(answer.num_tokens for answer in speculated) / steps if steps else None,
        "identical": all(one.identical for one in comparisons),
    }
