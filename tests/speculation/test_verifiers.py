"""What becomes of rows: ragged drafts, broken and banned rows, ties, greedy requests; on the real pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from paceline.core.batch import SampleRows, Verdict
from paceline.core.params import SamplingParams
from paceline.core.request import FinishReason, Request
from paceline.core.step import DraftTrees
from paceline.sampling import Pipeline
from paceline.speculation import verifiers
from paceline.speculation.verify import BlockVerifier, TokenVerifier
from paceline.speculation.verify.chains import Chains
from tests.speculation import plants
from tests.support.engines import Job, Models, run
from tests.support.seating import Room, chain_rows, make_request, random_logits

VOCAB = 9
RULES = [TokenVerifier(), BlockVerifier()]
by_rule = pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)


class Table:
    """Requests with a chain each, whose drafts were drawn from the softmax of random logits, and the target's rows."""

    def __init__(
        self, drafts: Sequence[Sequence[int] | None], *, certain: bool = False, device: str = "cpu", **controls: Any
    ) -> None:
        """None in place of a draft is a request in mid-prompt: it has no rows."""
        self.room = Room(vocab=VOCAB, capacity=len(drafts), device=device)
        self.requests = [self.room.join(make_request(seed=seed, **controls)) for seed in range(len(drafts))]
        counts = np.array([len(draft or ()) for draft in drafts], dtype=np.int32)
        tokens = np.full((len(drafts), max(counts) + 1), 77, dtype=np.int32)  # padding is never looked at
        for number, draft in enumerate(drafts):
            tokens[number, : counts[number]] = draft or ()
        q = random_logits(tokens.size, VOCAB, seed=5).softmax(-1).float().view(*tokens.shape, VOCAB)
        self.drafts = DraftTrees.chains(tokens, counts, None if certain else q.to(device))
        parts = [
            chain_rows(request, list(draft))
            for request, draft in zip(self.requests, drafts, strict=True)
            if draft is not None
        ]
        depth = max(part.path.shape[1] for part in parts)
        pad = [np.pad(part.path, ((0, 0), (0, depth - part.path.shape[1])), constant_values=-1) for part in parts]
        self.rows = SampleRows(
            np.concatenate([part.seats for part in parts]),
            np.concatenate([part.output_index for part in parts]),
            np.concatenate(pad),
        )
        self.start = np.cumsum([0, *(0 if draft is None else len(draft) + 1 for draft in drafts)]).astype(np.int32)
        self.logits = random_logits(len(self.rows), VOCAB, seed=6).to(device)

    def verify(self, rule: Any) -> Verdict:
        return rule.verify(self.logits, self.rows, self.drafts, self.start, self.room.pipeline)


@by_rule
def test_a_step_of_drafts_of_all_lengths(rule: Any) -> None:
    """Each request gets what it gets alone, whoever is verified beside it; rows and path fit the tokens."""
    drafts = [[1, 2, 3], [], [4], None, [5, 6], [7, 8, 0]]
    table = Table(drafts)
    verdict = table.verify(rule)
    assert verdict.tokens[3] == verdict.path[3] == verdict.rows[3] == []
    for number, draft in enumerate(drafts):
        if draft is None:
            continue
        count = len(verdict.path[number])
        first = int(table.start[number])
        assert verdict.tokens[number][:count] == draft[:count]
        assert len(verdict.tokens[number]) == count + 1
        assert verdict.path[number] == list(range(count))
        assert verdict.rows[number] == list(range(first, first + count + 1))
        alone = _only(table, number).verify(rule)
        assert alone.tokens == [verdict.tokens[number]]
    assert 0 < sum(map(len, verdict.path)) < sum(len(draft or ()) for draft in drafts)


