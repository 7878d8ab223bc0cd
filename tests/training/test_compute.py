"""Where and how a run computes: a compiler that is missing costs one line, a missing GPU is named."""

from __future__ import annotations

import pytest
import torch

from paceline.core.errors import ConfigError
from paceline.training.compute import Compiled, choose_device, worth_compiling
from tests.training.recording import RecordingProgress


def double(value: torch.Tensor) -> torch.Tensor:
    return value * 2


def broken(function, **options):
    def fails(*_):
        raise RuntimeError("\nInvalidCxxCompiler: No working C++ compiler found\nmore")

    return fails


def test_without_a_compiler_the_loss_is_computed_plainly_and_one_line_says_so(monkeypatch) -> None:
    monkeypatch.setattr(torch, "compile", broken)
    progress = RecordingProgress()
    compiled = Compiled(double, progress)
    assert [compiled(torch.tensor(value)).item() for value in (1, 2, 3)] == [2, 4, 6]
    (note,) = progress.notes
    assert "No working C++ compiler found" in note
    assert "\n" not in note


def test_an_error_of_the_function_itself_is_not_hidden(monkeypatch) -> None:
    monkeypatch.setattr(torch, "compile", broken)

    def wrong(value):
        raise ZeroDivisionError(value)

    with pytest.raises(ZeroDivisionError):
        Compiled(wrong, RecordingProgress())(torch.tensor(1))


def test_short_runs_are_not_worth_compiling() -> None:
    cpu = torch.device("cpu")
    assert not worth_compiling(20_000, 120 * 256, cpu)
    assert worth_compiling(3_000_000, 3000 * 8192, cpu)


def test_devices(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == choose_device("cpu") == torch.device("cpu")
    with pytest.raises(ConfigError, match="--device cpu"):
        choose_device("cuda")
