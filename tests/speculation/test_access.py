"""The verifier is an option of ``LLM`` and of the command line; what is reported keeps its meaning."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from paceline import LLM, SamplingParams
from paceline.cli.main import run
from tests.support.checkpoints import perturb, tiny_llama, tiny_tokenizer


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> tuple[Path, Path]:
    target, draft = (tmp_path_factory.mktemp(name) for name in ("target", "draft"))
    tiny_llama(target)
    tiny_tokenizer(target)
    perturb(target, draft, 0.05)
    return target, draft


@pytest.mark.parametrize("verifier", ["token", "block"])
def test_by_llm_and_by_command(verifier: str, pair: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    target, draft = pair
    options = {"method": "draft_model", "model": str(draft), "num_speculative_tokens": 3, "verifier": verifier}
    llm = LLM(target, speculative_config=options, device="cpu")
    params = SamplingParams(temperature=1.0, seed=5, max_tokens=20, ignore_eos=True, logprobs=1)
    (output,) = llm.generate("The dog", params)
    (answer,) = output.outputs
    assert len(answer.token_ids) == len(answer.logprobs) == 20
    assert 0 < output.metrics.num_accepted <= output.metrics.num_drafted
    speculation = llm.stats()["speculation"]
    assert speculation["num_accepted"] == sum(speculation["accepted_per_position"]) == output.metrics.num_accepted
    assert speculation["num_failures"] == speculation["num_rejected_drafts"] == 0

    arguments = ["--speculative-config", json.dumps(options), "--temperature", "1", "--seed", "5", "--max-tokens", "20"]
    assert run(["generate", str(target), "--prompt", "The dog", *arguments, "--ignore-eos", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["text"] == answer.text
