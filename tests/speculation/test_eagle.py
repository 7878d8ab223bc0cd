"""EAGLE-3 within the engine: drafts are those of the paper's own loop, and never change a text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from paceline.core.batch import SampleRows, Verdict
from paceline.core.config import EngineConfig, SpeculativeConfig
from paceline.core.errors import ConfigError, PacelineError
from paceline.core.layer import PassContext
from paceline.core.step import DraftTrees
from paceline.engine.build import build_engine
from paceline.engine.engine import Engine
from paceline.engine.fit import fit
from paceline.models import CausalLM, load_model
from paceline.speculation.verify.match import MatchVerifier
from tests.draft_checkpoints import Tensors, tiny_eagle3
from tests.models.drafters.reference import double, eagle3, eagle3_features
from tests.support.checkpoints import dense_attend, tiny_llama
from tests.support.engines import mixed_jobs, run

VOCAB, DEPTH, LAYERS = 31, 4, 4
JOBS = mixed_jobs(VOCAB)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Tensors]:
    """A target, and a module for it that says few of its tokens."""
    directory = tmp_path_factory.mktemp("eagle")
    tiny_llama(directory / "target", vocab_size=VOCAB, layers=LAYERS, hidden=32, max_positions=128)
    config = load_model(directory / "target").config
    tensors = tiny_eagle3(directory / "module", config, draft_vocab_size=20, taps=(1, 2, 4))
    return directory / "target", directory / "module", tensors


def engine_of(places: Any, *, speculation: dict[str, Any] | None = None, **options: Any) -> Engine:
    wanted = None if speculation is None else {"method": "eagle3", "model": str(places[1]), **speculation}
    speculative = SpeculativeConfig.of(wanted)
    return build_engine(
        places[0], EngineConfig.of(**{"max_num_seqs": 8, "device": "cpu", **options}, speculative=speculative)
    )


@pytest.fixture
def verified(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The drafts of the first request of each step."""
    found: list[list[int]] = []
    verify = MatchVerifier.verify

    def noted(self: MatchVerifier, logits: torch.Tensor, rows: SampleRows, drafts: DraftTrees, *more: Any) -> Verdict:
        if drafts.width:
            found.append(drafts.tokens[0, : drafts.counts[0]].tolist())
        return verify(self, logits, rows, drafts, *more)

    monkeypatch.setattr(MatchVerifier, "verify", noted)
    return found


def reference_draft(target: CausalLM, weights: Tensors, known: list[int], depth: int) -> list[int]:
    """What the module drafts greedily behind known tokens, of which the target computed all but the last."""
    with torch.inference_mode():
        context = PassContext(attend=dense_attend(target), taps=(1, 2, 4))
        _, tapped = target(torch.tensor(known[:-1]), torch.arange(len(known) - 1), context)
        assert tapped is not None
        read = eagle3_features(weights, *tapped.chunk(3, dim=-1))
        tokens = known[1:]
        for _ in range(depth):
            embedded = target.embedding(torch.tensor(tokens), torch.arange(len(tokens)))
            positions = torch.arange(1, 1 + len(tokens), dtype=torch.float64)
            logits, output, _ = eagle3(weights, embedded, read, positions, vocab_size=VOCAB)
            tokens = [*tokens, int(logits[-1].argmax())]
            read = torch.cat((read, output[-1:]))
    return tokens[-depth:]


def test_drafts_are_those_of_the_papers_own_loop(places: Any, verified: list[list[int]]) -> None:
    engine = engine_of(places, speculation={"num_speculative_tokens": DEPTH}, dtype="float64")
    known: list[list[int]] = []
    (found,) = run(
        engine, JOBS[:1], hook=lambda engine, _: known.extend(list(r.window) for r in engine.scheduler.running)
    )
    assert len(verified) > 8
    target, weights = load_model(places[0], dtype=torch.float64), double(places[2])
    text = [*JOBS[0].prompt, *found[0]]
    for draft, tokens in zip(verified, known, strict=False):
        assert tokens == text[: len(tokens)]
        assert draft == reference_draft(target, weights, tokens, DEPTH)[: len(draft)]


def test_a_module_that_does_not_fit_is_refused_at_start(places: Any, tmp_path: Path) -> None:
    tiny_llama(tmp_path / "other", vocab_size=VOCAB, layers=LAYERS, hidden=48)
    with pytest.raises(PacelineError, match="48"):
        engine_of((tmp_path / "other", places[1]), speculation={})
    with pytest.raises(ConfigError, match="needs a draft module"):
        engine_of(places, speculation={"model": None})


def test_what_is_kept_counts_in_what_fits(places: Any) -> None:
    speculative = SpeculativeConfig.of({"method": "eagle3", "model": str(places[1])})
    options = {"device": "cpu", "num_blocks": 10, "dtype": "float32"}
    plain = fit(places[0], EngineConfig.of(**options))
    reading = fit(places[0], EngineConfig.of(**options, speculative=speculative))
    kept, module_kv = 32 * 4, 2 * 2 * 8 * 4
    per_page = (reading.kv_cache_bytes - plain.kv_cache_bytes) / reading.num_pages
    assert per_page == reading.page_size * (kept + module_kv)
    assert np.isclose(reading.weight_bytes["target"], plain.weight_bytes["target"])
