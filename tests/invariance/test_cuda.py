"""The same tokens on a GPU as the oracle gives on the CPU."""

from __future__ import annotations

import copy

import pytest
import torch

from paceline.core.config import EngineConfig, SpeculativeConfig
from paceline.engine.build import join_parts
from tests.invariance.test_matrix import OTHERS, PROMPT, check, plain
from tests.support import proposers
from tests.support.cases import Case
from tests.support.engines import Job, Models, preempt_every, run

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]


@pytest.mark.parametrize("sampling", ["greedy", "seeded", "penalties", "min_p_bias"])
@pytest.mark.parametrize("speculation", ["off", "near", "ngram", "suffix", "token_recycling", "lookahead", "tree"])
def test_tokens_equal_the_cpu_oracle(speculation: str, sampling: str, llama: Models) -> None:
    case = Case(speculation, 4, "mixed", 16, "page4", 3, sampling, 3, "sdpa", "llama")
    check(case, llama)
    for index, tokens in enumerate(plain("llama", sampling, 3)):
        proposers.TRUTH[PROMPT, index] = tokens
    device = torch.device("cuda")
    on_gpu = {name: copy.deepcopy(model).to(device) for name, model in llama.drafts.items()}
    config = EngineConfig.of(
        **{**case.engine_options(), "max_num_seqs": 8},
        speculative=SpeculativeConfig.of(case.speculative_config()),
        device="cuda",
    )
    engine = join_parts(copy.deepcopy(llama.target).to(device), config, device, on_gpu.__getitem__)
    found = run(engine, [Job(PROMPT, case.params()), *OTHERS], hook=preempt_every(3))
    assert found[0] == plain("llama", sampling, 3)
