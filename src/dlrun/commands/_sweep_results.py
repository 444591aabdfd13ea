"""What stays of a sweep: the weights of its best trials, its result, its best configuration as an experiment."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlrun import runs
from dlrun.commands import _sweep_plan as plans
from dlrun.commands._sweep_plan import Plan
from dlrun.config import space
from dlrun.config.schema import COUNTS
from dlrun.errors import DlrunError, Exit

if TYPE_CHECKING:
    from dlrun.commands._sweep_study import Study
    from dlrun.commands.train import Options


def keep_the_best(sweep_id: str, study: Study, folder: Path) -> None:
    """Only the best trials' weights stay on the disk, and of several objectives those of the whole front.

    folder: of the runs. A trial that was on a front before a better one came has no weights left to count.
    """
    keep = study.search.keep
    whole = [
        t.number for t in study.ranked() if not (folder / t.user_attrs["run"] / "artifacts" / runs.REMOVED).exists()
    ]
    kept = {*whole[:keep], *(study.front() if len(study.chased) > 1 else ())}
    for trial in study.trials:
        run_id = trial.user_attrs.get("run")
        if trial.state.is_finished() and trial.number not in kept and run_id:
            place = folder / run_id / "artifacts"
            if (place / "checkpoints").is_dir():
                runs.write_json(place / runs.REMOVED, {"by": sweep_id, "keep": keep})
                shutil.rmtree(place / "checkpoints")


def write(sweep: runs.Run, study: Study, plan: Plan, options: Options) -> None:
    """best.yaml and result.json. Raises: DlrunError if no trial succeeded."""
    from dlrun import serving

    ranked = study.ranked()
    if not ranked:
        failed = study.failed()
        reason = failed[0].user_attrs.get("reason", "") if failed else "all were pruned"
        raise DlrunError(f"no trial succeeded; the first: {reason}", "see: dlrun runs", Exit.TRAINING)
    for trial in ranked[: plan.search.keep]:
        folder = options.runs / trial.user_attrs["run"] / "artifacts"
        if folder.is_dir():  # else it is on the machine that trained it
            serving.write_mlmodel(folder, run_id=trial.user_attrs["run"])
    best, chased = ranked[0], study.chased[0]
    chosen = [*plan.fixed, *best.user_attrs["overrides"]]
    comment = f"The best trial of sweep {sweep.short_id}."
    (sweep.folder / "best.yaml").write_text(plans.experiment_of(chosen, plan, options, comment))
    runs.write_json(sweep.folder / "result.json", {
        **best.user_attrs.get("result", {}),
        "goal": {"name": chased.name, "mode": chased.mode, "value": best.values[0], "split": "valid"},
        "objectives": [f"{objective.name}:{objective.mode}" for objective in study.chased],
        "front": sorted(study.front()), "seconds": time.time() - sweep.record.created, "trials": trial_rows(study),
        "best": {"number": best.number, "run": best.user_attrs["run"], "overrides": chosen},
    })  # fmt: skip


def heading(name: str) -> str:
    """Of a column with this objective: where its values come from."""
    return name if name in COUNTS else f"valid/{name}"


def others(result: Mapping[str, Any]) -> list[str]:
    """The names of a sweep's further objectives."""
    return [text.partition(":")[0] for text in result.get("objectives", [])[1:]]


def front(result: Mapping[str, Any]) -> list[int]:
    """Numbers of the trials that no other beats in all of several objectives; none of one."""
    return result.get("front", []) if others(result) else []


def ranked_rows(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A result's trials as `Study.ranked` has them: the best first, those of a front before all others; then what was
    pruned, and those without a value last."""
    sign, unbeaten = -1.0 if result["goal"]["mode"] == "max" else 1.0, front(result)
    return sorted(
        result["trials"],
        key=lambda row: (
            not row["values"],
            row["state"] != "complete",
            bool(unbeaten) and row["number"] not in unbeaten,
            sign * row["values"][0] if row["values"] else 0.0,
        ),
    )


def trial_rows(study: Study) -> list[dict[str, Any]]:
    """One plain mapping a trial, in order of their numbers."""
    return [
        {
            "number": trial.number,
            "run": trial.user_attrs.get("run"),
            "state": trial.state.name.lower(),
            "values": list(trial.values or [])
            or [trial.user_attrs[key] for key in ("value",) if key in trial.user_attrs],
            "settings": space.settings(trial.params),
            "reason": trial.user_attrs.get("reason", ""),
        }
        for trial in study.trials
    ]
