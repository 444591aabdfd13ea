"""What is printed: numbers, curves, tables, JSON, progress, and lengths of time."""

import io
import json

import pytest
from rich.console import Console

from dlrun.commands import _terminal as terminal
from dlrun.commands.runs_list import span, total_steps
from dlrun.config.durations import Duration


def printed(renderable) -> str:
    console = terminal.result_console()
    console.file = io.StringIO()
    console.print(renderable)
    return console.file.getvalue()


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.98148, "0.9815"), (1234567, "1,234,567"), (0.0004, "0.0004"), (12345.678, "1.235e+04"), (True, "True"),
     ("a", "a"), (-0.5, "-0.5000"), (0.0, "0"), (float("nan"), "nan")],
)  # fmt: skip
def test_a_number_is_as_short_as_it_may_be(value, text):
    assert terminal.number(value) == text


def test_a_sparkline_rises_from_the_lowest_tick_to_the_highest():
    assert terminal.sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == "▁▂▃▄▅▆▇█"
    assert terminal.sparkline([3.0, 3.0]) == "▁▁"
    assert terminal.sparkline([]) == terminal.sparkline([float("nan"), float("inf")]) == ""


def test_a_sparkline_of_many_values_averages_them_down_to_its_width():
    line = terminal.sparkline([float(i // 25) for i in range(100)], width=4)
    assert line == "▁▃▆█"
    assert len(terminal.sparkline(list(range(1001)))) <= 40


def test_a_table_shows_brackets_and_colons_as_they_are():
    text = printed(terminal.table(["what"], [["[red]not markup[/red]"], ["[index 3] :car: x"]]))
    assert "[red]not markup[/red]" in text
    assert "[index 3] :car: x" in text


def test_a_table_puts_numbers_to_the_right_and_text_to_the_left():
    lines = printed(terminal.table(["name", "value"], [["a", 1], ["bb", 1000]])).splitlines()
    assert [line.rstrip() for line in lines] == ["name  value", "a         1", "bb    1,000"]


def test_an_empty_table_has_its_heading():
    assert printed(terminal.table(["name", "value"], [])).strip() == "name  value"


def test_a_long_line_is_not_broken_where_it_is_not_read_on_a_terminal(capsys):
    terminal.TerminalReporter().note("x" * 500)
    assert capsys.readouterr().err == "x" * 500 + "\n"


def test_json_has_null_where_a_number_is_not_finite(capsys):
    terminal.print_json({"a": float("nan"), "b": [float("inf"), 1.5], "c": {"d": (float("-inf"), "é")}})
    text = capsys.readouterr().out
    assert text.endswith("\n") and text.count("\n") == 1
    assert json.loads(text) == {"a": None, "b": [None, 1.5], "c": {"d": [None, "é"]}}
    assert "é" in text


def test_progress_without_a_terminal_is_plain_lines_on_stderr(capsys):
    reporter = terminal.TerminalReporter()
    reporter.begin_counts(100, None, 0)
    reporter.step(20, {"train/loss": 0.5}, 0.2)
    reporter.step(21, None, 0.21)
    reporter.step(40, {"train/loss": 0.25}, 0.4)  # within ten seconds of the line before
    reporter.evaluated(50, {"valid/accuracy": 0.9}, True)
    reporter.end()
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "step 20 (20%)  loss 0.5000\nstep 50  valid/accuracy 0.9000  best\n"


def test_progress_on_a_terminal_is_a_bar_that_goes_away(monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr(terminal, "progress_console", lambda: Console(file=screen, force_terminal=True, width=100))
    reporter = terminal.TerminalReporter()
    reporter.begin_counts(100, None, 0)
    reporter.step(20, {"train/loss": 0.5}, 0.2)
    reporter.end()
    assert "step 20/100  loss 0.5000" in screen.getvalue()
    assert "20 %" in screen.getvalue()
    assert screen.getvalue().endswith("\x1b[2K")  # the line is cleared


def test_a_quiet_reporter_says_nothing(capsys):
    reporter = terminal.TerminalReporter(quiet=True)
    reporter.begin_counts(10, None, 0)
    reporter.step(1, {"train/loss": 1.0}, 0.1)
    reporter.evaluated(1, {"valid/loss": 1.0}, False)
    reporter.note("a note")
    reporter.end()
    assert capsys.readouterr() == ("", "")


# ---------------------------------------------------------------- lengths of time, and of runs


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.24, "0.2 s"), (9.96, "10 s"), (48.4, "48 s"), (59.9, "1 min"), (200, "3 min 20 s"), (7500, "2 h 5 min"),
     (7200, "2 h"), (273600, "3 d 4 h"), (-3, "0.0 s")],
)  # fmt: skip
def test_a_length_of_time_is_told_in_its_two_largest_units(seconds, text):
    assert span(seconds) == text


def test_an_age_is_told_in_one_unit():
    assert [span(seconds, 1) for seconds in (4.2, 200, 7500, 273600)] == ["4 s", "3 min", "2 h", "3 d"]


def rows(*steps: int) -> list[dict]:
    return [{"step": 20, "values": {"train/loss": 1.0}}, *({"step": s, "values": {"valid/loss": 1.0}} for s in steps)]


@pytest.mark.parametrize(
    ("duration", "every", "evaluated", "total"),
    [("500 steps", "1 epoch", [], 500), ("10 epochs", "1 epoch", [40, 80], 400), ("10 epochs", "2 epochs", [80], 400),
     ("10 epochs", "0.5 epochs", [20], 400), ("10 epochs", "1 epoch", [], None), ("10 epochs", "25 steps", [25], None),
     ("30 minutes", "1 epoch", [40], None)],
)  # fmt: skip
def test_a_runs_steps_are_known_once_an_epoch_has_been_counted(duration, every, evaluated, total):
    assert total_steps(Duration.parse(duration), Duration.parse(every), rows(*evaluated)) == total
