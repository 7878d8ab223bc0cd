"""A clock that only trials move, trials of known length on it, and probes that say what they are told."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from paceline.benchmark.probes import MachineSpeed
from paceline.benchmark.raw import RawFile
from paceline.benchmark.trial import Experiment, TrialResult, Variant


class FakeClock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class NoisyTrials:
    """Trials of ``seconds`` each, with noise of their own and a drift that both sides share."""

    def __init__(self, clock: FakeClock, *, seed: int, noise: float = 0.03, drift: float = 0.4) -> None:
        self.clock, self.random, self.noise, self.drift = clock, np.random.default_rng(seed), noise, drift

    def side(self, label: str, seconds: float) -> Variant:
        def run(_pair: int) -> TrialResult:
            slow = 1 + self.drift * (1 + np.sin(self.clock.now / 20)) / 2
            taken = float(seconds * slow * np.exp(self.noise * self.random.standard_normal()))
            self.clock.now += taken
            return TrialResult({"seconds": taken})

        return Variant(label, run)


class FakeProbes:
    """Says the next of the given bandwidths, the last one for ever."""

    def __init__(self, *bandwidths: float) -> None:
        self.bandwidths, self.asked = list(bandwidths or (50e9,)), []

    def read(self, num_bytes: int | None) -> MachineSpeed:
        self.asked.append(num_bytes)
        bandwidth = self.bandwidths.pop(0) if len(self.bandwidths) > 1 else self.bandwidths[0]
        return MachineSpeed(bandwidth, 200e9, num_bytes or 0, 1, "fp32")


def experiment(subject: Variant, control: Variant, name: str = "point", **more) -> Experiment:
    return Experiment(
        name=name, parameters={"size": 1}, subject=subject, control=control, metric="seconds", work_bytes=1000, **more
    )


def raw_file(path: Path, **header) -> RawFile:
    return RawFile(path, {"kind": "test", "parameters": {}, "plan": {}, "environment": {}, "command": []} | header)
