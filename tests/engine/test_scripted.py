"""Engines that follow a script say what the script says: the double that other tests trust, and what it would show."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support import proposers
from tests.support.calls import VOCAB_SIZE, assert_idle, begin, finish, greedy, random_prompt, seeded
from tests.support.engines import Job, Models, run
from tests.support.executors import ScriptedModel, ScriptedModels, babble, scripted_models, spell

SPECULATION: dict[str, Any] = {
    "off": None,
    "near": {"method": "draft_model", "model": "near", "num_speculative_tokens": 4},
    "far": {"method": "draft_model", "model": "far", "num_speculative_tokens": 4},
    "ngram": {"method": "ngram", "prompt_lookup_min": 1},
    "tree": {"method": "random_tree", "model": "9"},
}
PROMPTS = [random_prompt(seed, length) for seed, length in ((1, 9), (2, 17), (3, 4))]
GREEDY = greedy(max_tokens=20, ignore_eos=True)


@pytest.fixture(scope="module")
def models() -> Models:
    return scripted_models(VOCAB_SIZE)


def spelled(models: Models) -> list[Any]:
    assert isinstance(models.target, ScriptedModel)
    return [[spell(models.target.script, prompt, GREEDY.max_tokens or 0)] for prompt in PROMPTS]


@pytest.mark.parametrize("cache", ["paged", "static", "none"])
@pytest.mark.parametrize("speculation", SPECULATION)
def test_the_text_is_the_script_s(speculation: str, cache: str, models: Models) -> None:
    expected = spelled(models)
    proposers.TRUTH.update({(tuple(prompt), 0): text for prompt, (text,) in zip(PROMPTS, expected, strict=True)})
    engine = models.engine(SPECULATION[speculation], cache=cache, block_size=4, max_num_batched_tokens=9)
    assert run(engine, [Job(tuple(prompt), GREEDY) for prompt in PROMPTS]) == expected
    assert_idle(engine)


def test_drafts_are_as_good_as_their_names(models: Models) -> None:
    accepted = []
    for name in ("near", "far"):
        engine = models.engine(SPECULATION[name])
        run(engine, [Job(tuple(prompt), GREEDY) for prompt in PROMPTS])
        accepted.append(engine.counters.num_accepted / engine.counters.num_drafted)
    assert accepted[0] > 2 * accepted[1] > 0


@pytest.mark.parametrize("lost", [False, True], ids=["as it is", "planted bug"])
def test_a_page_that_is_not_copied_before_it_is_written_shows(lost: bool, models: Models, monkeypatch) -> None:
    """Members share the prompt's last page until they write to it."""
    if lost:
        monkeypatch.setattr("paceline.cache.stores.DenseStore.copy_page", lambda *_: None)
    jobs = [(prompt, seeded(5, n=3, max_tokens=12)) for prompt in PROMPTS]
    plain, engine = models.engine(cache="none"), models.engine(block_size=4)
    expected = finish(plain, [begin(plain, *job) for job in jobs])
    assert (finish(engine, [begin(engine, *job) for job in jobs]) == expected) != lost


@pytest.mark.parametrize("method", ["ngram", "suffix"])
def test_members_that_fork_a_prompt_draft_as_well_as_one(method: str) -> None:
    """A proposer on the host is told of no fork: it reads the tokens of each new seat."""
    models = ScriptedModels(ScriptedModel(babble(order=1)), {})
    counts = []
    for members in (1, 3):
        engine = models.engine({"method": method, "verifier": "match"}, block_size=4)
        texts = run(engine, [Job((3, 4, 5, 6, 7, 8), greedy(n=members, max_tokens=60, ignore_eos=True))])[0]
        assert texts == [texts[0]] * members
        counts.append((engine.counters.num_drafted, engine.counters.num_accepted))
    (drafted, accepted), of_three = counts
    assert accepted > 0
    assert of_three == (3 * drafted, 3 * accepted)
