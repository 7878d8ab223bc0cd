"""Puts load on a real service, closed loop or Poisson, and reports latencies per token, as a table or JSON.

python -m scripts.load MODEL --clients 8        python -m scripts.load --url http://host:8000 --rate 20 --json
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from paceline.benchmark.environment import describe, environment
from paceline.benchmark.statistics import percentiles
from paceline.benchmark.tokens import token_figures
from paceline.cli.loopback import running_service
from paceline.cli.terminal import print_error
from paceline.core.errors import ConfigError, PacelineError
from scripts.load_client import Load, Sample, put

PROMPTS = (
    "I would like to book a table at an Italian restaurant for two people tonight.",
    "What will the weather be like in San Francisco tomorrow?",
    "I want a large iced latte with oat milk and a blueberry muffin to go please.",
    "I need to rent a car in Los Angeles from March 2nd at 10 am until Friday.",
)
SHARES = (50, 99)
MILLISECONDS = ("time_to_first_token", "inter_token_latency", "step_latency", "e2e_latency")


def figures(samples: Sequence[Sample], seconds: float) -> dict[str, Any]:
    """What the samples say: load held, errors, latencies in seconds. What failed counts as an error and no latency."""
    good = [sample for sample in samples if sample.error is None and sample.times]
    errors = Counter(sample.error or "no tokens" for sample in samples if sample not in good)
    latencies = [sample.times[-1] - sample.due for sample in good]
    held = {
        "requests_per_second": len(good) / seconds,
        "mean_in_flight": sum(sample.end - sample.due for sample in samples) / seconds,
        "num_errors": sum(errors.values()),
        "errors": dict(errors),
    }
    end_to_end = {f"e2e_latency_{share}": value for share, value in percentiles(latencies, SHARES).items()}
    return token_figures([sample.tokens for sample in good], seconds=seconds) | held | end_to_end


def measure(load: Load, url: str, *, key: str | None = None, warmup: int = 2) -> dict[str, Any]:
    """Warms up, runs the load, and tells what was found, how, and where."""
    if warmup:
        asyncio.run(put(replace(load, clients=1, rate=None, num_requests=warmup), url, key))
    samples, seconds = asyncio.run(put(load, url, key))
    found = figures(samples, seconds)
    asked = asdict(load) | {"prompts": len(load.prompts), "warmup": warmup, "url": url}
    return {"parameters": asked, "figures": found, "environment": environment()}


def print_table(result: dict[str, Any]) -> None:
    found, asked = result["figures"], result["parameters"]
    way = f"{asked['clients']} clients" if asked["rate"] is None else f"Poisson, {asked['rate']:g} requests/s"
    errors = [str(found["num_errors"]), *(f"{name}: {count}" for name, count in found["errors"].items())]
    for line in (
        f"{way}, {asked['num_requests']} requests of {asked['max_tokens']} tokens; {describe(result['environment'])}",
        f"held      {found['requests_per_second']:.2f} requests/s, {found['mean_in_flight']:.1f} in flight on average,",
        f"          {found['tokens_per_second']:.1f} tokens/s, {found.get('tokens_per_step', 0):.2f} tokens/step",
        f"errors    {', '.join(errors)}",
        f"{'milliseconds':<22}{'p50':>10}{'p99':>10}",
        *(f"{name:<22}{_cell(found, f'{name}_p50')}{_cell(found, f'{name}_p99')}" for name in MILLISECONDS),
    ):
        print(line)


def _cell(found: dict[str, Any], name: str) -> str:
    value = found.get(name)
    return f"{'-' if value is None else format(value * 1e3, '.2f'):>10}"


@contextmanager
def service(options: argparse.Namespace, arguments: Sequence[str]) -> Any:
    """(URL, key) of the named service, or of one that runs meanwhile."""
    if options.url:
        yield options.url, os.environ.get("PACELINE_API_KEY")
        return
    model = [options.model] if options.model else []
    with running_service([*model, *arguments]) as client:
        yield str(client.base_url), client.headers["Authorization"].removeprefix("Bearer ")


def parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        prog="load", description=__doc__, epilog="Further options, such as --draft DIR, are those of paceline serve."
    )
    parser.add_argument("model", nargs="?", help="served meanwhile; by default the embedded pair")
    parser.add_argument("--url", help="a service that runs already; PACELINE_API_KEY is its key")
    way = parser.add_mutually_exclusive_group()
    way.add_argument("--clients", type=int, help="closed loop with so many clients; 1 if there is no --rate")
    way.add_argument("--rate", type=float, help="Poisson arrivals, requests per second")
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--warmup", type=int, default=2, help="requests before, which do not count")
    parser.add_argument("--max-tokens", type=int, default=64, help="tokens of each answer")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--plain", action="store_true", help="ask without speculation")
    parser.add_argument("--prompts", type=Path, help="text file, one prompt per line")
    parser.add_argument("--request-seed", type=int, default=0, help="of the arrivals and of the answers")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser.parse_known_args(list(arguments))


def load_of(options: argparse.Namespace) -> Load:
    """Raises ConfigError for options that make no sense."""
    prompts: Sequence[str] = PROMPTS
    if options.prompts is not None:
        prompts = [line for line in options.prompts.read_text(encoding="utf-8").splitlines() if line.strip()]
    clients = options.clients if options.rate is not None or options.clients is not None else 1
    load = Load(
        prompts=prompts,
        num_requests=options.requests,
        clients=clients,
        rate=options.rate,
        max_tokens=options.max_tokens,
        temperature=options.temperature,
        speculation=not options.plain,
        seed=options.request_seed,
    )
    positive = {"--requests": load.num_requests, "--clients": clients, "--rate": options.rate}
    for name, value in positive.items():
        if value is not None and not value > 0:
            raise ConfigError(f"{name} must be above 0, got {value}\nChange it.")
    if not prompts:
        raise ConfigError(f"{options.prompts} has no prompt\nWrite one per line.")
    return load


def main(arguments: Sequence[str]) -> int:
    options, rest = parse(arguments)
    try:
        load = load_of(options)
        with service(options, rest) as (url, key):
            result = measure(load, url, key=key, warmup=options.warmup)
    except (PacelineError, OSError) as error:
        print_error(error)
        return 2
    if options.json:
        print(json.dumps(result))
    else:
        print_table(result)
    return 1 if result["figures"]["num_errors"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
