"""Drafts of another tokenizer: texts are those without drafts, and the draft's own pages never leak."""

from __future__ import annotations

import shutil
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from paceline.core.call import CallOptions
from paceline.core.errors import ConfigError
from paceline.core.params import SamplingParams
from paceline.engine.engine import Engine
from paceline.engine.fit import fit
from paceline.engine.input_processor import InputProcessor
from paceline.engine.pair import EMBEDDED_DRAFT, EMBEDDED_TARGET
from tests.support.engines import Job, Tokens, drive, preempt_every, run
from tests.support.native import needs_library
from tests.support.other_tokens import (
    DRAFTS,
    check_own_pages,
    engine_of,
    make,
    none_left,
    random_ids,
    tokenizer_of,
)
from tests.support.vocabularies import renumbered

METHODS = ("slem", "tli")
GREEDY = SamplingParams(temperature=0.0, max_tokens=10)
TEXT = "The quick brown fox jumps over the lazy dog; naïve café, 東京 🙂. What is 12 + 30?\n\n  Fine.  "


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("other"))


def jobs_of(root: Path, target: str = "target") -> list[Job]:
    text = tokenizer_of(root, target).encode(TEXT)
    return [
        Job(tuple(text), SamplingParams(temperature=0.0, max_tokens=20, ignore_eos=True)),
        Job(tuple(text[:9]), SamplingParams(temperature=0.9, seed=4, n=2, max_tokens=17, ignore_eos=True)),
        Job(tuple(text[4:25]), SamplingParams(temperature=0.7, seed=1, max_tokens=14, repetition_penalty=1.2)),
        Job(tuple(text[:1]), SamplingParams(temperature=1.2, seed=9, max_tokens=22, top_p=0.9, ignore_eos=True)),
        Job(
            (0, *text[:5], 1, 0, *text[9:14]),
            SamplingParams(temperature=0.8, seed=3, max_tokens=15, logit_bias={40: 2.0, 270: 1.0}),
        ),
    ]


@cache
def plain(root: Path, target: str = "target") -> list[Tokens]:
    return run(engine_of(root, None, target=target), jobs_of(root, target))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("draft", DRAFTS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_num_batched_tokens": 9, "block_size": 4},
        {"cache": "static", "enable_prefix_caching": False},
        {"cache": "none", "attention_backend": "reference"},
        {"num_blocks": 45, "block_size": 4, "max_model_len": 160},
    ],
    ids=["plain", "chunks", "static", "recomputed", "few pages"],
)
def test_texts_are_those_without_drafts(method: str, draft: str, options: dict[str, Any], root: Path) -> None:
    engine, again = engine_of(root, method, draft, **options), preempt_every(4)

    def hook(engine: Engine, step: int) -> None:
        check_own_pages(engine)
        again(engine, step)
        check_own_pages(engine)

    jobs = jobs_of(root)
    assert run(engine, jobs, hook=hook) == plain(root)
    none_left(engine)
    assert run(engine, jobs, hook=check_own_pages) == plain(root)  # with what the prefix index found
    none_left(engine)
    assert engine.counters.num_drafted > 0


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models that write English, and a draft whose tokens are numbered anew."""
    root = tmp_path_factory.mktemp("pair")
    for name, source in {"target": EMBEDDED_TARGET, "draft": EMBEDDED_DRAFT}.items():
        shutil.copytree(source, root / name)
        renumbered(source, root / f"other {name}")
    return root


def counts_of(pair: Path, method: str, draft: str, temperature: float) -> tuple[int, int]:
    """Drafted and accepted tokens."""
    tokenizer = tokenizer_of(pair)
    params = SamplingParams(temperature=temperature, seed=3, max_tokens=40, ignore_eos=True)
    jobs = [Job(tuple(tokenizer.encode(text)), params) for text in ("Once upon a time there was", "The cat and the")]
    engine = engine_of(pair, method, draft, depth=4, model_impl="auto", dtype="float32", max_model_len=200)
    assert run(engine, jobs) == run(engine_of(pair, None, model_impl="auto", dtype="float32"), jobs)
    return engine.counters.num_drafted, engine.counters.num_accepted


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_shared_tokens_are_as_good_as_the_same_tokens(temperature: float, pair: Path) -> None:
    """A draft that numbers its tokens otherwise shares the target's noise all the same."""
    for name in ("target", "draft"):
        expected = counts_of(pair, "draft_model", name, temperature)
        assert counts_of(pair, "tli", f"other {name}", temperature) == expected
        assert expected[1] > (0 if name == "draft" else 0.9 * expected[0])


