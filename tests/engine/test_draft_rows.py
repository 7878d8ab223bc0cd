"""A drafter's row of NaN is nobody's: not its request's next round's, not the prefix index's, not a free page's."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch

from paceline import SamplingParams
from paceline.cache.prefix import LruPrefixIndex
from paceline.runner import EagerBuilder
from tests.support.calls import begin, finish, greedy, random_prompt
from tests.support.engines import Models, one_by_one
from tests.support.executors import around_passes

PROMPT = random_prompt(1, 9)


@pytest.mark.parametrize("verifier", ["match", "block"])
@pytest.mark.parametrize("mends", [True, False], ids=["as it is", "planted bug"])
def test_a_drafted_row_of_nan_is_not_shared(mends, verifier, models: Models, monkeypatch) -> None:
    """The token before it stands, but its own K/V are no good: neither the index nor a free page may hold them."""
    if not mends:
        for part in ("_take_back", "_fall_back"):
            monkeypatch.setattr(EagerBuilder, part, lambda *_: None)
    draft = copy.deepcopy(models.target)
    healthy = draft.embedding.tokens.weight.detach().clone()
    speculation = {"method": "draft_model", "model": "self", "num_speculative_tokens": 4, "verifier": verifier}
    engine = Models(models.target, {"self": draft}).engine(speculation, block_size=1)
    passes = itertools.count(1)

    def spoiled(_batch: Any, compute: Callable[[], Any]) -> Any:
        with torch.no_grad():  # the last of the first draft's four passes
            draft.embedding.tokens.weight.copy_(healthy * torch.nan if next(passes) == 4 else healthy)
        return compute()

    around_passes(engine.proposer.inner.runner, spoiled)
    one_by_one(engine)
    params = greedy(max_tokens=5, ignore_eos=True)
    first, again = (finish(engine, [begin(engine, PROMPT, params)]) for _ in range(2))
    plain = models.engine()
    assert first == again == finish(plain, [begin(plain, PROMPT, params)])
    assert engine.counters.accepted_per_position[2] == 2
    pages = torch.arange(1, engine.cache.groups[1].pages.num_pages + 1)
    assert all(bool(cells.isfinite().all()) for cells in engine.cache.groups[1].store.read(0, pages)) == mends


@pytest.mark.parametrize("mends", [True, False], ids=["as it is", "planted bug"])
def test_a_prompt_that_spoils_the_drafters_cache_spoils_one_draft(mends, models: Models, monkeypatch) -> None:
    """A call without room for a draft shares K/V that no logits have proved finite: only the next call finds out."""
    if not mends:
        monkeypatch.setattr(LruPrefixIndex, "discard", lambda *_: None)
    draft = copy.deepcopy(models.target)
    healthy = draft.embedding.tokens.weight.detach().clone()
    speculation = {"method": "draft_model", "model": "self", "num_speculative_tokens": 4}
    engine = Models(models.target, {"self": draft}).engine(speculation, block_size=1)
    plain = models.engine()

    def finished(params: SamplingParams) -> list[list[list[int]]]:
        return finish(engine, [begin(engine, PROMPT, params)])

    with torch.no_grad():
        draft.embedding.tokens.weight.fill_(torch.nan)
        finished(greedy(max_tokens=1))
        draft.embedding.tokens.weight.copy_(healthy)
    params = greedy(max_tokens=5, ignore_eos=True)
    expected = finish(plain, [begin(plain, PROMPT, params)])
    rejected = []
    for _ in range(3):
        assert finished(params) == expected
        rejected.append(engine.proposer.counters.num_rejected_drafts)
    assert rejected == ([1, 1, 1] if mends else [1, 2, 3])
    assert not mends or engine.cache.num_prefix_hits == 3 * (len(PROMPT) - 1)
