"""What a person sees of a sweep while it runs: a live table on a terminal, lines everywhere else."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.live import Live
from rich.table import Table
from rich.text import Text

from dlrun.commands._sweep_plan import Plan
from dlrun.commands._sweep_workers import Worker
from dlrun.commands._terminal import number, progress_console
from dlrun.config import space

if TYPE_CHECKING:
    from dlrun.commands._sweep_study import Study

_BEST = 3  # of the trials so far, in the table


class View:
    """Shows a sweep on stderr."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.console, self._live = plan, progress_console(), None
        self._study: Study | None = None
        self._began, self._before = time.monotonic(), 0

    def note(self, text: str) -> None:
        """One line."""
        self.console.print(text, markup=False, soft_wrap=True)

    @contextlib.contextmanager
    def shown(self, study: Study) -> Iterator[None]:
        """While the sweep runs."""
        self._study, self._began = study, time.monotonic()
        self._before = len([trial for trial in study.trials if trial.state.is_finished()])
        if not self.console.is_terminal:
            yield
            return
        with Live(console=self.console, refresh_per_second=4, transient=True) as self._live:
            yield
        self._live = None

    def update(self, busy: Sequence[Worker]) -> None:
        """The table of now."""
        if self._live is not None and self._study is not None:
            self._live.update(self._table(self._study, busy))

    def ended(self, study: Study, trial_number: int) -> None:
        """A trial has ended: a line."""
        ranked = study.ranked()
        trial = next(trial for trial in study.trials if trial.number == trial_number)
        values = trial.values or [trial.user_attrs[key] for key in ("value",) if key in trial.user_attrs]
        shown = "  ".join(f"{o.name} {number(value)}" for o, value in zip(study.chased, values, strict=False))
        settings = "  ".join(f"{name}={number(value)}" for name, value in space.settings(trial.params).items())
        mark = "  best" if ranked and ranked[0].number == trial_number else ""
        reason = trial.user_attrs.get("reason", "")
        how = f"  {reason}" if reason not in ("", "complete") else ""
        self.note(f"trial {trial_number}  {settings}  {shown}{how}{mark}")

    def _table(self, study: Study, busy: Sequence[Worker]) -> Table:
        ended = [trial for trial in study.trials if trial.state.is_finished()]
        table = Table(box=None, pad_edge=False, show_header=False)
        rate = (len(ended) - self._before) / max(1e-9, time.monotonic() - self._began)
        left = f"  about {_spoken((study.budget - len(ended)) / rate)} left" if rate > 0 else ""
        states = [trial.state.name for trial in ended]
        spoken = [f"{states.count(s)} {word}" for s, word in (("PRUNED", "pruned"), ("FAIL", "failed")) if s in states]
        counts = ", ".join([f"{len(ended)} of {study.budget} trials", *spoken, f"{len(busy)} running{left}"])
        table.add_row("", Text(counts, style="bold"))
        for trial in study.ranked()[:_BEST]:
            settings = "  ".join(f"{name}={number(value)}" for name, value in space.settings(trial.params).items())
            table.add_row(f"{study.chased[0].name} {number(trial.values[0])}", f"trial {trial.number}  {settings}")
        for worker in busy:
            table.add_row(
                _bar(worker.latest.get("fraction", 0.0)), f"trial {worker.job.trial.number}  {worker.job.text}"
            )
        return table


def _bar(fraction: float, width: int = 12) -> str:
    full = round(min(1.0, fraction) * width)
    return "━" * full + "╌" * (width - full)


def _spoken(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