def test_retokenised_text_is_accepted(pair: Path) -> None:
    drafted, accepted = counts_of(pair, "slem", "other target", 0.0)
    assert accepted > 0.5 * drafted > 10


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("draft", ["target", "other"])
def test_a_target_of_pieces(method: str, draft: str, root: Path) -> None:
    """SentencePiece's spaces and byte tokens become byte-level ones."""
    engine = engine_of(root, method, draft, target="pieces")
    assert run(engine, jobs_of(root, "pieces"), hook=check_own_pages) == plain(root, "pieces")
    assert engine.counters.num_drafted > 30
    none_left(engine)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("draft", [*DRAFTS, "short"])
def test_random_token_ids(method: str, draft: str, root: Path) -> None:
    """Among them halves of characters, special tokens anywhere, and ids that the tokenizer lacks."""
    jobs = [
        Job(random_ids(seed, 1 + 13 * seed), SamplingParams(temperature=1.5, seed=seed, max_tokens=25, ignore_eos=True))
        for seed in range(6)
    ]
    engine = engine_of(root, method, draft)
    assert run(engine, jobs, hook=check_own_pages) == run(engine_of(root, None), jobs)
    none_left(engine)


@needs_library
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("eager", [False, True])
def test_native_passes_draft_too(method: str, eager: bool, root: Path) -> None:
    options = {"dtype": "float32", "model_impl": "native", "enforce_eager": eager}
    expected = run(engine_of(root, None, **options), jobs_of(root))
    for draft in DRAFTS:
        engine = engine_of(root, method, draft, **options)
        assert run(engine, jobs_of(root), hook=check_own_pages) == expected
        none_left(engine)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("verifier", ["token", "block"])
def test_a_seed_repeats_its_text_under_ratio_rules(method: str, verifier: str, root: Path) -> None:
    """Tokens are drawn from what they carry, or certain."""
    engine = engine_of(root, method, "twin", verifier=verifier)
    assert run(engine, jobs_of(root)) == run(engine_of(root, method, "twin", verifier=verifier), jobs_of(root))
    assert engine.counters.num_accepted > 0
    none_left(engine)


@pytest.mark.parametrize("method", METHODS)
def test_aborts_and_windows_that_slide_give_pages_back(method: str, root: Path) -> None:
    engine = engine_of(root, method, "twin", max_model_len=48, context_overflow="slide", block_size=4)
    intake = InputProcessor(engine, None)
    params = SamplingParams(temperature=0.8, seed=2, max_tokens=90, ignore_eos=True)
    calls = [intake.group(list(random_ids(seed, 20)), params, options=CallOptions()) for seed in range(3)]
    for call in calls:
        engine.add(call)
    for step in range(8):
        engine.step()
        check_own_pages(engine, step)
    engine.abort(calls[1])
    check_own_pages(engine)
    drive(engine, calls, check_own_pages)
    none_left(engine)
    expected = engine_of(root, None, max_model_len=48, context_overflow="slide", block_size=4)
    jobs = [Job(random_ids(seed, 20), params) for seed in (0, 2)]
    assert [[m.output_token_ids for m in calls[place].members] for place in (0, 2)] == run(expected, jobs)


@pytest.mark.parametrize("method", METHODS)
def test_a_draft_that_returns_nan_loses_its_requests_not_the_method(method: str, root: Path) -> None:
    """And its pages are clean for whoever has them next."""
    engine = engine_of(root, method, "twin")
    assert engine.proposer is not None
    model = engine.proposer.model
    assert model is not None
    table = model.embedding.tokens.weight
    kept = table.clone()
    table.fill_(torch.nan)
    assert run(engine, jobs_of(root), hook=check_own_pages) == plain(root)
    assert engine.counters.num_drafted == 0
    table.copy_(kept)
    assert run(engine, jobs_of(root), hook=check_own_pages) == plain(root)
    assert engine.counters.num_drafted > 30
    none_left(engine)


