"""Which members of a group go on and which are handed back; knows nothing of logits or of how members are run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from paceline.core.registry import Registry
from paceline.core.request import FinishReason, Group, Request


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberVerdict:
    """One member's part of a step's verdict (the lists of ``core.batch.Verdict`` for that member).

    ``parent`` is the member whose tokens and pages this one continues: itself, unless a selector says otherwise.
    """

    member: Request
    parent: Request
    tokens: list[int]
    path: list[int]
    rows: list[int]


class Selector(Protocol):
    """Sits between the verifier and accepting tokens, once per group and step.

    ``select`` may return other verdicts than it was given: other tokens, or another ``parent`` for a member. A
    verdict whose parent is not its member asks the engine to first drop what the member has and fork the parent's
    state from before this step (known tokens and pages; for this room, ``leave`` and then ``join`` with these
    tokens), then to accept ``tokens``. It must return one verdict per member that is to go on, and name only
    parents of the same group. Beam search is such a selector.
    """

    def select(self, group: Group, verdicts: list[MemberVerdict]) -> list[MemberVerdict]:
        """The verdicts to accept; ``verdicts`` are of the members that ran in this step."""
        ...

    def finish(self, group: Group) -> list[Request]:
        """The members to hand back, in the order in which the user sees them; every member has finished."""
        ...


selectors: Registry[Selector] = Registry("selector")


class SampleSelector:
    """Members are independent samples; of ``best_of`` of them the ``n`` likeliest are handed back.

    Likeliest is the highest cumulative log-probability, ties going to the lower sample index, and members that
    ended in an error coming last. Where every member is handed back they keep their order.
    """

    def select(self, group: Group, verdicts: list[MemberVerdict]) -> list[MemberVerdict]:  # noqa: ARG002
        return verdicts

    def finish(self, group: Group) -> list[Request]:
        members = sorted(group.members, key=lambda member: member.sample_index)
        if len(members) <= group.params.n:
            return members
        return sorted(members, key=_unlikeliness)[: group.params.n]


def _unlikeliness(member: Request) -> tuple[bool, float]:
    return member.finish_reason is FinishReason.ERROR, -member.cumulative_logprob


selectors.add("sample")(SampleSelector())
