"""The sample selector keeps verdicts and hands back the likeliest members."""

import numpy as np

from paceline.core.batch import Verdict
from paceline.core.params import SamplingParams
from paceline.core.request import FinishReason, Group, Request
from paceline.core.step import StepPlan
from paceline.sampling import selectors


def group_of(logprobs, n, best_of=None):
    group = Group("group", [1], SamplingParams(n=n, best_of=best_of))
    for index, logprob in enumerate(logprobs):
        member = Request(f"{index}", group, index, 0, frozenset(), 4, cumulative_logprob=logprob)
        member.finish_reason = FinishReason.STOP
        group.members.append(member)
    return group


def finished(group):
    return [member.sample_index for member in selectors["sample"].finish(group)]


def test_all_members_keep_their_order():
    assert finished(group_of([-3.0, -1.0, -2.0], n=3)) == [0, 1, 2]


def test_the_likeliest_are_handed_back_ties_by_sample_index():
    assert finished(group_of([-3.0, -1.0, -2.0, -1.0], n=3, best_of=4)) == [1, 3, 2]


def test_a_failed_member_is_the_last_choice():
    group = group_of([-3.0, 0.0], n=1, best_of=2)
    group.members[1].finish_reason = FinishReason.ERROR
    assert finished(group) == [0]


def test_verdicts_pass_through():
    verdict, nobody = Verdict(tokens=[[1]], path=[[]], rows=[[0]]), np.zeros(0, dtype=np.int32)
    plan = StepPlan([], nobody, nobody, nobody, nobody)
    assert selectors["sample"].select(plan, verdict) is verdict
