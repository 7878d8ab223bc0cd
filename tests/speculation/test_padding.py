"""A draft whose vocabulary is padded otherwise drafts as one of the target's size; its tokens are checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from paceline.core.config import EngineConfig, SpeculativeConfig
from paceline.core.errors import ConfigError
from paceline.core.params import SamplingParams
from paceline.engine.build import build_engine
from paceline.engine.engine import Engine
from paceline.engine.fit import fit
from paceline.models import load_model
from tests.support.checkpoints import full_logits, tiny_llama, tiny_tokenizer
from tests.support.engines import Job, preempt_every, prompts, run
from tests.support.native import needs_library
from tests.support.vocabularies import renumbered, resized

SIZE, FEWER, MORE = 320, 301, 347
PROMPTS = prompts(4, SIZE, [19, 6, 33, 3])
JOBS = [
    Job(PROMPTS[0], SamplingParams(temperature=0.0, max_tokens=30, ignore_eos=True)),
    Job(PROMPTS[1], SamplingParams(temperature=0.8, seed=4, n=2, max_tokens=25, ignore_eos=True)),
    Job(PROMPTS[2], SamplingParams(temperature=1.3, seed=5, max_tokens=30, ignore_eos=True)),
    Job((310, 319, 300, 301), SamplingParams(temperature=1.0, seed=9, max_tokens=28, ignore_eos=True)),
]


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def place(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root: Path = tmp_path_factory.mktemp("padding")
    tiny_llama(root / "target", vocab_size=SIZE, tied=request.param)
    tiny_tokenizer(root / "target", vocab_size=290)
    for size in (FEWER, MORE):
        resized(root / "target", root / str(size), size)
    return root


def engine_of(place: Path, draft: str | None, *, verifier: str = "match", **options: Any) -> Engine:
    speculation = None
    if draft is not None:
        speculation = SpeculativeConfig(
            method="draft_model", model=str(place / draft), num_speculative_tokens=3, verifier=verifier
        )
    return build_engine(
        place / "target", EngineConfig.of(max_num_seqs=8, device="cpu", speculative=speculation, **options)
    )


@pytest.mark.parametrize("size", [FEWER, MORE])
@pytest.mark.parametrize("impl", [pytest.param("native", marks=needs_library), "torch"])
def test_texts_are_those_without_drafts(size: int, impl: str, place: Path) -> None:
    """Also where the target emits tokens that the draft lacks, in the middle of a call of several rounds."""
    options = {"model_impl": impl, "dtype": "float32" if impl == "native" else "float64"}
    plain = run(engine_of(place, None, **options), JOBS)
    assert any(token >= FEWER for texts in plain for text in texts for token in text)
    engine = engine_of(place, str(size), **options)
    assert run(engine, JOBS, hook=preempt_every(3)) == plain
    assert run(engine, JOBS) == plain
    assert engine.counters.num_accepted > 60
    assert engine.proposer is not None
    assert engine.proposer.counters.num_failures == engine.proposer.counters.num_rejected_drafts == 0
    if impl == "native":
        assert not engine.computation.eager_steps["a step before failed"]
        assert run(engine_of(place, str(size), enforce_eager=True, **options), JOBS) == plain


@pytest.mark.parametrize("size", [FEWER, MORE])
def test_tokens_that_only_one_side_has_have_no_chance(size: int, place: Path) -> None:
    """Of a draft that was drawn as well: its probabilities are as many as the target's."""
    engine = engine_of(place, str(size), verifier="token", dtype="float64", model_impl="torch")
    draft = engine.proposer.model if engine.proposer is not None else None
    assert draft is not None
    tokens = list(PROMPTS[0])
    shared = [token for token in tokens if token < FEWER]
    found, whole = full_logits(draft, shared), full_logits(load_model(place / "target", dtype=torch.float64), shared)
    both = min(size, SIZE)
    assert found.shape == whole.shape
    torch.testing.assert_close(found[:, :both], whole[:, :both])
    assert torch.isinf(found[:, both:]).all()
    assert run(engine, JOBS) == run(engine, JOBS)
    assert engine.counters.num_accepted > 60


def test_other_tokens_are_refused(place: Path, tmp_path: Path) -> None:
    other = renumbered(resized(place / "target", tmp_path / "resized", FEWER), tmp_path / "other")
    with pytest.raises(ConfigError, match=rf'the draft has {FEWER} tokens, the target {SIZE}.*\n.*"tli" or "slem"'):
        engine_of(place, str(other))
    (other / "tokenizer.json").unlink()
    with pytest.raises(ConfigError, match=r"the draft has no tokenizer.json .*\n.*a draft with 320 tokens"):
        engine_of(place, str(other))


def test_what_fits_is_told_without_weights(place: Path) -> None:
    speculation = SpeculativeConfig(method="draft_model", model=str(place / str(FEWER)))
    assert fit(place / "target", EngineConfig.of(device="cpu", speculative=speculation)).weight_bytes["draft"] > 0
