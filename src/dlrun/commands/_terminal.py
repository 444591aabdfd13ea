"""What a person sees while a run runs and when it ends: progress on stderr, results on stdout."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

_SHOWN = 3  # metrics of an evaluation in its line; the final table has all of them
_TICKS = "▁▂▃▄▅▆▇█"


def progress_console() -> Console:
    """stderr; without control codes where it is not a terminal."""
    return Console(stderr=True, highlight=False, markup=False, emoji=False)


def result_console() -> Console:
    """stdout; wide enough for its tables where it is not a terminal."""
    console = Console(highlight=False, markup=False, emoji=False)
    return console if console.is_terminal else Console(highlight=False, markup=False, emoji=False, width=160)


def print_json(value: Mapping[str, Any]) -> None:
    """Exactly one JSON object on stdout; what JSON cannot say (NaN, infinity) becomes null."""
    sys.stdout.write(json.dumps(_finite(value), ensure_ascii=False) + "\n")
    sys.stdout.flush()


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    return value


def sparkline(values: Sequence[float], width: int = 40) -> str:
    """A curve in one line of text; values are averaged down to the width."""
    known = [value for value in values if value == value and abs(value) != float("inf")]
    if not known:
        return ""
    size = max(1, -(-len(known) // width))
    means = [sum(known[i : i + size]) / len(known[i : i + size]) for i in range(0, len(known), size)]
    low, high = min(means), max(means)
    scale = (len(_TICKS) - 1) / (high - low) if high > low else 0.0
    return "".join(_TICKS[round((value - low) * scale)] for value in means)


def number(value: Any) -> str:
    """A number as short as it may be and still be compared."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    return (
        f"{value:,}" if isinstance(value, int) else f"{value:.4f}" if 0.001 <= abs(value) < 10_000 else f"{value:.4g}"
    )


def table(columns: Iterable[str], rows: Iterable[Sequence[Any]], title: str | None = None) -> Table:
    """A plain table: numbers to the right."""
    made = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    data = [list(row) for row in rows]
    for index, name in enumerate(columns):
        numeric = bool(data) and all(isinstance(row[index], (int, float)) for row in data)
        made.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in data:
        made.add_row(*(number(cell) for cell in row))
    return made


class TerminalReporter:
    """Shows a run as a bar with its ETA on a terminal, and as plain lines everywhere else."""

    def __init__(self, quiet: bool = False) -> None:
        self.console = progress_console()
        self.quiet = quiet
        self._bar: Progress | None = None
        self._bar_task: TaskID | None = None
        self._plain_at = 0.0
        self._latest: dict[str, float] = {}

    def begin(self, plan: Any, step: int) -> None:
        """The loop begins; plan.total is None where time decides."""
        self.begin_counts(plan.total, plan.seconds, step)

    def begin_counts(self, total: int | None, seconds: float | None, step: int) -> None:
        """The same from plain numbers (a launcher has no plan)."""
        self._total, self._seconds = total, seconds
        if self.quiet or not self.console.is_terminal:
            return
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            TextColumn("eta"),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
        )
        self._bar.start()
        self._bar_task = self._bar.add_task("training", total=1.0)

    def step(self, step: int, values: dict[str, float] | None, fraction: float) -> None:
        """One step is done; values are there every log_every steps."""
        if values:
            self._latest |= values
        if self._bar is not None and self._bar_task is not None:
            loss = self._latest.get("train/loss")
            text = (
                f"step {step}"
                + (f"/{self._total}" if self._total else "")
                + (f"  loss {loss:.4f}" if loss is not None else "")
            )
            self._bar.update(self._bar_task, completed=fraction, description=text)
        elif values and not self.quiet and time.monotonic() - self._plain_at > 10:
            self._plain_at = time.monotonic()
            self.note(f"step {step} ({fraction:.0%})  loss {values.get('train/loss', float('nan')):.4f}")

    def evaluated(self, step: int, values: dict[str, float], best: bool) -> None:
        """The validation split was evaluated; the goal's metric comes first. All of them are in metrics.jsonl."""
        if not values:
            return
        split = next(iter(values)).partition("/")[0]
        shown = [f"{name.removeprefix(f'{split}/')} {number(value)}" for name, value in list(values.items())[:_SHOWN]]
        self.note(f"step {step}  {split}/{'  '.join(shown)}{'  best' if best else ''}")

    def note(self, text: str) -> None:
        """One line on stderr."""
        if not self.quiet:
            self.console.print(text, markup=False, soft_wrap=True)

    def end(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
