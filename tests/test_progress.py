"""The progress display: a bar on a terminal, plain lines now and then elsewhere."""

import sys

import pytest

from seqssgd.data import progress
from seqssgd.data.progress import ProgressBar


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test sets: ``clock[0]`` seconds."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_without_a_terminal_lines_come_at_intervals(clock, capsys):
    with ProgressBar(4000, done=1000, interval=10) as bar:
        for second in (3, 9, 11, 15, 22):
            clock[0] = second
            bar.advance(500)
    said = capsys.readouterr()
    assert said.out.splitlines() == [
        "1,000 of 4,000 utterances were finished before",
        "2,500 of 4,000 utterances",
        "3,500 of 4,000 utterances",
    ]
    assert said.err == ""


def test_a_terminal_gets_a_bar_that_starts_where_the_work_does(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with ProgressBar(40, done=10, unit="files") as bar:
        bar.advance(30)
    said = capsys.readouterr()
    assert "25%" in said.err and "10/40" in said.err and "40/40" in said.err and "files" in said.err
    assert said.out == ""
