"""The recipes on a toy: the loss falls, a killed run ends like one that was not, a draft learns to be accepted."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from paceline.cli.main import run
from paceline.core.errors import ConfigError
from paceline.training import recipe
from paceline.training.draft import train_draft
from paceline.training.target import train_target
from tests.training.recording import RecordingProgress


class KilledError(Exception):
    """Stands for the process being killed."""


def killed_at(monkeypatch, step: int) -> None:
    """Lets the next run die before this step."""
    plain = recipe.Blocks.batch

    def dies(self, wanted: int, parts: int = 1):
        if wanted == step:
            monkeypatch.setattr(recipe.Blocks, "batch", plain)
            raise KilledError
        return plain(self, wanted, parts)

    monkeypatch.setattr(recipe.Blocks, "batch", dies)


def same_weights(one, other) -> bool:
    first, second = (load_file(path / "model.safetensors") for path in (one, other))
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_the_targets_loss_falls_below_the_baseline(toy) -> None:
    losses = [report.loss for report in toy.target_progress.reports]
    assert losses[-1] < 0.6 * losses[0]
    held_out = toy.target_metrics["held_out"]
    assert held_out["target"]["nats_per_token"] < losses[-1]
    assert held_out["baseline"]["nats_per_token"] > 0
    assert held_out["target"]["bits_per_byte"] < held_out["target"]["nats_per_token"]
    assert toy.target_metrics == json.loads((toy.target / "metrics.json").read_text())


def test_a_killed_target_run_ends_with_the_same_weights(toy, monkeypatch) -> None:
    options = replace(toy.target_options, out=toy.directory / "killed", steps=40, short_rows=0.5, eval_prompts=1)
    whole = replace(options, out=toy.directory / "whole")
    train_target(whole, RecordingProgress())
    killed_at(monkeypatch, 25)
    with pytest.raises(KilledError):
        train_target(options, RecordingProgress())
    progress = RecordingProgress()
    train_target(options, progress)
    assert progress.reports[0].done == 30
    assert same_weights(options.out, whole.out)


def test_other_options_do_not_go_on_with_a_run(toy) -> None:
    with pytest.raises(ConfigError, match="steps 120, now steps 121"):
        train_target(replace(toy.target_options, steps=121), RecordingProgress())


@pytest.fixture(scope="module")
def drafts(toy):
    """Options and figures of a draft that hardly learnt and of one that did."""
    found = {}
    for name, steps in (("beginner", 2), ("draft", 240)):
        options = toy.draft_options(name, steps=steps)
        found[name] = options, train_draft(options, RecordingProgress())
    return found


def test_acceptance_rises_as_the_draft_learns(drafts) -> None:
    (_, before), (_, after) = drafts["beginner"], drafts["draft"]
    assert after["answering"]["greedy"]["acceptance"] > before["answering"]["greedy"]["acceptance"] + 0.2
    assert after["answering"]["temperature_0.7"]["acceptance"] > before["answering"]["temperature_0.7"]["acceptance"]
    forced = [figures["held_out"]["teacher_forced"] for figures in (before, after)]
    assert forced[1]["greedy_agreement"] > forced[0]["greedy_agreement"] + 0.2
    assert forced[1]["overlap"] > forced[0]["overlap"] + 0.1


def test_acceptance_is_counted_by_position(drafts) -> None:
    for _, figures in drafts.values():
        for found in figures["answering"].values():
            accepted, drafted = found["accepted_per_position"], found["drafted_per_position"]
            assert len(accepted) == len(drafted) == 4
            assert accepted == sorted(accepted, reverse=True)
            assert drafted == sorted(drafted, reverse=True)
            assert found["acceptance"] == pytest.approx(sum(accepted) / sum(drafted))
            assert found["ended_by_model"] > 0


def test_a_draft_does_not_change_what_is_answered(toy, drafts) -> None:
    names = ("prompts", "tokens", "ended_by_model", "repeated_4grams")
    for way, plain in toy.target_metrics["answering"].items():
        for _, figures in drafts.values():
            assert [figures["answering"][way][name] for name in names] == [plain[name] for name in names]


def test_a_killed_draft_run_keeps_its_replies_and_ends_with_the_same_weights(toy, monkeypatch) -> None:
    whole = toy.draft_options("draft_whole", steps=30, human_weight=0.5, eval_prompts=1)
    train_draft(whole, RecordingProgress())
    options = replace(whole, out=toy.directory / "draft_killed")
    killed_at(monkeypatch, 15)
    with pytest.raises(KilledError):
        train_draft(options, RecordingProgress())
    progress = RecordingProgress()
    train_draft(options, progress)
    assert {report.stage for report in progress.reports} == {"step"}
    assert same_weights(options.out, whole.out)


def test_transformers_and_paceline_load_the_result_with_equal_logits(toy, drafts) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: PLC0415

    from paceline.models import load_model  # noqa: PLC0415
    from tests.support.checkpoints import full_logits  # noqa: PLC0415

    for path in (toy.target, drafts["draft"][0].out):
        ids = AutoTokenizer.from_pretrained(path).apply_chat_template(
            [{"role": "user", "content": "What is a red lamp?"}], add_generation_prompt=True, return_dict=False
        )
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
        expected = model(torch.tensor([ids])).logits[0]
        ours = full_logits(load_model(path, dtype=torch.float32), ids)
        assert (ours - expected).abs().max() < 2e-4


def test_minutes_become_a_number_of_steps_that_stays(toy, monkeypatch) -> None:
    options = replace(toy.target_options, out=toy.directory / "minutes", minutes=0.005, eval_prompts=1)
    first = RecordingProgress()
    train_target(options, first)
    steps = json.loads((options.work_directory / "plan.json").read_text())["steps"]
    assert first.reports[-1].done == steps
    monkeypatch.setattr(recipe, "seconds_per_step", None)
    train_target(options, RecordingProgress())
    with pytest.raises(ConfigError, match=r"minutes 0\.005, now minutes 1"):
        train_target(replace(options, minutes=1.0), RecordingProgress())


def test_commands_train_and_evaluate(toy, capsys, tmp_path) -> None:
    (tmp_path / "book.txt").write_text("It was a dark night.\n\n" * 30)
    out = str(tmp_path / "model")
    size = ["--hidden-size", "16", "--num-heads", "1", "--num-kv-heads", "1", "--head-dim", "16", "--num-layers", "1"]
    run_size = ["--length", "64", "--steps", "3", "--no-compile", "--eval-prompts", "2", "--vocab-size", "280"]
    data = ["--data", f"{toy.data}:2", "--data", str(tmp_path), "--arithmetic", "20", "--out", out]
    assert run(["train", "target", *data, *size, *run_size]) == 0
    printed = capsys.readouterr().out
    for word in ("step 3/3", "bits/byte", "Kneser-Ney", "repeated 4-grams"):
        assert word in printed
    assert run(["train", "evaluate", "--target", out, "--draft", out, "--data", toy.data, "--json"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["event"] == "result"
    assert result["answering"]["greedy"]["acceptance"] > 0.4  # a model drafting for itself; answers end inside drafts
    assert result["held_out"]["teacher_forced"]["greedy_agreement"] == 1.0


def test_bad_data_ends_a_command_with_its_line(capsys, tmp_path) -> None:
    (tmp_path / "data.jsonl").write_text('{"question": "a", "answer": "b"}\n{"question": "a"}\n')
    assert run(["train", "target", "--data", str(tmp_path / "data.jsonl"), "--out", str(tmp_path / "out")]) == 2
    cause, fix = capsys.readouterr().err.splitlines()
    assert f"{tmp_path / 'data.jsonl'}:2:" in cause
    assert fix


def test_without_transformers_the_extra_is_named(capsys, monkeypatch, tmp_path) -> None:
    for name in ("hugging_face", "evaluate", "target"):
        monkeypatch.delitem(sys.modules, f"paceline.training.{name}")
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert run(["train", "target", "--data", "x", "--out", str(tmp_path / "out")]) == 2
    assert "pip install 'paceline[train]'" in capsys.readouterr().err
