"""`dlrun sweep`: many runs under one parent, chosen one after another, stopped early where that is wise."""

from __future__ import annotations

import contextlib
import shlex
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dlrun import runs
from dlrun.commands import _making as making
from dlrun.commands import _sweep_plan as plans
from dlrun.commands import _sweep_results as results
from dlrun.commands._sweep_plan import Plan
from dlrun.commands._sweep_sitting import Sitting
from dlrun.commands._sweep_view import View
from dlrun.commands._terminal import print_json, result_console, table
from dlrun.errors import DlrunError, Exit

if TYPE_CHECKING:
    from dlrun.commands.train import Options


def sweep(given: Sequence[str], options: Options, *, workers: int) -> int:
    """Make a sweep and run it to its end. Returns the exit code."""
    plan, config = plans.planned(given, options)
    making.send_what_is_left(options.runs)
    view = View(plan)
    parent = making.new_run(
        config, options.registry, options.runs, verb="sweep", require_tracking=options.require_tracking, reporter=view,
        beside=[("search", plan.search.name)],
    )  # fmt: skip
    plan.write(parent.folder)
    return _run(parent, plan, options, workers, view)


def resume(reference: str, given: Sequence[str], options: Options, *, workers: int) -> int:
    """Go on with a sweep: finished trials stay, interrupted ones go on from their checkpoints. given: what changes."""
    from dlrun.commands import _sweep_resume

    parent = runs.find(options.runs, reference)
    if parent.record.verb != "sweep":
        hint = runs.resume_command(parent) or "see: dlrun runs"
        raise DlrunError(f"run {parent.short_id} is a {parent.record.verb}, no sweep", hint)
    before = Plan.read(parent.folder)
    plan = _sweep_resume.changed(before, given, options)
    if parent.status == "FINISHED" and plan.search == before.search:
        View(plan).note(f"sweep {parent.short_id} is finished; nothing is left to do")
        show(parent, options)
        return int(Exit.OK)
    if given:
        parent = _sweep_resume.write(parent, plan, given, options)
    making.send_what_is_left(options.runs)
    return _run(parent, plan, options, workers, View(plan))


def join(reference: str, given: Sequence[str], options: Options, *, workers: int) -> int:
    """Train trials of a sweep that another machine began, until none is left. Makes a run of its own (verb `join`).

    given: where the sweep's database is (search.storage), and what differs on this machine (data.path, hardware.*).
    Raises: DlrunError without a shared database and a shared tracking server, or if they do not know the sweep.
    """
    from dlrun.commands import _sweep_join

    sweep_id, plan, config = _sweep_join.joined(reference, given, options)
    view = View(plan)
    home = making.new_run(
        config, options.registry, options.runs, verb="join", nested_under=sweep_id, require_tracking=True, reporter=view
    )
    plan.write(home.folder)
    view.note(f"joined sweep {sweep_id[:8]}: {workers} trials at a time here")

    def work(home: runs.Run) -> None:
        Sitting(sweep_id, home, plan, options, workers, view).run()

    code = _held(home, work, view, f"join it again: dlrun sweep --join {sweep_id[:8]} search.storage=…")
    trained = runs.load(home.folder).record.children
    if options.as_json:
        print_json(making.result_object(runs.load(home.folder)) | {"trials": list(trained)})
    elif code == Exit.OK:
        result_console().print(f"sweep {sweep_id[:8]}: {len(trained)} trials were trained here")
    return code


def _run(parent: runs.Run, plan: Plan, options: Options, workers: int, view: View) -> int:
    view.note(f"sweep {parent.short_id}: {plans.counted(plan, options)}, {workers} at a time")

    def work(parent: runs.Run) -> None:
        Sitting(parent.id, parent, plan, options, workers, view).run()

    code = _held(parent, work, view, f"go on with: {runs.resume_command(parent)}{making.runs_flag(options.runs)}")
    if code == Exit.OK:
        show(runs.load(parent.folder), options)
    return code


