"""Knows how all sides are measured beside each other: checked first, then in rounds between probes, kept in a file."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from paceline.benchmark.peers import Answers, Missing, PeerError, PeerProcess, ReadyPeer, Task, choose, speeds
from paceline.benchmark.probes import MachineProbes
from paceline.benchmark.raw import RawFile
from paceline.core.errors import ConfigError
from scripts.measure_peers.checkpoints import SHAPES
from scripts.measure_peers.parts import PREFILL, Part
from scripts.measure_peers.sides import BYTES, FLOAT32, OURS, Contender, Running, kind_of

SETTLE_SECONDS = 0.3
"""Between two sides: threads of the last one may still spin for work (Intel's OpenMP does for 0.2 s)."""
PROBE_SECONDS = 0.05
PAGES = "huge"
"""What memory gives at best, whatever pages a side uses."""
CPU = torch.device("cpu")

Note = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How the parts of a run are measured."""

    rounds: int
    num_choices: int
    threads: int
    seed: int


@dataclass(frozen=True, slots=True)
class Ready:
    """A side that takes part."""

    process: PeerProcess
    kind: str


@dataclass(frozen=True, slots=True)
class Meeting:
    """All sides of one shape, and the file that every round is kept in."""

    model: Path
    contenders: Sequence[Contender]
    running: Running
    raw: RawFile
    plan: Plan
    note: Note

    def measure(self, parts: Sequence[Part]) -> None:
        """Measures what the file lacks of the parts.

        Raises:
            ConfigError: the file holds a part with other sides.
            PeerError: our own answers, which all are compared with, could not be had.
        """
        self._expect([part for part in parts if "expected" not in self.raw.open_point(part.title, part.parameters())])
        for part in parts:
            self._measure(part)

    def _expect(self, parts: Sequence[Part]) -> None:
        """Our greedy answers in float32, which all others are compared with."""
        contender = Contender("our own answers in float32", True, OURS, [], 0.0, lambda: Path(sys.executable))
        with Running(self.note) as running:
            for part in parts:
                process = running.get(contender)
                if process is None:
                    raise PeerError(running.missing[contender.name])
                process.load(str(self.model), threads=self.plan.threads, settings=FLOAT32)
                entry = self.raw.open_point(part.title, part.parameters())
                entry["expected"] = process.generate(part.prompts, part.max_tokens).token_ids

    def _measure(self, part: Part) -> None:
        entry = self.raw.open_point(part.title, part.parameters())
        names = [one.name for one in self.contenders]
        if entry.setdefault("contenders", names) != names:
            raise ConfigError(
                f"{self.raw.path} holds {part.title} with {', '.join(entry['contenders'])}\nUse another file."
            )
        if len(entry["blocks"]) >= self.plan.rounds:
            self.note(f"{part.title}: already measured")
            return
        self._rounds(part, entry, self._prepared(part, entry))

    def _prepared(self, part: Part, entry: dict[str, Any]) -> dict[str, Ready]:
        """Everybody who can take part, loaded in the best settings; what was found is kept with the part."""
        task = Task(
            model=str(self.model),
            draft=None,
            prompts=part.prompts,
            expected=entry["expected"],
            threads=self.plan.threads,
            num_choices=self.plan.num_choices,
        )
        ready, about, missing = {}, entry.setdefault("about", {}), entry.setdefault("missing", {})
        for one in self.contenders:
            if one.name in missing:
                continue
            self.note(f"{part.title}: {one.name} is compared")
            found = self._chosen(one, task, about.get(one.name))
            if isinstance(found, Missing):
                self.note(f"{part.title}: {one.name} is missing: {found.reason}")
                missing[one.name] = found.reason
                continue
            about.setdefault(one.name, described(one, found))
            ready[one.name] = Ready(found.process, about[one.name]["kind"])
            self.raw.save()
        return ready

    def _chosen(self, one: Contender, task: Task, known: Mapping[str, Any] | None) -> ReadyPeer | Missing:
        process = self.running.get(one)
        if process is None:
            return Missing(one.name, self.running.missing[one.name])
        settings = one.settings if known is None else [known["settings"]]
        return choose(one.name, process, task, settings, one.least_agreement)

    def _rounds(self, part: Part, entry: dict[str, Any], ready: dict[str, Ready]) -> None:
        kinds = sorted({one.kind for one in ready.values()})
        probes = {kind: MachineProbes(CPU, kind, pages=PAGES, seconds=PROBE_SECONDS) for kind in kinds}
        for number in range(len(entry["blocks"]), self.plan.rounds):
            self.note(f"{part.title}: round {number + 1} of {self.plan.rounds}")
            before = _read(probes, part)
            order = _order(sorted(ready), number, self.plan.seed)
            sides = dict(_trials(order, ready, part, entry))
            entry["blocks"].append({"probes": [before, _read(probes, part)], "order": order, "sides": sides})
            self.raw.save()


def described(one: Contender, found: ReadyPeer) -> dict[str, Any]:
    """What the file says of a side."""
    return asdict(found.best) | {
        "kind": kind_of(found.best.settings),
        "ours": one.ours,
        "speculates": one.speculates or "speculative_config" in found.best.settings,
        "versions": found.versions,
        "tried": [asdict(tried) for tried in found.tried],
    }


def warm(model: Path, contenders: Sequence[Contender], threads: int, note: Note) -> None:
    """Makes every environment and every converted copy of a model, which takes minutes the first time."""
    for one in contenders:
        with Running(note) as running:
            process = running.get(one)
            try:
                for settings in one.settings:
                    if process is not None:
                        process.load(str(model), threads=threads, settings=settings)
            except PeerError as error:
                running.missing[one.name] = str(error)
            note(f"{one.name}: {running.missing.get(one.name, 'ready')}")


def _read(probes: Mapping[str, MachineProbes], part: Part) -> dict[str, dict[str, Any]]:
    """A reading per kind of weights, over as many bytes as a step reads of them."""
    return {kind: asdict(probe.read(int(SHAPES[part.shape].num_read * BYTES[kind]))) for kind, probe in probes.items()}


def _order(names: Sequence[str], number: int, seed: int) -> list[str]:
    """Drawn anew for every two rounds, of which the second runs backwards: nobody is always behind the same other."""
    order = [names[place] for place in np.random.default_rng((seed, number // 2)).permutation(len(names))]
    return order[::-1] if number % 2 else order


def _trials(
    order: Sequence[str], ready: dict[str, Ready], part: Part, entry: dict[str, Any]
) -> Iterator[tuple[str, dict[str, float]]]:
    for name in order:
        time.sleep(SETTLE_SECONDS)
        try:
            answers = ready[name].process.generate(part.prompts, part.max_tokens)
        except PeerError as error:
            entry["missing"][name] = str(error)
            del ready[name]
            continue
        yield name, figures(answers, part)


def figures(answers: Answers, part: Part) -> dict[str, float]:
    """What is kept of a trial: its speeds, and how long its steps took."""
    found = speeds(answers)
    if part.metric == PREFILL:
        found[PREFILL] = sum(map(len, part.prompts)) / answers.seconds
    gaps = np.diff([at for at, _ in answers.steps])
    if len(gaps):
        found["step_p50_ms"], found["step_p99_ms"] = (float(np.percentile(gaps, share)) * 1e3 for share in (50, 99))
    return found
