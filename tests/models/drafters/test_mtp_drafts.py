"""MTP modules within the engine: drafts are those of their makers' own loop, and never change a text."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from paceline.core.config import EngineConfig, SpeculativeConfig
from paceline.core.layer import PassContext
from paceline.core.params import SamplingParams
from paceline.engine.build import build_engine
from paceline.models import load_model
from paceline.speculation.verify.match import MatchVerifier
from tests.models.drafters.mtp_layouts import LAYOUTS, StraightModule
from tests.models.drafters.straight import rms_norm
from tests.support.checkpoints import dense_attend
from tests.support.engines import Job, run
from tests.support.native import needs_library
from tests.support.zoo import random_tokens

DEPTH = 3
PROMPT = tuple(random_tokens(9))
JOBS = [
    Job(PROMPT, SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True)),
    Job(tuple(random_tokens(4, seed=5)), SamplingParams(temperature=0.8, seed=4, n=2, max_tokens=20, ignore_eos=True)),
]


@pytest.fixture(params=LAYOUTS)
def layout(request, tmp_path):
    return LAYOUTS[request.param](tmp_path)


def engine_of(layout, *, drafts, **options):
    wanted = {"method": "mtp", "model": str(layout.directory), "num_speculative_tokens": DEPTH} if drafts else None
    return build_engine(
        layout.target, EngineConfig.of(device="cpu", **options, speculative=SpeculativeConfig.of(wanted))
    )


def straight_draft(layout, target, known):
    """What the maker's loop drafts greedily behind known tokens, of which the target computed all but the last."""
    straight = StraightModule(layout, target)
    with torch.inference_mode():
        context = PassContext(attend=dense_attend(target), taps=(target.config.num_layers,))
        _, features = target(torch.tensor(known[:-1]), torch.arange(len(known) - 1), context)
    read = rms_norm(features, target.norm.weight, straight.config["rms_norm_eps"])
    tokens = torch.tensor(known[1:])
    for _ in range(DEPTH):
        logits, following = straight.forward(tokens, read)
        tokens, read = torch.cat((tokens, logits[-1:].argmax(-1))), torch.cat((read, following[-1:]))
    return tokens[-DEPTH:].tolist()


def test_drafts_are_those_of_the_makers_loop(layout, monkeypatch):
    drafted: list[list[int]] = []
    verify = MatchVerifier.verify

    def noted(self: Any, logits: Any, rows: Any, drafts: Any, *more: Any) -> Any:
        if drafts.width:
            drafted.append(drafts.tokens[0, : drafts.counts[0]].tolist())
        return verify(self, logits, rows, drafts, *more)

    monkeypatch.setattr(MatchVerifier, "verify", noted)
    known: list[list[int]] = []
    engine = engine_of(layout, drafts=True, dtype="float64")
    run(engine, JOBS[:1], hook=lambda engine, _: known.extend(list(r.window) for r in engine.scheduler.running))
    target = load_model(layout.target, dtype="float64")
    compared = list(zip(drafted, known, strict=False))
    assert len(compared) > 4
    for draft, tokens in compared:
        assert draft == straight_draft(layout, target, tokens)[: len(draft)]


@pytest.mark.parametrize("dtype", ["float64", pytest.param("float32", marks=needs_library)])
def test_texts_are_those_without_drafts(layout, dtype):
    """float64 is computed in torch, float32 natively."""
    plain, drafting = (run(engine_of(layout, drafts=drafts, dtype=dtype), JOBS) for drafts in (False, True))
    assert drafting == plain
