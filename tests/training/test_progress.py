"""Progress on a terminal, in a file and for programs."""

from __future__ import annotations

import io
import json

from rich.console import Console

from paceline.training.progress import Advance, JsonProgress, PlainProgress, TerminalProgress, choose_progress

REPORT = Advance("step", 20, 100, 1234.5, 75.0, 3.21)


def tell(progress) -> None:
    with progress.running():
        progress.note("[begin]")
        progress.advance(REPORT)
        progress.result({"loss": 1.0}, ["loss 1.0", "done"])


def test_plain_lines() -> None:
    out = io.StringIO()
    tell(PlainProgress(out))
    assert out.getvalue().splitlines() == [
        "[begin]",
        "step 20/100  loss 3.2100  1,234 tokens/s  1.2 min left",
        "loss 1.0",
        "done",
    ]


def test_json_lines() -> None:
    out = io.StringIO()
    tell(JsonProgress(out))
    events = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [event.pop("event") for event in events] == ["note", "advance", "result"]
    assert events[1] == {
        "stage": "step",
        "done": 20,
        "total": 100,
        "tokens_per_second": 1234.5,
        "seconds_left": 75.0,
        "loss": 3.21,
    }
    assert events[2] == {"loss": 1.0}


def test_a_terminal_shows_a_bar() -> None:
    out = io.StringIO()
    tell(TerminalProgress(Console(file=out, force_terminal=True, width=120)))
    assert "[begin]" in out.getvalue()
    assert "20/100" in out.getvalue()
    assert "1,234 tokens/s" in out.getvalue()


def test_choice(monkeypatch) -> None:
    assert isinstance(choose_progress(as_json=True), JsonProgress)
    assert isinstance(choose_progress(as_json=False), PlainProgress)


def test_times_are_rounded_to_what_one_wants_to_know() -> None:
    left = [str(Advance("step", 1, 2, 1, seconds)).split("  ")[1] for seconds in (12.3, 90, 7200)]
    assert left == ["12 s left", "1.5 min left", "2.0 h left"]
