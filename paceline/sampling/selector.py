"""Which members of a group go on and which are handed back; knows nothing of logits or of how members are run."""

from __future__ import annotations

from typing import Protocol

from paceline.core.batch import Verdict
from paceline.core.registry import Registry
from paceline.core.request import FinishReason, Group, Request
from paceline.core.step import StepPlan


class Selector(Protocol):
    """Sits between the verifier and the accepting of tokens, and at the end chooses what a call returns."""

    def select(self, plan: StepPlan, verdict: Verdict) -> Verdict:
        """The verdict to accept: as it was given, or with other tokens.

        Members of a group that compete, as beams do, are a matter of this method: it sees the whole step, and a
        request of ``plan`` names its group.
        """
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

    def select(self, plan: StepPlan, verdict: Verdict) -> Verdict:  # noqa: ARG002
        return verdict

    def finish(self, group: Group) -> list[Request]:
        members = sorted(group.members, key=lambda member: member.sample_index)
        if len(members) <= group.params.n:
            return members
        return sorted(members, key=_unlikeliness)[: group.params.n]


def _unlikeliness(member: Request) -> tuple[bool, float]:
    return member.finish_reason is FinishReason.ERROR, -member.cumulative_logprob


selectors.add("sample")(SampleSelector())
