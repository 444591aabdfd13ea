"""`dlrun compare`: the metrics of several runs side by side, and what differs in their configs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dlrun import runs
from dlrun.commands import _reading as reading
from dlrun.commands._terminal import number, print_json, result_console, table
from dlrun.config.compose import leaves
from dlrun.errors import DlrunError

if TYPE_CHECKING:
    from dlrun.commands.train import Options

_NOTHING = "–"


def compare(references: Sequence[str], options: Options) -> int:
    """Print metrics and config differences. Returns the exit code."""
    chosen = list({run.id: run for run in (runs.find(options.runs, reference) for reference in references)}.values())
    if len(chosen) == 1 and chosen[0].record.verb == "sweep":
        from dlrun.commands import _sweep_compare

        return _sweep_compare.compare(chosen[0], options)
    if len(chosen) < 2:
        raise DlrunError(
            f"compare needs two runs; '{' '.join(references)}' is one", "dlrun compare RUN RUN; see: dlrun runs"
        )
    metrics, configs = _metrics(chosen), _differences(chosen)
    best = {name: winner for name, values in metrics.items() if (winner := best_of(values, _mode(name, chosen)))}
    if options.as_json:
        described = [{**reading.described(run), "name": run.record.name, "verb": run.record.verb} for run in chosen]
        print_json({"runs": described, "best": best, "differences": configs})
        return 0
    _print(chosen, metrics, best, configs)
    return 0


def _metrics(chosen: Sequence[runs.Run]) -> dict[str, dict[str, float]]:
    """Metric -> run id -> value, in the order of first appearance, standard deviations apart."""
    names = dict.fromkeys(name for run in chosen for name in _values(run) if not _is_spread(name, run))
    return {name: {run.id: _values(run)[name] for run in chosen if name in _values(run)} for name in names}


def _values(run: runs.Run) -> dict[str, float]:
    return reading.result_of(run).get("metrics", {})


def _is_spread(name: str, run: runs.Run) -> bool:
    """Whether a metric is the standard deviation of another, as the parent of several seeds has it."""
    return name.endswith("_std") and name.removesuffix("_std") in _values(run)


def _mode(name: str, chosen: Sequence[runs.Run]) -> str | None:
    """ "max" or "min" for a metric: as the runs' goals say, a loss always the lower the better, else unknown."""
    goals = [reading.result_of(run).get("goal") or {} for run in chosen]
    stated = {goal.get("mode") for goal in goals if goal.get("name") == name.rpartition("/")[2]}
    if len(stated) == 1:
        return stated.pop()
    return "min" if name.rpartition("/")[2] == "loss" else None


def best_of(values: dict[str, float], mode: str | None) -> str | None:
    """The id with the best value; None without a mode, a comparison, or one that stands out."""
    known = {run_id: value for run_id, value in values.items() if value == value}
    if mode is None or len(known) < 2:
        return None
    wanted = (max if mode == "max" else min)(known.values())
    winners = [run_id for run_id, value in known.items() if value == wanted]
    return winners[0] if len(winners) == 1 else None


def _differences(chosen: Sequence[runs.Run]) -> dict[str, dict[str, Any]]:
    """Config leaf -> run id -> value, of those leaves that differ; the name is no setting."""
    configs = {run.id: leaves(reading.config_of(run)) for run in chosen}
    names = sorted({name for config in configs.values() for name in config} - {"name"})
    missing = object()
    return {
        name: {run_id: config[name] for run_id, config in configs.items() if name in config}
        for name in names
        if any(config.get(name, missing) != configs[chosen[0].id].get(name, missing) for config in configs.values())
    }


# ---------------------------------------------------------------- printing


def _print(
    chosen: Sequence[runs.Run],
    metrics: dict[str, dict[str, float]],
    best: dict[str, str],
    configs: dict[str, dict[str, Any]],
) -> None:
    heads = [f"{run.record.name}\n{run.short_id}" if run.record.name else run.short_id for run in chosen]
    rows = [["status", *(run.status for run in chosen)]] if any(run.status != "FINISHED" for run in chosen) else []
    rows += [[name, *(_score(run, name, best) for run in chosen)] for name in metrics]
    rows += _facts(chosen)
    _show("metric", heads, rows)
    result_console().print()
    if configs:
        _show(
            "setting",
            heads,
            [[name, *(_setting(values, run.id) for run in chosen)] for name, values in configs.items()],
        )
    else:
        result_console().print("the configs are equal")


def _show(first: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    made = table([first, *heads], rows)
    for column in made.columns[1:]:
        column.justify = "right"
    result_console().print(made)


def _score(run: runs.Run, name: str, best: dict[str, str]) -> str:
    values = _values(run)
    if name not in values:
        return _NOTHING
    text = number(float(values[name]))
    spread = f"{name}_std"
    if spread in values:
        text += f" ± {number(float(values[spread]))}"
    return f"★ {text}" if best.get(name) == run.id else text


def _facts(chosen: Sequence[runs.Run]) -> list[list[str]]:
    """Training time and size, where any of the runs has them."""
    rows = []
    for name in ("seconds", "parameters"):
        values = [reading.result_of(run).get(name) for run in chosen]
        if any(value is not None for value in values):
            rows.append(
                [
                    name,
                    *(
                        _NOTHING if value is None else f"{value:,.1f}" if isinstance(value, float) else f"{value:,}"
                        for value in values
                    ),
                ]
            )
    return rows


def _setting(values: dict[str, Any], run_id: str) -> str:
    if run_id not in values:
        return _NOTHING
    value = values[run_id]
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
