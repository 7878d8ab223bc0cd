"""What a run decides at its beginning: compiled only where that was faster, minutes into steps, and then kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from paceline.core.errors import ConfigError
from paceline.training.options import TargetOptions
from paceline.training.workspace import RunPlan, make_plan

OPTIONS = TargetOptions(data=("x",), out=Path("out"), steps=100)


def timed(plain: float, compiled: float):
    return lambda compile_it: compiled if compile_it else plain


def never(_):
    raise AssertionError("nothing had to be tried")


@pytest.mark.parametrize(("plain", "compiled"), [(2.0, 1.0), (1.0, 2.0)])
def test_a_long_run_is_compiled_where_that_is_faster(plain: float, compiled: float) -> None:
    plan = make_plan(OPTIONS, "key", timed(plain, compiled), worth_trying=True)
    assert plan == RunPlan("key", 100, compiled < plain)


def test_nothing_is_tried_where_the_options_decide() -> None:
    assert not make_plan(OPTIONS, "key", never, worth_trying=False).compiled
    for wanted in (True, False):
        assert make_plan(replace(OPTIONS, compile=wanted), "key", never, worth_trying=True).compiled is wanted


def test_minutes_become_steps_at_the_speed_that_was_chosen() -> None:
    plan = make_plan(replace(OPTIONS, minutes=2.0), "key", timed(2.0, 0.5), worth_trying=True)
    assert plan == RunPlan("key", 240, True)
    assert make_plan(replace(OPTIONS, minutes=1e-9), "key", timed(1, 1), worth_trying=False).steps == 1


def test_a_plan_is_kept_and_another_runs_is_refused(tmp_path) -> None:
    path = tmp_path / "work" / "plan.json"
    assert RunPlan.kept(path, "seed 1") is None
    plan = RunPlan("seed 1", 7, True)
    plan.keep(path)
    assert RunPlan.kept(path, "seed 1") == plan
    with pytest.raises(ConfigError, match="seed 1, now seed 2"):
        RunPlan.kept(path, "seed 2")
