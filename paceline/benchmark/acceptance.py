"""Knows how drafts fared over some steps: acceptance rate, by position, accepted length; from the engine's counters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from paceline.benchmark.tokens import TokenTimes


def acceptance(
    before: Mapping[str, Any], after: Mapping[str, Any], answers: Sequence[TokenTimes] = ()
) -> dict[str, Any]:
    """What happened between two reports of ``LLM.stats()["speculation"]``, by vLLM's definitions.

    ``rate`` is accepted / drafted tokens. ``rate_by_position`` is, per depth, how many of all drafts had that token
    accepted. ``length`` is 1 + accepted / drafts: tokens per drafting step, the step's own included.
    ``tokens_per_step`` counts, over the answers, how many steps yielded how many tokens.
    """
    num = {name: after[name] - before[name] for name in ("num_drafts", "num_drafted", "num_accepted")}
    places = zip(before["accepted_per_position"], after["accepted_per_position"], strict=True)
    by_position = [new - old for old, new in places]
    drafts = num["num_drafts"]
    histogram = Counter(count for answer in answers for _, count in answer.steps)
    return {
        **num,
        "rate": num["num_accepted"] / num["num_drafted"] if num["num_drafted"] else None,
        "accepted_by_position": by_position,
        "rate_by_position": [count / drafts for count in by_position] if drafts else [],
        "length": 1 + num["num_accepted"] / drafts if drafts else None,
        "tokens_per_step": {str(size): histogram[size] for size in sorted(histogram)},
    }
