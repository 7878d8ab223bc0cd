"""A progress that remembers what it heard."""

from __future__ import annotations

from contextlib import nullcontext


class RecordingProgress:
    def __init__(self) -> None:
        self.notes, self.reports, self.results, self.lines = [], [], [], []

    def note(self, text):
        self.notes.append(text)

    def advance(self, report):
        self.reports.append(report)

    def result(self, metrics, lines):
        self.results.append(metrics)
        self.lines += lines

    def running(self):
        return nullcontext()
