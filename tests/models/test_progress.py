"""Reading weights is shown once it takes a noticeable time: lines where nobody watches, a bar on a terminal."""

from __future__ import annotations

import io

from paceline.models import progress
from paceline.models.progress import LINE_SECONDS, NOTICEABLE_SECONDS, LoadProgress, load_progress

GB = 10**9


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_lines_where_there_is_no_terminal():
    clock, file = Clock(), io.StringIO()
    shown = LoadProgress(4 * GB, file, clock)
    shown.advance(GB // 2)
    assert file.getvalue() == ""
    clock.now = NOTICEABLE_SECONDS
    shown.advance(GB // 2)
    shown.advance(GB)
    clock.now += LINE_SECONDS
    shown.advance(GB)
    shown.stop()
    assert file.getvalue().splitlines() == ["loading: 25% of 4.0 GB", "loading: 75% of 4.0 GB"]


def test_a_bar_on_a_terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    clock, file = Clock(), Terminal()
    shown = LoadProgress(4 * GB, file, clock)
    shown.advance(GB)
    assert file.getvalue() == ""
    clock.now = NOTICEABLE_SECONDS
    shown.advance(GB)
    shown.advance(GB)
    shown.stop()
    assert "3.0/4.0 GB" in file.getvalue()


def test_quiet_shows_nothing(monkeypatch, capsys):
    monkeypatch.setattr(progress, "NOTICEABLE_SECONDS", 0.0)
    monkeypatch.setenv("PACELINE_QUIET", "1")
    with load_progress(GB) as advance:
        advance(GB)
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("PACELINE_QUIET", "no")
    with load_progress(GB) as advance:
        advance(GB)
    assert "100%" in capsys.readouterr().err
