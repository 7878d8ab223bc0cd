"""The recipes on a toy: the loss falls, a killed run ends like one that was not, a draft learns to agree."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import pairwise

import pytest
import torch

from paceline.training.loop import LoopConfig, rate_scale, run

WORDS = ["red", "green", "blue", "small", "large", "round", "square", "table", "chair", "lamp", "book"]


class KilledError(Exception):
    """Stands for the process being killed."""


def line_fit(seed: int = 0) -> tuple[torch.nn.Module, object]:
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))

    def loss(step: int) -> torch.Tensor:
        inputs = torch.randn(16, 4, generator=torch.Generator().manual_seed(step))
        return (model(inputs)[:, 0] - inputs.sum(1)).square().mean()

    return model, loss


CONFIG = LoopConfig(steps=40, tokens_per_step=16, checkpoint_every=10, report_every=10)


def test_resuming_equals_not_stopping(tmp_path) -> None:
    whole, loss = line_fit()
    run(whole, loss, CONFIG, checkpoint=tmp_path / "whole.pt", report=lambda _: None)
    killed, loss = line_fit()

    def dies(step: int) -> torch.Tensor:
        if step == 25:
            raise KilledError
        return loss(step)

    with pytest.raises(KilledError):
        run(killed, dies, CONFIG, checkpoint=tmp_path / "part.pt", report=lambda _: None)
    resumed, loss = line_fit(seed=9)  # other weights: the checkpoint must replace them
    run(resumed, loss, CONFIG, checkpoint=tmp_path / "part.pt", report=lambda _: None)
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)


def test_progress_names_loss_rate_and_time_left(tmp_path) -> None:
    model, loss = line_fit()
    lines: list[str] = []
    run(model, loss, CONFIG, checkpoint=tmp_path / "c.pt", report=lines.append)
    assert len(lines) == 4
    assert all(word in lines[0] for word in ("step 10/40", "loss", "tokens/s", "min left"))


def test_a_loss_that_is_not_finite_stops_with_advice(tmp_path) -> None:
    model, _ = line_fit()
    with pytest.raises(FloatingPointError, match=r"Lower --learning-rate to 0\.001"):
        run(model, lambda _: model[0].weight.sum() * float("nan"), CONFIG, checkpoint=tmp_path / "c", report=print)


def test_the_rate_rises_stays_and_falls() -> None:
    scales = [rate_scale(step, LoopConfig(steps=100, tokens_per_step=1)) for step in range(100)]
    assert scales[0] < scales[4] == 1.0 == scales[49]
    assert scales[-1] == 0.05
    assert all(a >= b for a, b in pairwise(scales[50:]))


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """A target and a draft trained by the commands a user would run; their printed lines."""
    directory = tmp_path_factory.mktemp("toy")
    dialogues = [
        {
            "turns": [
                {"role": "user", "text": f"What is a {a} {b}?"},
                {"role": "assistant", "text": f"A {a} {b} is {b}."},
            ]
        }
        for a in WORDS
        for b in WORDS
    ]
    (directory / "data.jsonl").write_text("\n".join(json.dumps(one) for one in dialogues))
    common = ["--data", str(directory / "data.jsonl"), "--held-out", str(directory / "data.jsonl"), "--no-compile"]
    common += ["--length", "32", "--batch-size", "8", "--num-layers", "1"]

    def train(recipe: str, *options: str) -> list[str]:
        place = ["--out", str(directory / recipe), "--work", str(directory / f"{recipe}_work")]
        command = [sys.executable, "-m", f"paceline.training.{recipe}", *common, *place, *options]
        result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        assert result.returncode == 0, result.stderr
        return result.stdout.splitlines()

    size = ["--hidden-size", "32", "--intermediate-size", "48", "--num-heads", "2", "--num-kv-heads", "1"]
    target = train("target", *size, "--head-dim", "16", "--vocab-size", "320", "--steps", "120")
    few = train("draft", *size, "--target", str(directory / "target"), "--steps", "2")
    (directory / "draft_work" / "draft.pt").unlink()
    draft = train("draft", *size, "--target", str(directory / "target"), "--steps", "120")
    return directory, target, few, draft


def _loss(line: str) -> float:
    return float(line.split("loss", maxsplit=1)[1].split(maxsplit=1)[0])


def test_the_targets_loss_falls(toy) -> None:
    _, lines, _, _ = toy
    steps = [line for line in lines if line.startswith("step")]
    assert _loss(steps[-1]) < 0.6 * _loss(steps[0])


def test_the_draft_learns_to_agree(toy) -> None:
    _, _, few, draft = toy
    before, after = (json.loads(lines[-1].replace("'", '"'))["greedy_agreement"] for lines in (few, draft))
    assert after > before + 0.2


def test_transformers_and_paceline_load_the_result_with_equal_logits(toy) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: PLC0415

    from paceline.models import load_model  # noqa: PLC0415
    from tests.checkpoints import full_logits  # noqa: PLC0415

    for part in ("target", "draft"):
        path = toy[0] / part
        ids = AutoTokenizer.from_pretrained(path).apply_chat_template(
            [{"role": "user", "content": "What is a red lamp?"}], add_generation_prompt=True, return_dict=False
        )
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
        expected = model(torch.tensor([ids])).logits[0]
        ours = full_logits(load_model(path, dtype=torch.float32), ids)
        assert (ours - expected).abs().max() < 2e-4
