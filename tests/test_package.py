"""What users see of the package: names, options, and that importing it costs nothing."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from dataclasses import fields
from pathlib import Path

import pytest

import paceline
from paceline import EngineConfig, SamplingParams, SpeculativeConfig
from tests.support.checkpoints import perturb, tiny_llama, tiny_tokenizer

ROOT = Path(__file__).resolve().parents[1]


def python(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("module", ["paceline", "paceline.cli.main", "paceline.core.config", "paceline.core.params"])
def test_import_is_light(module):
    heavy = ("torch", "transformers", "tokenizers", "fastapi", "numpy", "httpx")
    code = f"import sys, {module}; print([name for name in {heavy} if name in sys.modules])"
    assert python("-c", code).strip() == "[]"


def test_public_names():
    assert paceline.__all__ == [
        "LLM",
        "CheckpointError",
        "CompletionOutput",
        "ConfigError",
        "EngineConfig",
        "InvalidRequestError",
        "PacelineError",
        "RequestMetrics",
        "RequestOutput",
        "SamplingParams",
        "SpeculativeConfig",
        "TokenLogprobs",
        "__version__",
    ]
    assert all(getattr(paceline, name) is not None for name in paceline.__all__)
    assert sorted(paceline.__all__) == dir(paceline)


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Missing'"):
        _ = paceline.Missing


def names(config: type) -> list[str]:
    return [field.name for field in fields(config)]


def test_sampling_parameters():
    assert names(SamplingParams) == [
        "n",
        "best_of",
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "presence_penalty",
        "frequency_penalty",
        "repetition_penalty",
        "logit_bias",
        "allowed_token_ids",
        "bad_words",
        "seed",
        "max_tokens",
        "min_tokens",
        "stop",
        "stop_token_ids",
        "ignore_eos",
        "include_stop_str_in_output",
        "logprobs",
        "prompt_logprobs",
        "detokenize",
        "skip_special_tokens",
    ]


def test_engine_options():
    assert names(EngineConfig) == [
        "dtype",
        "quantization",
        "quantization_group_size",
        "device",
        "kv_cache_dtype",
        "cache",
        "block_size",
        "num_blocks",
        "max_model_len",
        "context_overflow",
        "max_num_seqs",
        "max_num_batched_tokens",
        "prefill_chunk_seconds",
        "num_scheduler_steps",
        "enforce_eager",
        "enable_prefix_caching",
        "prefix_cache_max_entries",
        "scheduling_policy",
        "attention_backend",
        "model_impl",
        "numerics",
        "seed",
        "revision",
        "speculative",
    ]
    assert names(SpeculativeConfig) == [
        "method",
        "model",
        "revision",
        "draft_quantization",
        "num_speculative_tokens",
        "draft_top_k",
        "draft_max_nodes",
        "composite_copies",
        "composite_drafts",
        "early_exit_layers",
        "verifier",
        "prompt_lookup_max",
        "prompt_lookup_min",
        "suffix_decoding_max_tree_depth",
        "suffix_decoding_max_cached_requests",
        "suffix_decoding_max_spec_factor",
        "suffix_decoding_min_token_prob",
        "token_recycling_nodes",
        "token_recycling_successors",
        "lookahead_window",
        "lookahead_ngram",
        "lookahead_guesses",
    ]


def test_version_is_the_same_everywhere():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == paceline.__version__
    assert f"## [{paceline.__version__}]" in (ROOT / "CHANGELOG.md").read_text()
    assert python("-m", "paceline.cli.main", "--version").strip() == f"paceline {paceline.__version__}"


def test_help_names_the_commands():
    text = python("-m", "paceline.cli.main", "--help")
    for command in ("serve", "chat", "generate", "demo"):
        assert re.search(rf"\b{command}\b", text)


def test_readme_options_exist():
    text = (ROOT / "README.md").read_text()
    options = {name for config in (EngineConfig, SpeculativeConfig) for name in names(config)}
    listed = re.findall(r"^\| `(\w+)`", text, flags=re.MULTILINE)
    assert listed
    assert set(listed) <= options


def test_readme_tree_names_what_there_is():
    text = (ROOT / "README.md").read_text()
    rooms = re.findall(r"^  (\w+)/ ", text, flags=re.MULTILINE)
    assert rooms
    for room in rooms:
        assert (ROOT / "paceline" / room).is_dir(), room


def test_readme_example_runs(tmp_path):
    """The embedded pair stands aside for a tiny one."""
    target, draft = tmp_path / "target", tmp_path / "draft"
    tiny_llama(target)
    tiny_tokenizer(target)
    perturb(target, draft, 0.05)
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    tiny = f'LLM("{target}", speculative_config={{"method": "draft_model", "model": "{draft}"}})'
    script = tmp_path / "example.py"
    script.write_text(example.replace("LLM()", tiny))
    assert python(str(script)).strip()
