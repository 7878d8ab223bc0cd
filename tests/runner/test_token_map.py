"""A model whose output matrix has rows for some tokens only gives the others -inf, however it is computed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from paceline.layers.placement import Placement
from paceline.models import CausalLM, load_model
from tests.support.checkpoints import full_logits
from tests.support.engines import Job, Models, run
from tests.support.native import needs_library
from tests.support.zoo import VOCAB_SIZE, random_tokens, tiny

TOKENS = torch.randperm(VOCAB_SIZE, generator=torch.Generator().manual_seed(3))[:23]
CPU = Placement(torch.float32, torch.device("cpu"))


def shortened(whole: CausalLM, **options) -> CausalLM:
    """The same model with the rows of ``TOKENS`` alone."""
    made = CausalLM(
        whole.config,
        embedding=whole.embedding,
        blocks=list(whole.blocks),
        layer_specs=whole.layer_specs,
        norm=whole.norm,
        on=CPU,
        rotaries=list(whole.rotaries),
        rotary_of=whole.rotary_of,
        logit_softcap=whole.logit_softcap,
        **options,
    )
    made.head.weight.copy_(whole.head.weight[TOKENS])
    return made


@pytest.fixture(params=["llama", "gemma2"])
def whole(request, tmp_path):
    """Logits of gemma2 are softly capped, and -inf stays -inf all the same."""
    tiny(tmp_path, request.param, tie_word_embeddings=False)
    return load_model(tmp_path)


def check(found: torch.Tensor, expected: torch.Tensor, **tolerance: float) -> None:
    assert found.shape == expected.shape
    torch.testing.assert_close(found[:, TOKENS], expected[:, TOKENS], **tolerance)
    others = torch.ones(VOCAB_SIZE, dtype=torch.bool)
    others[TOKENS] = False
    assert torch.equal(found[:, others], torch.full((len(found), int(others.sum())), -torch.inf))


def test_other_tokens_have_no_chance(whole):
    expected = full_logits(whole, random_tokens(20))
    for options in ({"token_map": TOKENS}, {"head_rows": len(TOKENS)}):
        model = shortened(whole, **options)
        model.token_map = TOKENS  # as a checkpoint would
        check(full_logits(model, random_tokens(20)), expected)
        assert len(model.head.weight) == len(TOKENS)


@needs_library
def test_native_passes_and_graphs_agree_with_torch(whole):
    model, jobs = shortened(whole, token_map=TOKENS), [Job(tuple(random_tokens(length))) for length in (1, 9)]
    engines = [Models(model, {}).engine(**more) for more in ({}, {"enforce_eager": True}, {"model_impl": "torch"})]
    texts = [run(engine, jobs) for engine in engines]
    assert texts[0] == texts[1] == texts[2]
    assert {token for text in texts[0] for tokens in text for token in tokens} <= set(TOKENS.tolist())
    hidden = torch.randn(5, model.config.hidden_size, generator=torch.Generator().manual_seed(0))
    check(engines[0].runner.executor.logits(hidden), whole.logits(hidden), atol=1e-4, rtol=1e-4)


def test_the_embedding_table_is_a_whole_output_matrix(whole):
    whole.config = replace(whole.config, tied=True)
    with pytest.raises(ValueError, match="23 rows"):
        shortened(whole, token_map=TOKENS)
