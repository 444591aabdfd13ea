"""What an ensemble's report says, beside its metrics: members, gain, contributions, a cheaper subset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dlrun.commands import _ensemble_scores as scoring
from dlrun.commands._ensemble_making import OF_ONE, Made
from dlrun.commands._ensemble_members import Member
from dlrun.commands._terminal import number, result_console, table
from dlrun.config.schema import EnsembleConfig
from dlrun.contracts import Outputs, Task
from dlrun.ensembles import _calibration
from dlrun.ensembles._fields import Mean
from dlrun.errors import DlrunError
from dlrun.metrics.scoring import goal_value

_OTHERS = {"over_mean_member": "the mean member", "over_best_member": "the member that is best on validation"}


def report(made: Made, members: Sequence[Member], method: Any, settings: EnsembleConfig) -> dict[str, Any]:
    """Plain JSON: see docs/ensemble.md."""
    task, split = members[0].task, "test" if made.test is not None else "valid"
    ensemble, outputs = (made.test, made.of_test) if split == "test" else (made.valid, made.of_valid)
    assert ensemble is not None
    goal = {"name": task.goal.metric, "mode": task.goal.mode, "split": split}
    found: dict[str, Any] = {
        "method": settings.name, "kind": made.kind, "goal": goal, "temperature": made.temperature,
        "members": _members(made, members, outputs), "ensemble": _ensemble(made, members, ensemble),
    }  # fmt: skip
    if len(outputs) > 1:
        draw = (settings.resamples, settings.seed)
        found["gain"] = {"over_mean_member": scoring.gain(task, ensemble, outputs, *draw)}
        if made.of_valid:
            best = _best(task, made.of_valid)
            found["gain"]["over_best_member"] = scoring.gain(task, ensemble, [outputs[best]], *draw) | {"member": best}
        found["disagreement"] = scoring.disagreement(outputs)
        found["error_correlation"] = scoring.error_correlation(outputs)
        found["selective"] = scoring.selective(task, ensemble)
    if made.kind == "outputs" and len(outputs) > 1:
        _contributions(found, made, method, task, goal_value(task, ensemble), outputs)
        found["subset"] = _subset(made, task, method, outputs)
    return found


def add_shift(found: dict[str, Any], shift: Mapping[str, Any]) -> None:
    """What _ensemble_shift found, the members' numbers in their rows."""
    for row, value in zip(found["members"], shift["members"], strict=True):
        row["shift_auroc"] = value
    found["ensemble"]["shift_auroc"] = shift["entropy"]
    found["shift"] = {name: value for name, value in shift.items() if name != "members"}


def _best(task: Task, of_valid: Sequence[Outputs]) -> int:
    """The member that is best on validation, for the test split must not choose."""
    values = [goal_value(task, each) for each in of_valid]
    return values.index((max if task.goal.mode == "max" else min)(values))


def _members(made: Made, members: Sequence[Member], outputs: Sequence[Outputs]) -> list[dict[str, Any]]:
    weights = made.fit.get("weights") or [1] * len(outputs)
    total = sum(weights) or 1
    rows = []
    for index, said in enumerate(outputs):
        member = members[0 if made.kind in OF_ONE else index]
        valid = made.of_valid[index] if made.of_valid else None
        temperature = _temperature(valid)
        short = f"{member.short} {index + 1}" if made.kind in OF_ONE else member.short
        rows.append({
            "run_id": member.run.id, "name": member.run.record.name, "step": member.step, "short": short,
            "weight": weights[index] / total, "value": goal_value(member.task, said),
            **scoring.quality(said, scoring.noise_of(valid), temperature), "temperature": temperature,
            "parameters": member.parameters, "latency_seconds": _each(made, index, said),
        })  # fmt: skip
    return rows


def _each(made: Made, index: int, outputs: Outputs) -> float | None:
    """Seconds an example, when its split was predicted."""
    seconds = made.seconds[index] if index < len(made.seconds) else float("nan")
    return seconds / len(outputs.ids) if seconds == seconds else None


def _temperature(valid: Outputs | None) -> float | None:
    try:
        return None if valid is None else _calibration.temperature(valid)
    except DlrunError:  # of texts only sums are there
        return None


def _ensemble(made: Made, members: Sequence[Member], outputs: Outputs) -> dict[str, Any]:
    used = made.fit.get("weights") or [1] * max(1, len(made.of_test))
    latencies = [_each(made, index, outputs) for index, weight in enumerate(used) if weight]
    if made.kind == "weights":
        latencies = latencies[:1]
    counted = [member.parameters for member, weight in zip(members, used, strict=False) if weight]
    return {
        "value": goal_value(members[0].task, outputs),
        **scoring.quality(outputs, scoring.noise_of(made.valid), made.temperature),
        "parameters": counted[0] if made.kind in ("weights", *OF_ONE) else sum(counted),
        "latency_seconds": sum(each for each in latencies if each) if all(latencies) else None,
    }


