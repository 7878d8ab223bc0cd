"""Ours beside other engines on the shapes S and M, from nothing to the table: ``python -m scripts.measure_peers run``.

See docs/benchmarks.md. Figures of a machine that does anything else at the time mean little; say so with --note.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from paceline.core.errors import ConfigError, PacelineError
from scripts.measure_peers.checkpoints import SHAPES
from scripts.measure_peers.parts import PARTS

PEERS = "transformers,llama.cpp-bf16,llama.cpp-q8_0,llama.cpp-q4_0,openvino-int8,vllm"
OURS = ["float32:dtype=float32", "bfloat16:dtype=bfloat16"]


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m scripts.measure_peers", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="measure, or go on measuring, and print the table")
    run.add_argument("--raw", type=Path, required=True, help="the file every round is kept in; goes on from it")
    run.add_argument("--work", type=Path, default=Path("paceline-bench"), help="where models and copies are written")
    environments = Path.home() / ".cache" / "paceline" / "peers"
    run.add_argument("--environments", type=Path, default=environments, help="where the peers' environments are")
    run.add_argument("--shapes", default="S,M", help="of S,M")
    run.add_argument("--parts", default=",".join(PARTS), help=f"of {','.join(PARTS)}")
    run.add_argument("--peers", default=PEERS, help="by their names in the catalogue; empty for none")
    run.add_argument("--ours", action="append", help="NAME:option=value,...; again for another configuration")
    run.add_argument("--rounds", type=int, help="of everybody once, between probes; 10, or 3 with --quick")
    run.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    run.add_argument("--seed", type=int, default=0)
    run.add_argument("--quick", action="store_true", help="short answers, the first setting of each peer, few rounds")
    run.add_argument("--prepare", action="store_true", help="only make models, environments and copies")
    run.add_argument("--note", default="", help="kept with the figures, such as 'others were at work'")
    table = commands.add_parser("table", help="print what raw files say")
    table.add_argument("raw", type=Path, nargs="+")
    return parser.parse_args(given)


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def prepare_process(options: argparse.Namespace) -> None:
    """What this process and those it starts must have before anything computes."""
    import torch  # noqa: PLC0415

    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    os.environ["PACELINE_PEER_EXPORTS"] = str((options.work / "exports").resolve())
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    torch.set_num_threads(options.threads)


def _check(option: str, given: Sequence[str], known: Collection[str]) -> None:
    for name in given:
        if name not in known:
            raise ConfigError(f"{option} has {name!r}\nChoose from: {', '.join(known)}.")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measures what the file lacks; returns the record."""
    from paceline.benchmark.environment import environment  # noqa: PLC0415
    from paceline.benchmark.raw import RawFile  # noqa: PLC0415
    from scripts.measure_peers.checkpoints import write  # noqa: PLC0415
    from scripts.measure_peers.parts import part  # noqa: PLC0415
    from scripts.measure_peers.run import Meeting, Plan, warm  # noqa: PLC0415
    from scripts.measure_peers.sides import Running, ours, theirs  # noqa: PLC0415

    prepare_process(options)
    plan = Plan(
        rounds=options.rounds or (3 if options.quick else 10),
        num_choices=16 if options.quick else 48,
        threads=options.threads,
        seed=options.seed,
    )
    contenders = [ours(text) for text in options.ours or OURS]
    contenders += [theirs(name, options.environments, quick=options.quick) for name in options.peers.split(",") if name]
    header = {
        "kind": "peers-by-shape",
        "parameters": {"seed": options.seed, "threads": options.threads, "quick": options.quick},
        "plan": {"num_choices": plan.num_choices},
        "environment": environment(),
        "command": sys.argv,
        "notes": [options.note] if options.note else [],
    }
    raw = RawFile(options.raw, header)
    shapes, names = options.shapes.split(","), options.parts.split(",")
    _check("--shapes", shapes, SHAPES)
    _check("--parts", names, PARTS)
    for shape in shapes:
        model = write(SHAPES[shape], options.work / "models" / shape)
        if options.prepare:
            warm(model, contenders, options.threads, note)
            continue
        with Running(note) as running:
            parts = [part(shape, name, quick=options.quick, seed=options.seed) for name in names]
            Meeting(model, contenders, running, raw, plan, note).measure(parts)
    raw.data["finished"] = True
    raw.save()
    return raw.data


def report(records: Sequence[dict[str, Any]]) -> str:
    """Everything for the eye."""
    from paceline.benchmark.environment import describe  # noqa: PLC0415
    from scripts.measure_peers.goals import verdicts  # noqa: PLC0415
    from scripts.measure_peers.table import columns, probe_line, ratio_table, speed_table  # noqa: PLC0415

    found, lines = columns(records), []
    for column in found:
        missing = [f"{name} is missing: {reason}" for name, reason in column.point.get("missing", {}).items()]
        lines += [f"## {column.title}", "", speed_table(column), "", ratio_table(column), "", probe_line(column)]
        lines += [*missing, ""]
    lines += ["## Goals", "", *(one.line() for one in verdicts(found)), ""]
    lines += [describe(record["environment"]) for record in records[:1]]
    return "\n".join([*lines, *(text for record in records for text in record["notes"])])


def main(given: Sequence[str] | None = None) -> int:
    options = arguments(given)
    try:
        if options.command == "run":
            records = [run(options)]
        else:
            records = [json.loads(path.read_text(encoding="utf-8")) for path in options.raw]
    except PacelineError as error:
        note(str(error))
        return 2
    print(report(records))
    return 0


if __name__ == "__main__":
    sys.exit(main())