@pytest.mark.parametrize("method", METHODS)
def test_a_text_that_cannot_be_followed_harms_no_other(method: str, root: Path) -> None:
    """This tokenizer of the draft raises on letters that it lacks."""
    engine = engine_of(root, method, "words")
    jobs = [*jobs_of(root), Job(tuple(tokenizer_of(root).encode("11 22")), GREEDY)]
    expected = run(engine_of(root, None), jobs)
    assert run(engine, jobs, hook=check_own_pages) == expected
    none_left(engine)
    engine = engine_of(root, method, "words")
    digits = SamplingParams(temperature=0.0, max_tokens=9, allowed_token_ids=tokenizer_of(root).encode("12"))
    assert run(engine, [Job(jobs[-1].prompt, digits)])
    assert engine.counters.num_drafted > 0


@pytest.mark.parametrize("method", METHODS)
def test_a_pass_that_raises_leaves_no_page_behind(method: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_of(root, method, "twin")
    assert engine.proposer is not None
    runner = engine.proposer.tools.runner
    assert runner is not None
    forward, calls = runner.executor.run, iter(range(10**6))

    def run_some(*given: Any, **named: Any) -> Any:
        if next(calls) in (5, 11):
            raise MemoryError
        return forward(*given, **named)

    monkeypatch.setattr(runner.executor, "run", run_some)
    assert run(engine, jobs_of(root), hook=check_own_pages) == plain(root)
    check_own_pages(engine)
    assert engine.proposer.counters.num_failures == 2
    assert engine.counters.num_drafted > 30


@pytest.mark.parametrize("method", METHODS)
def test_an_interrupt_within_the_books_leaves_them_whole(
    method: str, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of(root, method, "twin", block_size=4)
    assert engine.proposer is not None
    own = engine.proposer.tools.own
    assert own is not None
    (group,) = own.cache.groups
    take, calls = group.pages.allocate, iter(range(10**6))

    def take_some(count: int) -> list[int] | None:
        taken = take(count)
        if next(calls) in (3, 9):
            raise KeyboardInterrupt
        return taken

    monkeypatch.setattr(group.pages, "allocate", take_some)
    processor = InputProcessor(engine, None)
    calls_made = [processor.group(list(job.prompt), job.params) for job in jobs_of(root)]
    for call in calls_made:
        engine.add(call)
    interrupts = 0
    while engine.has_work:
        try:
            engine.step()
        except KeyboardInterrupt:
            interrupts += 1
        check_own_pages(engine)
    assert interrupts == 2
    assert [[member.output_token_ids for member in call.members] for call in calls_made] == plain(root)
    none_left(engine)


@pytest.mark.parametrize("method", METHODS)
def test_a_draft_with_a_window_gives_pages_back_as_it_moves_on(method: str, root: Path) -> None:
    engine = engine_of(root, method, "window", block_size=2)
    assert engine.proposer is not None
    own = engine.proposer.tools.own
    assert own is not None
    (group,) = own.cache.groups
    slid = 0

    def hook(engine: Engine, step: int) -> None:
        nonlocal slid
        check_own_pages(engine, step)
        slid += int(group.first_page.max())

    assert run(engine, jobs_of(root), hook=hook) == plain(root)
    assert slid > 0
    none_left(engine)


@pytest.mark.parametrize("method", METHODS)
def test_what_cannot_work_is_refused_with_advice(method: str, root: Path, tmp_path: Path) -> None:
    bare = shutil.copytree(root / "twin", tmp_path / "bare")
    (bare / "tokenizer.json").unlink()
    with pytest.raises(ConfigError, match=rf"the {method} method needs both tokenizers.*\n.*ngram"):
        engine_of(root, method, str(bare))
    config = engine_of(root, method).config
    assert fit(root / "target", config).weight_bytes["draft"] > 0
