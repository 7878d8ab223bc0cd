"""Knows how an engine in this process becomes the two sides of an experiment, and what is counted afterwards."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from paceline.benchmark.acceptance import acceptance
from paceline.benchmark.controls import Control
from paceline.benchmark.counting import KernelCounter
from paceline.benchmark.drive import Drive, TimedAnswer, drive
from paceline.benchmark.memory import memory_by_part, peak_memory
from paceline.benchmark.overhead import timed_kernels
from paceline.benchmark.tokens import first_token_by_turn, mean_inter_token_latency, token_figures
from paceline.benchmark.trial import CONTROL, SUBJECT, Experiment, TrialResult, Variant
from paceline.benchmark.workloads import Dialogue
from paceline.core.call import CallOptions
from paceline.core.params import SamplingParams
from paceline.engine.llm import LLM

Load = Callable[[Mapping[str, Any]], LLM]
"""Engine options that differ from the subject's -> a loaded model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What every trial of one point asks."""

    name: str
    dialogues: Callable[[int], Sequence[Dialogue]]
    """Of a pair's number: what both sides are asked in it."""
    output_length: int
    temperature: float = 0.0
    ignore_eos: bool = True
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Engines:
    """The engines of a benchmark by the options that differ; each is loaded once."""

    load: Load
    _loaded: dict[str, LLM] = field(default_factory=dict)

    def get(self, options: Mapping[str, Any]) -> LLM:
        key = repr(sorted(options.items()))
        if key not in self._loaded:
            self._loaded[key] = self.load(options)
        return self._loaded[key]

    def clear(self) -> None:
        """Lets go of them, for others to have the memory."""
        self._loaded.clear()


class EngineSide:
    """Runs a shape's trials on one engine, always in the same way."""

    def __init__(self, llm: LLM, shape: Workload, *, label: str, speculate: bool, seed: int) -> None:
        self.llm, self.shape, self.label, self.speculate, self.seed = llm, shape, label, speculate, seed
        self._runs = 0

    def side(self) -> Variant:
        return Variant(self.label, self.trial)

    def trial(self, pair: int) -> TrialResult:
        before = self.llm.stats()
        found = self._drive(pair)
        after = self.llm.stats()
        times = [answer.times for answer in found.answers]
        figures = token_figures(times, seconds=found.seconds)
        figures["num_preemptions"] = after["num_preemptions"] - before["num_preemptions"]
        figures |= {f"{name}_seconds": phase.seconds for name, phase in found.phases.items()}
        return TrialResult(
            figures,
            {
                "phases": {name: asdict(phase) for name, phase in found.phases.items()},
                "acceptance": acceptance(before["speculation"], after["speculation"], times),
                "categories": by_category(found.answers),
                "turns": first_token_by_turn([(answer.turn, answer.times) for answer in found.answers]),
                "answers": [_kept(answer) for answer in found.answers],
            },
        )

    def count(self) -> dict[str, Any]:
        """Untimed: memory at its peak, bytes and operations by phase and kind of kernel, and overhead by phase."""
        with peak_memory(self.llm.engine.runner.device) as peak:
            self._drive(0)
        counter = KernelCounter()

        @contextmanager
        def counted(phase: str) -> Iterator[None]:
            counter.phase = phase
            with counter:
                yield

        steps = self._drive(0, around=counted).phases
        return {
            "memory": memory_by_part(self.llm.stats()["memory_bytes"], peak),
            "traffic": counter.report(),
            "num_steps": {name: phase.num_steps for name, phase in steps.items()},
            "overhead": self._overhead(),
        }

    def _overhead(self) -> dict[str, Any]:
        """Per phase, the seconds of steps and those spent outside models and pipeline."""
        inside: dict[str, float] = {}
        with timed_kernels(self.llm.engine) as kernels:

            @contextmanager
            def timed(phase: str) -> Iterator[None]:
                before = kernels.seconds
                yield
                inside[phase] = inside.get(phase, 0.0) + kernels.seconds - before

            phases = self._drive(0, around=timed).phases
        return {
            name: {"seconds": phase.seconds, "outside_kernels": phase.seconds - inside.get(name, 0.0)}
            for name, phase in phases.items()
            if phase.num_steps
        }

    def _drive(self, pair: int, **options: Any) -> Drive:
        self._runs += 1
        dialogues = self.shape.dialogues(pair)
        params = [
            SamplingParams(
                max_tokens=self.shape.output_length,
                temperature=self.shape.temperature,
                seed=(self.seed + number) % 2**63,
                ignore_eos=self.shape.ignore_eos,
                detokenize=False,
            )
            for number in range(len(dialogues))
        ]
        # A salt of its own: what the trial before left in the prefix cache is not this one's.
        call = CallOptions(speculate=self.speculate, cache_salt=f"{self.label} {self._runs}")
        return drive(self.llm, dialogues, params, call, clock=time.monotonic, **options)


def by_category(answers: Sequence[TimedAnswer]) -> dict[str, float]:
    """Mean inter-token latency of each category's answers, in seconds; without those that are too short for one."""
    names = dict.fromkeys(answer.category for answer in answers)
    found = {name: mean_inter_token_latency([a.times for a in answers if a.category == name]) for name in names}
    return {name: value for name, value in found.items() if value is not None}


def _kept(answer: TimedAnswer) -> dict[str, Any]:
    """An answer as the raw file keeps it: when each step's tokens came, in seconds from its start."""
    steps = [[round(time - answer.times.start, 7), count] for time, count in answer.times.steps]
    return {
        "category": answer.category,
        "turn": answer.turn,
        "num_prompt_tokens": answer.num_prompt_tokens,
        "num_tokens": len(answer.token_ids),
        "steps": steps,
    }


def experiment(engines: Engines, control: Control, shape: Workload, *, metric: str, seed: int) -> Experiment:
    """The subject with everything it has, beside the same without what ``control`` takes away."""
    llm = engines.get({})
    sides = {
        SUBJECT: EngineSide(llm, shape, label="as configured", speculate=True, seed=seed),
        CONTROL: EngineSide(
            engines.get(control.options), shape, label=control.label, speculate=control.speculate, seed=seed
        ),
    }
    memory = llm.stats()["memory_bytes"]
    return Experiment(
        name=shape.name,
        parameters=dict(shape.parameters),
        subject=sides[SUBJECT].side(),
        control=sides[CONTROL].side(),
        metric=metric,
        lower_is_better=metric not in HIGHER_IS_BETTER,
        work_bytes=sum(size for name, size in memory.items() if name.endswith("weights")),
        finish=lambda: {name: side.count() for name, side in sides.items()},
    )


HIGHER_IS_BETTER = frozenset({"tokens_per_second"})
