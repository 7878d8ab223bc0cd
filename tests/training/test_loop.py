"""Optimiser steps: a killed run ends like one that was not, another run's checkpoint is refused."""

from __future__ import annotations

import time
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from paceline.core.errors import ConfigError
from paceline.training.loop import DivergedError, LoopConfig, run, seconds_per_step
from tests.training.recording import RecordingProgress

CONFIG = LoopConfig(steps=40, tokens_per_step=16, checkpoint_every=10, report_every=10)


class KilledError(Exception):
    """Stands for the process being killed."""


def line_fit(seed: int = 0) -> tuple[torch.nn.Module, object]:
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))

    def loss(step: int) -> torch.Tensor:
        inputs = torch.randn(16, 4, generator=torch.Generator().manual_seed(step))
        return (model(inputs)[:, 0] - inputs.sum(1)).square().mean()

    return model, loss


def fitted(model, loss, checkpoint, *, run_key: str = "steps 40", progress=None) -> float:
    return run(model, loss, CONFIG, checkpoint=checkpoint, progress=progress or RecordingProgress(), run_key=run_key)


def test_resuming_equals_not_stopping(tmp_path) -> None:
    whole, loss = line_fit()
    last = fitted(whole, loss, tmp_path / "whole.pt")
    killed, loss = line_fit()

    def dies(step: int) -> torch.Tensor:
        if step == 25:
            raise KilledError
        return loss(step)

    with pytest.raises(KilledError):
        fitted(killed, dies, tmp_path / "part.pt")
    resumed, loss = line_fit(seed=9)  # other weights: the checkpoint must replace them
    progress = RecordingProgress()
    assert fitted(resumed, loss, tmp_path / "part.pt", progress=progress) == last
    assert "going on at step 20" in progress.notes[0]
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_finished_run_is_not_trained_again(tmp_path) -> None:
    model, loss = line_fit()
    last = fitted(model, loss, tmp_path / "c.pt")
    again, _ = line_fit(seed=1)

    def asked(step: int) -> torch.Tensor:
        raise AssertionError(step)

    assert fitted(again, asked, tmp_path / "c.pt") == last


def test_a_checkpoint_of_another_run_is_refused(tmp_path) -> None:
    model, loss = line_fit()
    fitted(model, loss, tmp_path / "c.pt", run_key="seed 0\nsteps 40")
    with pytest.raises(ConfigError, match="steps 40, now steps 80") as error:
        fitted(model, loss, tmp_path / "c.pt", run_key="seed 0\nsteps 80")
    assert "--work" in str(error.value)


def test_progress_names_loss_rate_and_time_left(tmp_path) -> None:
    model, loss = line_fit()
    progress = RecordingProgress()
    fitted(model, loss, tmp_path / "c.pt", progress=progress)
    assert [report.done for report in progress.reports] == [10, 20, 30, 40]
    assert all(word in str(progress.reports[0]) for word in ("loss", "tokens/s", "left"))
    assert progress.reports[-1].seconds_left == 0


def test_a_loss_that_is_not_finite_stops_with_advice(tmp_path) -> None:
    model, _ = line_fit()
    with pytest.raises(DivergedError, match=r"Lower --learning-rate to 0\.001"):
        fitted(model, lambda _: model[0].weight.sum() * float("nan"), tmp_path / "c.pt")


def test_trying_how_long_a_step_takes_leaves_the_weights_alone() -> None:
    model, loss = line_fit()
    before = [parameter.clone() for parameter in model.parameters()]
    assert seconds_per_step(model, loss, CONFIG) > 0
    assert all(torch.equal(one, other) for one, other in zip(before, model.parameters(), strict=True))


def test_time_left_does_not_count_the_first_step_which_may_compile(tmp_path) -> None:
    model, loss = line_fit()

    def slow_at_first(step: int) -> torch.Tensor:
        time.sleep(0.5 if step == 0 else 0)
        return loss(step)

    progress = RecordingProgress()
    fitted(model, slow_at_first, tmp_path / "c.pt", progress=progress)
    assert progress.reports[0].seconds_left < 0.5


def test_the_rate_rises_stays_and_falls() -> None:
    config = replace(CONFIG, steps=100)
    scales = [config.scale(step) for step in range(100)]
    assert scales[0] < scales[4] == 1.0 == scales[49]
    assert scales[-1] == 0.05
    assert all(a >= b for a, b in pairwise(scales[50:]))
