"""`dlrun runs`: what was run, newest first."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlrun import runs
from dlrun.commands import _reading as reading
from dlrun.commands._terminal import TerminalReporter, print_json, result_console, table
from dlrun.config.durations import Duration
from dlrun.errors import DlrunError
from dlrun.training.metrics_log import read_rows

if TYPE_CHECKING:
    from dlrun.commands.train import Options

_LONGEST_REASON = 48  # characters; the whole of it is in the run's run.json, and with --json


def list_runs(options: Options, *, limit: int = 20) -> int:
    """Print the newest runs. limit: at most so many, 0 for all. Returns the exit code."""
    found = runs.listing(options.runs)
    shown = found[: limit or None]
    if options.as_json:
        print_json({"runs": [_facts(run) for run in shown]})
        return 0
    note = TerminalReporter().note
    if not found:
        note(f"there are no runs in {options.runs}; make one: dlrun train")
        return 0
    columns = ["run", "name", "verb", "status", "goal", "model", "data", "age", "took", ""]
    result_console().print(table(columns, [_cells(run) for run in shown]))
    if len(shown) < len(found):
        note(f"{len(found) - len(shown)} older runs are not shown: dlrun runs --limit 0")
    return 0


def _cells(run: runs.Run) -> list[str]:
    facts = _facts(run)
    seconds, age = facts["seconds"], time.time() - run.record.created
    took = span(seconds) if seconds is not None else ""
    what = [run.short_id, run.record.name, run.record.verb, run.status, reading.goal_text(run)]
    return [*what, facts["model"], facts["data"], span(age, 1), took, _remark(facts)]


def _facts(run: runs.Run) -> dict[str, Any]:
    """What --json says of a run: the names every verb uses, and what identifies the run."""
    config = reading.config_of(run)
    facts = {
        **reading.described(run), "name": run.record.name, "verb": run.record.verb, "reason": run.record.reason,
        "model": _label(config.get("model")), "data": _label(config.get("data")), "created": run.record.created,
        "children": list(run.record.children),
    }  # fmt: skip
    if run.status == "RUNNING":
        facts |= {"seconds": time.time() - run.record.created, **_progress(run, config)}
    elif facts["seconds"] is None and run.record.ended is not None:
        facts["seconds"] = run.record.ended - run.record.created
    return facts


def _label(group: Any) -> str:
    """A group's component, with what it was pointed at: "files:cifar10", "torchvision:resnet18"."""
    if not isinstance(group, dict):
        return ""
    pointed = group.get("path") or group.get("architecture")
    return f"{group.get('name')}:{Path(str(pointed)).name}" if pointed else str(group.get("name", ""))


def _remark(facts: dict[str, Any]) -> str:
    """How far a running run is, or why one ended early."""
    if facts["status"] == "RUNNING":
        total = facts["total"]
        return f"step {facts['step']:,}" + (
            f"/{total:,}" if total else f" of {facts['duration']}" if facts["duration"] else ""
        )
    if facts["status"] in ("FAILED", "KILLED"):
        return _shortened(facts["reason"])
    return ""


def _shortened(text: str) -> str:
    """The beginning and the end of a long text: an error often starts with a path."""
    half = _LONGEST_REASON // 2
    return text if len(text) <= _LONGEST_REASON else f"{text[: half - 1]}…{text[-half:]}"


def _progress(run: runs.Run, config: dict[str, Any]) -> dict[str, Any]:
    """{"step", "total", "duration"} of a running run; total is None where it cannot be known (yet)."""
    rows: list[dict] = []
    try:
        rows = read_rows(run.metrics_file)
        plan = {name: Duration.parse(config["train"][name]) for name in ("duration", "evaluate_every")}
    except (DlrunError, KeyError, TypeError):
        return {"step": rows[-1]["step"] if rows else 0, "total": None, "duration": ""}
    return {
        "step": rows[-1]["step"] if rows else 0,
        "total": total_steps(plan["duration"], plan["evaluate_every"], rows),
        "duration": str(plan["duration"]),
    }


def total_steps(duration: Duration, evaluate_every: Duration, rows: list[dict]) -> int | None:
    """A run's steps; epochs are counted in steps by the first evaluation, so None before it, and where time decides."""
    if duration.unit == "steps":
        return duration.steps(per_epoch=1)
    evaluated = next((row["step"] for row in rows if any(name.startswith("valid/") for name in row["values"])), None)
    if duration.unit != "epochs" or evaluate_every.unit != "epochs" or not evaluate_every.value or evaluated is None:
        return None
    return duration.steps(per_epoch=round(evaluated / evaluate_every.value))


def span(seconds: float, most: int = 2) -> str:
    """A length of time in its one or two largest units: "48 s", "3 min 20 s", "2 h 5 min", "3 d 4 h"."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{max(0.0, seconds):.1f} s" if seconds < 9.95 and most > 1 else f"{whole} s"
    units = [("d", 86400), ("h", 3600), ("min", 60), ("s", 1)]
    first = next(index for index, (_, size) in enumerate(units) if whole >= size)
    (name, size), (small, small_size) = units[first], units[first + 1]
    rest = whole % size // small_size
    return f"{whole // size} {name}" + (f" {rest} {small}" if rest and most > 1 else "")
