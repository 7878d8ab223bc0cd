"""What counts as time in kernels: passes, native calls and sampling; once, where one lies in another."""

from __future__ import annotations

import pytest

from paceline.benchmark.overhead import KernelClock, timed_kernels
from paceline.kernels.native import region
from paceline.models import load_model
from tests.support.engines import Job, Models, run
from tests.support.native import needs_library
from tests.support.zoo import tiny


class Steps:
    """A clock that moves on by one at every look."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


def test_a_call_inside_another_counts_once():
    clock = KernelClock(Steps())
    clock.start()
    clock.start()
    clock.stop()
    clock.stop()
    assert clock.seconds == 1.0


@pytest.mark.parametrize("impl", ["torch", pytest.param("native", marks=needs_library)])
def test_passes_count_whoever_computes_them(tmp_path, impl):
    tiny(tmp_path, "llama")
    engine = Models(load_model(tmp_path), {}).engine(model_impl=impl, num_scheduler_steps=1)
    with timed_kernels(engine, Steps()) as kernels:
        run(engine, [Job((1, 2, 3))])
    # Every step has a pass, its logits and a sample, which natively are one call.
    calls_a_step = {"torch": 3, "native": 1}[impl]
    assert kernels.seconds == calls_a_step * engine.counters.num_steps
    assert region.watches == []
    run(engine, [Job((1, 2, 3))])
    assert kernels.seconds == calls_a_step * engine.counters.num_steps / 2