def _only(table: Table, number: int) -> Table:
    one = object.__new__(Table)
    chosen = slice(int(table.start[number]), int(table.start[number + 1]))
    count = int(table.drafts.counts[number])
    one.room, one.logits = table.room, table.logits[chosen]
    one.rows = SampleRows(table.rows.seats[chosen], table.rows.output_index[chosen], table.rows.path[chosen])
    one.start = np.array([0, chosen.stop - chosen.start], dtype=np.int32)
    one.drafts = DraftTrees.chains(
        table.drafts.tokens[number : number + 1, :count],
        table.drafts.counts[number : number + 1],
        table.drafts.probs[number : number + 1, :count],
    )
    return one


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@by_rule
@pytest.mark.parametrize("certain", [False, True])
def test_a_gpu_decides_alike(rule: Any, certain: bool) -> None:
    drafts = [[1, 2, 3], [], [4], None, [5, 6], [7, 8, 0]] * 4
    here, there = (Table(drafts, certain=certain, device=device) for device in ("cpu", "cuda"))
    assert here.verify(rule) == there.verify(rule)
    found = there.room.pipeline.draft(there.logits, there.rows)
    expected = here.room.pipeline.draft(here.logits, here.rows)
    assert found[0].tolist() == expected[0].tolist()
    assert torch.allclose(found[1].cpu(), expected[1])


@by_rule
def test_without_a_draft_the_token_is_that_of_plain_decoding(rule: Any) -> None:
    table = Table([[], [1, 2], [], [3]], temperature=0.8, top_p=0.9)
    plain = table.room.pipeline.sample(table.logits, table.rows).tolist()
    verdict = table.verify(rule)
    assert [verdict.tokens[0], verdict.tokens[2]] == [[plain[0]], [plain[4]]]
    none = Table([[], []])
    assert none.verify(rule).tokens == [[token] for token in none.room.pipeline.sample(none.logits, none.rows).tolist()]


@by_rule
@pytest.mark.parametrize("certain", [False, True])
def test_greedy_requests_keep_what_the_target_would_say(rule: Any, certain: bool) -> None:
    """Also where logits tie: the lowest token is the one."""
    table = Table([[1, 2], [1, 3], [2, 1], []], certain=certain, temperature=0.0)
    table.logits[:] = 0.0
    table.logits[:, 1:4] = 1.0
    table.logits[1, 2] = 2.0
    if not certain:
        drawn = torch.nn.functional.one_hot(torch.from_numpy(table.drafts.tokens).clamp(max=VOCAB - 1).long(), VOCAB)
        table.drafts = replace(table.drafts, probs=drawn.float())
    assert table.verify(rule).tokens == [[1, 2, 1], [1, 1], [1], [1]]


