"""What is told before a model is loaded is what the loaded engine takes."""

from __future__ import annotations

import pytest

from paceline import LLM, ConfigError, EngineConfig, SpeculativeConfig
from paceline.core.errors import CheckpointError
from paceline.engine import fit as fit_module
from paceline.engine import memory
from paceline.engine.fit import fit
from tests.support.checkpoints import perturb, tiny_llama

FREE = 2**26


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> tuple[str, str]:
    target, draft = (tmp_path_factory.mktemp(name) for name in ("target", "draft"))
    tiny_llama(target)
    perturb(target, draft, 0.05)
    return str(target), str(draft)


@pytest.fixture
def free(monkeypatch) -> None:
    """The weights are tiny beside it, so that before and after loading make no difference."""
    for module in (fit_module, memory):
        monkeypatch.setattr(module, "free_bytes", lambda device: FREE)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"dtype": "float64"},
        {"dtype": "bfloat16", "kv_cache_dtype": "float32"},
        {"cache": "static"},
        {"num_blocks": 70, "block_size": 4},
        {"max_model_len": 40, "max_num_seqs": 3},
    ],
    ids=str,
)
def test_the_estimate_is_what_the_engine_takes(pair, free, options):
    target, draft = pair
    speculative = SpeculativeConfig(method="draft_model", model=draft, num_speculative_tokens=3)
    found = fit(target, EngineConfig(**options, speculative=speculative))
    llm = LLM(target, speculative_config=speculative, **options)
    stats = llm.stats()
    taken = stats["memory_bytes"]
    assert found.weight_bytes == {"target": taken["target_weights"], "draft": taken["draft_weights"]}
    assert found.num_pages * len(llm.engine.cache.groups) == stats["pages"]["total"]
    one_page = sum(group.store.num_bytes for group in llm.engine.cache.groups) // (found.num_pages + 1)
    assert found.kv_cache_bytes == found.num_pages * one_page
    assert found.page_size == llm.engine.cache.kind.page_size
    assert found.max_model_len == options.get("max_model_len", 256)
    assert 1 <= found.num_full_sequences <= options.get("max_num_seqs", 64)
    assert found.activation_bytes > 0


def test_weights_that_do_not_fit_are_told_with_what_would(pair, monkeypatch):
    monkeypatch.setattr(fit_module, "free_bytes", lambda device: 1000)
    with pytest.raises(ConfigError, match="weights need") as error:
        fit(pair[0], EngineConfig())
    assert "bfloat16" in str(error.value)


def test_a_context_that_does_not_fit_is_told_with_one_that_would(pair, monkeypatch):
    monkeypatch.setattr(fit_module, "free_bytes", lambda device: 180_000)
    with pytest.raises(ConfigError, match="Set max_model_len to at most"):
        fit(pair[0], EngineConfig())


def test_only_configs_are_read(pair, tmp_path):
    target, _ = pair
    (tmp_path / "config.json").write_bytes((type(tmp_path)(target) / "config.json").read_bytes())
    assert fit(tmp_path, EngineConfig()).weight_bytes == fit(target, EngineConfig()).weight_bytes
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        fit(tmp_path.parent / tmp_path.name / "..", EngineConfig())


def test_the_embedded_pair_fits():
    assert fit(None, EngineConfig()).num_full_sequences >= 1
