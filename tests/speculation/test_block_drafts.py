"""Drafts of one pass within the engine: those of the makers' own description, and never a change of a text."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from paceline.core.config import EngineConfig, SpeculativeConfig
from paceline.core.errors import ConfigError
from paceline.core.layer import PassContext
from paceline.core.params import SamplingParams
from paceline.core.step import DraftTrees
from paceline.engine.build import build_engine
from paceline.engine.fit import fit
from paceline.models import load_draft_module, load_model
from paceline.speculation.verify.match import MatchVerifier
from paceline.speculation.verify.token import TokenVerifier
from tests.draft_checkpoints import tiny_eagle
from tests.draft_checkpoints_block import BLOCK_SIZE, dflash, peagle, speculators_dflash
from tests.models.drafters.test_block_modules import straight_block, straight_parallel
from tests.support.checkpoints import dense_attend
from tests.support.engines import Job, one_by_one, run
from tests.support.native import needs_library
from tests.support.zoo import random_tokens, tiny

LAYERS = 5
"""Of the target."""
PROMPT = tuple(random_tokens(9))
GREEDY = Job(PROMPT, SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True))
JOBS = [
    GREEDY,
    Job(tuple(random_tokens(4, seed=5)), SamplingParams(temperature=0.8, seed=4, n=2, max_tokens=20, ignore_eos=True)),
]
LAYOUTS = {
    "p_eagle": (peagle, 4, 0),
    "dflash": (dflash, BLOCK_SIZE - 1, 1),
    "dflash, own vocabulary": (speculators_dflash, BLOCK_SIZE - 1, 1),
    "dflash, samples the anchor": (partial(speculators_dflash, sample_from_anchor=True), BLOCK_SIZE, 0),
}
"""How each is saved, how many tokens it drafts, and how many rows of its block are not sampled."""


@pytest.fixture(params=LAYOUTS)
def method(request: pytest.FixtureRequest, tmp_path: Any) -> str:
    tiny(tmp_path / "target", "qwen3", num_hidden_layers=LAYERS)
    LAYOUTS[request.param][0](tmp_path / "draft", tmp_path / "target")
    return str(request.param)


def engine_of(directory: Any, method: str | None, *, wanted: Any = (), **options: Any) -> Any:
    name = "" if method is None else method.partition(",")[0]
    config = {"method": name, "model": str(directory / "draft"), "num_speculative_tokens": 4, **dict(wanted)}
    if method in LAYOUTS:
        config |= {"num_speculative_tokens": LAYOUTS[method][1], **dict(wanted)}
    speculative = SpeculativeConfig.of(config if method else None)
    return build_engine(directory / "target", EngineConfig.of(device="cpu", **options, speculative=speculative))


def verified(monkeypatch: pytest.MonkeyPatch, verifier: type) -> list[DraftTrees]:
    """The drafts of each step."""
    found: list[DraftTrees] = []
    verify = verifier.verify  # type: ignore[attr-defined]

    def noted(self: Any, logits: Any, rows: Any, drafts: DraftTrees, *more: Any) -> Any:
        if drafts.width:
            found.append(drafts)
        return verify(self, logits, rows, drafts, *more)

    monkeypatch.setattr(verifier, "verify", noted)
    return found


def straight_logits(directory: Any, method: str, known: list[int], count: int) -> torch.Tensor:
    """f64[count, V] what the maker's description says behind known tokens, all but the last of which were computed."""
    target = load_model(directory / "target", dtype="float64")
    module = load_draft_module(directory / "draft", target)
    with torch.inference_mode():
        context = PassContext(attend=dense_attend(target), taps=module.taps)
        _, features = target(torch.tensor(known[:-1]), torch.arange(len(known) - 1), context)
        assert features is not None
        if method == "p_eagle":
            logits = straight_parallel(directory / "draft", torch.tensor(known[1:]), features, count)
        else:
            unsampled = LAYOUTS[method][2]
            size = count + unsampled
            logits = straight_block(directory / "draft", target, features, known[-1], size)[unsampled:]
    return module.expanded(logits)


