"""A tiny engine with a draft that is sometimes right, and the directories it was loaded from."""

from __future__ import annotations

import pytest

from paceline import LLM
from tests.support.checkpoints import perturb, tiny_llama, tiny_tokenizer


@pytest.fixture(scope="session")
def pair(tmp_path_factory) -> tuple[str, str]:
    target, draft = (tmp_path_factory.mktemp(name) for name in ("target", "draft"))
    tiny_llama(target)
    tiny_tokenizer(target)
    perturb(target, draft, 0.05)
    return str(target), str(draft)


@pytest.fixture(scope="session")
def load(pair):
    """Engine options -> LLM, as the commands hand it to the benchmarks."""

    def make(options) -> LLM:
        speculation = {"method": "draft_model", "model": pair[1], "num_speculative_tokens": 3}
        settings = {"dtype": "float64", "device": "cpu", "max_num_seqs": 4, **options}
        return LLM(pair[0], speculative_config=settings.pop("speculative_config", speculation), **settings)

    return make


@pytest.fixture(scope="session")
def llm(load) -> LLM:
    return load({})
