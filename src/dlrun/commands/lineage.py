"""`dlrun lineage`: the runs a run was made from, and those made from it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from dlrun import runs
from dlrun.commands import _reading as reading
from dlrun.commands._terminal import print_json, result_console

if TYPE_CHECKING:
    from rich.tree import Tree

    from dlrun.commands.train import Options

Neighbours = Callable[[str], list[str]]


def lineage(reference: str, options: Options) -> int:
    """Print the tree from the first ancestors down to the last descendants. Returns the exit code."""
    run = runs.find(options.runs, reference)
    known = {other.id: other for other in runs.listing(options.runs)} | {run.id: run}
    up, down = _parents(known), _children(known)
    if options.as_json:
        above = {"parents": _nested(run.id, known, up, "parents")}
        print_json({**_describe(run.id, known), **above, "children": _nested(run.id, known, down, "children")})
        return 0
    within = {run.id, *_reached(run.id, up), *_reached(run.id, down)}
    roots = [one for one in within if not any(parent in within for parent in up(one))]
    shown: set[str] = set()
    for root in sorted(roots, key=lambda one: known[one].record.created if one in known else 0.0):
        result_console().print(_tree(root, run.id, known, within, down, shown))
    return 0


def _parents(known: dict[str, runs.Run]) -> Neighbours:
    return lambda run_id: list(known[run_id].record.parents) if run_id in known else []


def _children(known: dict[str, runs.Run]) -> Neighbours:
    """Runs that name it as a parent, oldest first; also of a parent whose folder is gone."""
    found: dict[str, list[str]] = {}
    for run in sorted(known.values(), key=lambda run: run.record.created):
        for parent in run.record.parents:
            found.setdefault(parent, []).append(run.id)
    return lambda run_id: found.get(run_id, [])


def _reached(run_id: str, neighbours: Neighbours) -> list[str]:
    """Everything that can be reached from a run, itself left out."""
    found: list[str] = []
    waiting = list(neighbours(run_id))
    while waiting:
        one = waiting.pop(0)
        if one not in found and one != run_id:
            found.append(one)
            waiting += neighbours(one)
    return found


# ---------------------------------------------------------------- printing


def _tree(
    root: str, asked: str, known: dict[str, runs.Run], within: set[str], down: Neighbours, shown: set[str]
) -> Tree:
    """Ancestors, the run and its descendants. shown: runs that stand above already are not opened again."""
    from rich.tree import Tree

    def grow(branch: Tree | None, run_id: str) -> Tree:
        again = run_id in shown
        shown.add(run_id)
        line = _line(run_id, asked, known, again and bool(down(run_id)))
        grown = Tree(line, guide_style="dim") if branch is None else branch.add(line)
        for child in [] if again else down(run_id):
            if child in within:
                grow(grown, child)
        return grown

    return grow(None, root)


def _line(run_id: str, asked: str, known: dict[str, runs.Run], again: bool) -> Any:
    from rich.text import Text

    if run_id not in known:
        return Text(f"{run_id[:8]}  not in this folder", style="dim")
    run = known[run_id]
    words = [run.short_id, run.record.verb, run.record.name, reading.goal_text(run),
             "" if run.status == "FINISHED" else run.status, "(as above)" if again else "",
             "← this run" if run_id == asked else ""]  # fmt: skip
    return Text("  ".join(word for word in words if word), style="bold" if run_id == asked else "")


def _describe(run_id: str, known: dict[str, runs.Run]) -> dict[str, Any]:
    run = known.get(run_id)
    if run is None:
        return {"run_id": run_id, "name": None, "verb": None, "status": None, "goal": None}
    goal = reading.result_of(run).get("goal") or {}
    return {
        "run_id": run.id,
        "name": run.record.name,
        "verb": run.record.verb,
        "status": run.status,
        "goal": {name: goal.get(name) for name in ("name", "value", "split")},
    }


def _nested(
    run_id: str, known: dict[str, runs.Run], neighbours: Neighbours, key: str, path: frozenset[str] = frozenset()
) -> list[dict[str, Any]]:
    """Each neighbour with its own neighbours of the same direction.

    path: the runs above, met once only: run.json may come from elsewhere, and may name itself.
    """
    path |= {run_id}
    return [
        {**_describe(one, known), key: _nested(one, known, neighbours, key, path)}
        for one in neighbours(run_id)
        if one not in path
    ]