@by_rule
def test_ties_broken_otherwise_are_caught(rule: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    plants.ties_go_to_the_last(monkeypatch)
    with pytest.raises(AssertionError):
        test_greedy_requests_keep_what_the_target_would_say(rule, False)


@by_rule
@pytest.mark.parametrize("row", [0, 1, 2])
def test_a_row_of_nan_ends_its_own_text_before_it(rule: Any, row: int) -> None:
    table = Table([[1, 2], [3, 4], [5]])
    table.drafts = replace(table.drafts, probs=table.drafts.probs * 1e-6)  # so that whatever the target allows stands
    clean = table.verify(rule)
    assert clean.path[0] == [0, 1]
    table.logits[row] = torch.nan
    verdict = table.verify(rule)
    assert verdict.tokens[0] == clean.tokens[0][:row]
    assert verdict.rows[0] == clean.rows[0][:row]
    assert len(verdict.path[0]) == max(0, row - 1)
    assert (verdict.tokens[1:], verdict.path[1:]) == (clean.tokens[1:], clean.path[1:])
    assert not verdict.dead_ends


@by_rule
def test_a_row_that_allows_nothing_is_a_dead_end(rule: Any) -> None:
    table = Table([[3, 3], [3]], allowed_token_ids=[3], words=((3, 3), (3, 3, 3)))
    verdict = table.verify(rule)
    assert verdict.tokens == [[3], [3]]
    assert verdict.path == [[], []]
    assert not verdict.dead_ends
    for request in table.requests:
        table.room.accept(request, [3])
    follow = Table([[3, 3], [3]], allowed_token_ids=[3], words=((3, 3), (3, 3, 3)), output=[3])
    assert follow.verify(rule).tokens == [[], []]
    assert follow.verify(rule).dead_ends == {0, 1}


class Rejecting(Pipeline):
    """Rejects every draft token, were it as likely as can be."""

    def uniform(self, rows: SampleRows, domain: Any) -> torch.Tensor:
        return torch.ones(len(rows), dtype=torch.float64)


def nothing_left_gives_a_token_of_the_target(rule: Any) -> None:
    table = Table([[1, 2], [3]])
    grid = torch.tensor([[0, 1], [3, 3]])
    table.drafts = DraftTrees.chains(
        table.drafts.tokens[:, :2], table.drafts.counts, table.logits.softmax(-1).float()[grid].contiguous()
    )
    table.logits = table.drafts.probs.double().log()[[0, 0, 1], [0, 1, 0]][[0, 1, 1, 2, 2]]
    table.drafts.probs.mul_(1.0001)  # as rounding may have it
    table.room.pipeline = Rejecting(table.room.state)
    tokens = table.verify(rule).tokens
    plain = table.room.pipeline.sample(table.logits, table.rows)
    assert tokens == [[plain[0]], [plain[3]]]
    assert all(0 <= token < VOCAB for (token,) in tokens)


@by_rule
def test_where_nothing_is_left_to_replace_a_token(rule: Any) -> None:
    """Where p exceeds q nowhere, a rejection, which only rounding can bring about, has no residual."""
    nothing_left_gives_a_token_of_the_target(rule)


@by_rule
def test_a_token_from_nothing_is_caught(rule: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    true = Chains.behind
    monkeypatch.setattr(
        Chains, "behind", lambda self, accepted, scale: (true(self, accepted, scale)[0], accepted == self.counts)
    )
    with pytest.raises(AssertionError):
        nothing_left_gives_a_token_of_the_target(rule)


def test_what_verifiers_ask_of_drafters() -> None:
    needs = {name: (verifiers[name].needs_probs, verifiers[name].takes_trees) for name in verifiers}
    assert needs == {"match": (False, True), "token": (True, False), "block": (True, False)} | {
        "tree": (True, True),
        "traversal": (True, True),
    }


END = 1


def lookups_never_pass_the_end(models: Models, verifier: str) -> None:
    """The prompt's repetitions hold the end-of-sequence token: lookups propose it, and what followed it."""
    prompt = (3, 5, END, 4, 3, 5, END, 4, 3, 5)
    jobs = [Job(prompt, SamplingParams(temperature=1.0, seed=seed, max_tokens=12)) for seed in range(60)]
    engine = models.engine({"method": "ngram", "num_speculative_tokens": 4, "verifier": verifier}, max_num_seqs=64)
    found = [tokens for (tokens,) in run(engine, jobs)]
    assert engine.counters.num_accepted > 0
    assert sum(END in tokens for tokens in found) > 5
    assert all(END not in tokens[:-1] for tokens in found)


@pytest.mark.parametrize("verifier", ["token", "block"])
def test_lookups_never_pass_the_end(verifier: str, narrow: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    lookups_never_pass_the_end(narrow, verifier)

    def accept(self: Request, tokens: list[int]) -> int:
        self.output_token_ids += tokens
        ended = tokens[-1:] == [END]
        self.finish_reason = FinishReason.STOP if ended or len(self.output_token_ids) > 11 else None
        return len(tokens)

    monkeypatch.setattr(Request, "accept", accept)
    with pytest.raises(AssertionError):
        lookups_never_pass_the_end(narrow, verifier)