def _held(run: runs.Run, work: Callable[[runs.Run], None], view: View, again: str) -> int:
    """Do a sitting's work under its run's lock, whose status says how it ended. Returns the exit code.

    work: gets the run as it is from now on: what it writes into the record must not bring an earlier status back.
    """
    from dlrun import tracking

    with runs.hold(run.folder):
        before, run = run.status, run.update(status="RUNNING", reason="", ended=None)
        if before != "RUNNING":  # gone on with: MLflow still says how it ended before
            tracking.set_running(run.folder)
            tracking.catch_up(run.folder, timeout_seconds=10)
        try:
            with _stopping_signals():
                work(run)
        except _Stopped as stop:
            making.finish(runs.load(run.folder), "KILLED", stop.name)
            view.note(f"stopped by {stop.name}; {again}")
            return int(Exit.INTERRUPTED if stop.name == "SIGINT" else Exit.TERMINATED)
        except BaseException as error:
            message = error.message if isinstance(error, DlrunError) else f"{type(error).__name__}: {error}"
            making.finish(runs.load(run.folder), "FAILED", message.splitlines()[0])
            raise
        making.finish(runs.load(run.folder), "FINISHED", "complete")
    return int(Exit.OK)


def top(parent: runs.Run, folder: Path, count: int) -> list[runs.Run]:
    """A sweep's best runs, the best first. Raises: DlrunError naming those whose weights are gone."""
    result = parent.result
    if not result:
        raise DlrunError(f"sweep {parent.short_id} has no result yet", f"dlrun sweep --resume {parent.short_id}")
    best = [row for row in results.ranked_rows(result) if row["state"] == "complete"][:count]
    if away := [row["run"][:8] for row in best if not (folder / row["run"]).is_dir()]:
        raise DlrunError(f"sweep {parent.short_id}: {', '.join(away)} were trained on another machine", "run it there")
    found = [runs.load(folder / row["run"] / "artifacts") for row in best]
    if gone := [run.short_id for run in found if not run.checkpoints.is_dir()]:
        first = next(rank for rank, run in enumerate(found) if not run.checkpoints.is_dir())
        left = " ".join(run.short_id for run in found if run.checkpoints.is_dir())
        raise DlrunError(
            f"sweep {parent.short_id}: the weights of {', '.join(gone)} are gone (search.keep)",
            f"use --top {first}, or sweep again with search.keep={len(found)}" if first else f"those left: {left}",
            Exit.DATA,
        )
    return found


# ---------------------------------------------------------------- the end


def show(parent: runs.Run, options: Options) -> None:
    """The final table (or the JSON object) on stdout."""
    result = parent.result or {}
    if options.as_json:
        print_json(making.result_object(parent) | {"trials": result.get("trials", []), "best": result.get("best")})
        return
    console = result_console()
    goal = result["goal"]
    done = [row for row in results.ranked_rows(result) if row["values"]]
    names = list(dict.fromkeys(name for row in done for name in row["settings"]))
    others, front = results.others(result), results.front(result)
    rows = [
        [
            row["number"],
            (row["run"] or "")[:8],
            *(row["values"] + [""] * len(others))[: 1 + len(others)],
            *[row["settings"].get(name, "") for name in names],
            "front" if row["number"] in front else row["state"],
        ]
        for row in done[:10]
    ]
    console.print(table(["trial", "run", results.heading(goal["name"]), *others, *names, ""], rows))
    states = [row["state"] for row in result["trials"]]
    counted = ", ".join(f"{states.count(state)} {state}" for state in ("complete", "pruned", "fail") if state in states)
    console.print(f"{len(states)} trials: {counted}")
    console.print(f"best     dlrun train {shlex.join(result['best']['overrides'])}", soft_wrap=True, markup=False)
    console.print(f"sweep    {parent.id}  {parent.status}")
    console.print(f"see it   dlrun compare {parent.short_id}", soft_wrap=True)


# ---------------------------------------------------------------- signals


class _Stopped(BaseException):
    """A signal asked the sweep to stop."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


@contextlib.contextmanager
def _stopping_signals() -> Iterator[None]:
    def stop(number: int, _frame: object) -> None:
        signal.signal(number, signal.SIG_DFL)  # a second one ends at once
        raise _Stopped(signal.Signals(number).name)

    before: dict[int, Callable | int | None] = {
        number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
