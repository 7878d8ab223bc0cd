"""A step of one round tells the host what was sampled in each of the target's rows, and which tokens are likeliest."""

from __future__ import annotations

import pytest

from paceline.core.params import SamplingParams
from paceline.models import load_model
from tests.support.checkpoints import full_logits
from tests.support.engines import Job, Models, run
from tests.support.native import needs_library
from tests.support.zoo import VOCAB_SIZE, tiny

PROMPT = (5, 6, 7, 8, 5, 6, 7)


@needs_library
@pytest.mark.parametrize("count", [3, VOCAB_SIZE + 2])
def test_the_likeliest_tokens_of_every_verified_row(tmp_path, count):
    tiny(tmp_path, "llama")
    models = Models(load_model(tmp_path), {})
    engine = models.engine({"method": "ngram", "num_speculative_tokens": 4})
    graphs, found = engine.computation.graphs, []
    graphs._num_best, replay = count, graphs.replay

    def told(step, num_nodes=0):
        start = step.plan.end.copy()
        result = replay(step, num_nodes)
        found.append((start, step.plan.num_rounds, step.drafts, result))
        return result

    graphs.replay = told
    ((tokens,),) = run(engine, [Job(PROMPT, SamplingParams(temperature=0.0, max_tokens=20))])
    text, with_drafts = [*PROMPT, *tokens], 0
    for (end,), num_rounds, drafts, result in found:
        if num_rounds > 1:
            assert result.best is None
            assert result.samples is None
            continue
        nodes = 0 if drafts is None else int(drafts.counts[0])
        with_drafts += nodes > 0
        expected = full_logits(models.target, text[:end])[-1].topk(min(count, VOCAB_SIZE)).indices
        assert result.best[0, 0, : len(expected)].tolist()[:3] == expected.tolist()[:3]
        assert (result.best[0, nodes + 1 :] == -1).all()
        assert (result.best[0, :, VOCAB_SIZE:] == -1).all()
        assert (result.samples[0, nodes + 1 :] == -1).all()
        assert result.samples[0, : nodes + 1].tolist() == result.best[0, : nodes + 1, 0].tolist()
        assert result.samples[0, 0] == text[end]
        if count > VOCAB_SIZE:
            assert sorted(result.best[0, 0, :VOCAB_SIZE].tolist()) == list(range(VOCAB_SIZE))
    assert with_drafts