def _contributions(
    found: dict[str, Any], made: Made, method: Any, task: Task, value: float, outputs: Sequence[Outputs]
) -> None:
    """For each member the goal without it, and by how much it is better with it."""
    sign = 1.0 if task.goal.mode == "max" else -1.0
    for index, row in enumerate(found["members"]):
        rest = [each for place, each in enumerate(outputs) if place != index]
        valid = [each for place, each in enumerate(made.of_valid) if place != index]
        fit = _fit_without(made.fit, index, method, valid, task)
        without = value if fit is None else goal_value(task, method.combine(rest, fit))
        row |= {"without": without, "contribution": sign * (value - without)}


def _fit_without(
    fit: Mapping[str, Any], index: int, method: Any, valid: Sequence[Outputs], task: Task
) -> dict[str, Any] | None:
    """What the method learned of the others: its weights, where it has such; None for a member that weighs nothing."""
    if "weights" in fit:
        weights = [weight for place, weight in enumerate(fit["weights"]) if place != index]
        return {"weights": weights} if fit["weights"][index] and any(weights) else None
    if not fit:
        return {}
    return method.refit(valid, fit) if hasattr(method, "refit") else method.fit(valid, task)


def _subset(made: Made, task: Task, method: Any, outputs: Sequence[Outputs]) -> dict[str, Any] | None:
    if not made.of_valid:
        return None
    mean = getattr(method, "mean", None) or Mean()
    costs = [seconds if seconds == seconds else 1.0 for seconds in made.seconds]
    return scoring.cheaper(
        task,
        lambda chosen: mean([made.of_valid[index] for index in chosen], [1.0] * len(chosen)),
        lambda chosen: mean([outputs[index] for index in chosen], [1.0] * len(chosen)),
        costs,
    )


# ---------------------------------------------------------------- printing

_COLUMNS = {"nll": "NLL", "brier": "Brier", "ece": "ECE", "ece_calibrated": "ECE calibrated",
            "shift_auroc": "shift AUROC"}  # fmt: skip


def show(found: Mapping[str, Any]) -> None:
    """The report as tables, on stdout."""
    goal, console = found["goal"], result_console()
    shown = [name for name in _COLUMNS if name in found["ensemble"]]
    heads = ["", "weight", f"{goal['split']}/{goal['name']}", *(_COLUMNS[name] for name in shown), "parameters",
             "ms each", "without it"]  # fmt: skip
    rows = [_row(row["short"], row, shown) for row in found["members"]]
    rows.append(_row("ensemble", found["ensemble"] | {"weight": None}, shown))
    console.print(table(heads, rows))
    for name, said in found.get("gain", {}).items():
        console.print(_compared(said, _OTHERS[name]))
    if found["temperature"] is not None:
        console.print(f"temperature {number(found['temperature'])}, learned on the validation split")
    if shift := found.get("shift"):
        spread = shift["mutual_information"]
        also = "" if spread is None else f", by their disagreement {number(spread)}"
        console.print(f"shifted inputs are told apart by entropy with AUROC {number(shift['entropy'])}{also}")
    if subset := found.get("subset"):
        chosen = subset["suggested"]
        if len(chosen) < len(found["members"]):
            step = subset["path"][len(chosen) - 1]
            names = " ".join(found["members"][index]["short"] for index in chosen)
            console.print(f"cheaper  {names}: {goal['split']}/{goal['name']} {number(step['test'])}", soft_wrap=True)


def _compared(said: Mapping[str, Any], other: str) -> str:
    """A gain in words: "better than … by 0.02  [0.01, 0.03]"; of a loss the interval is that of the loss."""
    word, sign, ends = ("worse", -1, ("high", "low")) if said["value"] < 0 else ("better", 1, ("low", "high"))
    low, high = (said[end] for end in ends)
    interval = "" if low is None else f"  [{number(sign * low)}, {number(sign * high)}]"
    return f"{word} than {other} by {number(sign * said['value'])}{interval}"


def _row(name: str, row: Mapping[str, Any], shown: Sequence[str]) -> list[Any]:
    each = row["latency_seconds"]
    return [
        name, _cell(row["weight"]), row["value"], *(_cell(row.get(column)) for column in shown), row["parameters"],
        _cell(None if each is None else 1e3 * each), _cell(row.get("without")),
    ]  # fmt: skip


def _cell(value: Any) -> Any:
    return "" if value is None else value