def runs(engine: Any, job: Job) -> list[list[int]]:
    """What is known before each step's draft."""
    known: list[list[int]] = []
    run(engine, [job], hook=lambda engine, _: known.extend(list(one.window) for one in engine.scheduler.running))
    return known


def test_drafts_are_those_of_the_makers_description(method: str, tmp_path: Any, monkeypatch: Any) -> None:
    found = verified(monkeypatch, MatchVerifier)
    known = runs(engine_of(tmp_path, method, dtype="float64"), GREEDY)
    compared = list(zip(found, known, strict=False))
    assert len(compared) > 4
    for drafts, tokens in compared:
        count = int(drafts.counts[0])
        expected = straight_logits(tmp_path, method, tokens, count).argmax(-1)
        assert drafts.tokens[0, :count].tolist() == expected.tolist()


def test_tokens_carry_what_they_were_drawn_from(method: str, tmp_path: Any, monkeypatch: Any) -> None:
    """Each of them its own row's distribution, as a ratio test needs it."""
    found = verified(monkeypatch, TokenVerifier)
    job = Job(PROMPT, SamplingParams(temperature=1.0, seed=3, max_tokens=12, ignore_eos=True))
    engine = engine_of(tmp_path, method, dtype="float64", wanted={"verifier": "token"})
    known = runs(engine, job)
    assert not engine.proposer.counters.num_rejected_drafts
    compared = list(zip(found, known, strict=False))
    assert len(compared) > 4
    for drafts, tokens in compared:
        count = int(drafts.counts[0])
        assert drafts.probs is not None
        expected = straight_logits(tmp_path, method, tokens, count).softmax(-1)
        torch.testing.assert_close(drafts.probs[0, :count].double(), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", ["float64", pytest.param("bfloat16", marks=needs_library)])
@pytest.mark.parametrize("rows", [2048, 24])
def test_texts_are_those_without_drafts(method: str, dtype: str, rows: int, tmp_path: Any) -> None:
    """float64 is computed in torch, bfloat16 natively; of 24 rows a pass, a prompt takes several."""
    jobs = [*JOBS, Job(tuple(random_tokens(33, seed=8)), GREEDY.params)]
    plain = run(engine_of(tmp_path, None, dtype=dtype), jobs)
    engine = engine_of(tmp_path, method, dtype=dtype, max_num_batched_tokens=rows, max_num_seqs=4)
    assert run(engine, jobs) == plain
    assert engine.counters.num_accepted > 2


def test_a_stop_token_ends_a_draft(tmp_path: Any, monkeypatch: Any) -> None:
    tiny(tmp_path / "target", "qwen3", num_hidden_layers=LAYERS)
    dflash(tmp_path / "draft", tmp_path / "target")
    found = verified(monkeypatch, MatchVerifier)
    runs(engine_of(tmp_path, "dflash", dtype="float64"), GREEDY)
    stop = int(found[0].tokens[0, 1])
    found.clear()
    plain = run(engine_of(tmp_path, None, dtype="float64"), [GREEDY])
    stopped = Job(PROMPT, SamplingParams(temperature=0.0, max_tokens=24, stop_token_ids=[stop]))
    texts = run(engine_of(tmp_path, "dflash", dtype="float64"), [stopped])
    first = found[0].tokens[0, : found[0].counts[0]].tolist()
    assert first.index(stop) == len(first) - 1 < BLOCK_SIZE - 2
    assert texts[0][0] == plain[0][0][: len(texts[0][0])]


@pytest.fixture
def broken(tmp_path: Any) -> Any:
    """A P-EAGLE whose mask rows are NaN; that of the last known token, of which the first draft token comes, is not."""
    tiny(tmp_path / "target", "qwen3", num_hidden_layers=LAYERS)
    peagle(tmp_path / "draft", tmp_path / "target")
    engine = engine_of(tmp_path, "p_eagle", dtype="float32")
    engine.proposer.inner.inputs = torch.full_like(engine.proposer.inner.inputs, torch.nan)
    return engine, run(engine_of(tmp_path, None, dtype="float32"), JOBS)


def test_a_draft_ends_before_a_broken_mask_row(broken: Any, monkeypatch: Any) -> None:
    engine, plain = broken
    found = verified(monkeypatch, MatchVerifier)
    assert run(one_by_one(engine), JOBS) == plain
    assert len(found) > 10
    assert max(int(drafts.counts.max()) for drafts in found) == 1
    for group in engine.cache.groups:  # nobody will read what the rows left
        assert all(pool.isfinite().all() for pool in group.store.pools(0))


@needs_library
def test_a_drafter_whose_mask_rows_are_broken_starts_over_and_at_last_drafts_no_more(broken: Any) -> None:
    engine, plain = broken
    assert run(engine, JOBS) == plain
    counters = engine.proposer.counters
    assert counters.num_rejected_drafts >= 3
    assert not counters.num_failures


REFUSED = [
    ({"num_speculative_tokens": 5}, "num_speculative_tokens is 5, the module was trained to draft 4\n.*to at most 4"),
    ({"draft_top_k": 2}, "draft_top_k is 2, and dflash drafts chains\nSet draft_top_k to 1"),
    ({"method": "eagle"}, "all its tokens in one pass, as dflash has it\n.* to dflash"),
    ({"method": "mtp"}, "all its tokens in one pass, as dflash has it\n.* to dflash"),
    (
        {"model": "eagle", "method": "p_eagle"},
        "drafts one token a pass, p_eagle takes modules that .*\n.* eagle or mtp",
    ),
]


@pytest.mark.parametrize(("wanted", "match"), REFUSED)
def test_what_does_not_fit_is_refused_at_start(tmp_path: Any, wanted: dict[str, Any], match: str) -> None:
    tiny(tmp_path / "target", "qwen3", num_hidden_layers=LAYERS)
    dflash(tmp_path / "draft", tmp_path / "target")
    tiny_eagle(tmp_path / "eagle", load_model(tmp_path / "target").config)
    if "model" in wanted:
        wanted = {**wanted, "model": str(tmp_path / wanted["model"])}
    with pytest.raises(ConfigError, match=match) as caught:
        engine_of(tmp_path, "dflash", wanted=wanted)
    assert len(str(caught.value).splitlines()) == 2


def test_what_writes_the_context_takes_no_memory_of_its_own(tmp_path: Any) -> None:
    tiny(tmp_path / "target", "qwen3", num_hidden_layers=LAYERS)
    dflash(tmp_path / "draft", tmp_path / "target")
    speculative = SpeculativeConfig.of({"method": "dflash", "model": str(tmp_path / "draft")})
    options = {"device": "cpu", "num_blocks": 10, "dtype": "float32", "model_impl": "torch"}
    plain = fit(tmp_path / "target", EngineConfig.of(**options))
    drafting = fit(tmp_path / "target", EngineConfig.of(**options, speculative=speculative))
    module = load_draft_module(tmp_path / "draft", load_model(tmp_path / "target", dtype="float32"))
    per_page = (drafting.kv_cache_bytes - plain.kv_cache_bytes) / drafting.num_pages
    kept, module_kv = 32 * 4, sum(2 * spec.num_kv_heads * spec.head_dim * 4 for spec in module.layer_specs)
    assert per_page == drafting.page_size * (kept + module_kv)
    stored = sum(4 * tensor.numel() for tensor in load_file(tmp_path / "draft" / "model.safetensors").values())
    # Norms of heads are kept by head, and a row stands for the output matrix of what writes the context.
    assert 0 <= drafting.weight_bytes["draft"] - stored < 1024
