"""`dlrun compare SWEEP`: the trials by rank, what mattered, pictures, and the best config as an experiment."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dlrun import runs
from dlrun.commands import _sweep_figures as figures
from dlrun.commands import _sweep_results as results
from dlrun.commands._sweep_plan import Plan
from dlrun.commands._terminal import print_json, result_console, table
from dlrun.errors import DlrunError

if TYPE_CHECKING:
    from dlrun.commands.train import Options

_FEW = 4  # trials below which nobody can say what mattered


def compare(parent: runs.Run, options: Options) -> int:
    """Print the leaderboard; draw into figures/ and report/sweep.html. Returns the exit code."""
    result = parent.result
    if not result:
        raise DlrunError(
            f"sweep {parent.short_id} has no result yet", f"go on with it: dlrun sweep --resume {parent.short_id}"
        )
    goal, rows = result["goal"], results.ranked_rows(result)
    others, front = results.others(result), results.front(result)
    importance = importances(parent, rows)
    title = f"{parent.record.name or 'sweep ' + parent.short_id}: {', '.join([goal['name'], *others])}"
    pictures = figures.draw(parent.folder / "figures", title, goal, result["trials"], others, front)
    page = parent.folder / "report" / "sweep.html"
    page.parent.mkdir(exist_ok=True)
    page.write_text(figures.page(title, goal, rows, importance, pictures, others, front))
    if options.as_json:
        kept = {"objectives": result["objectives"], "front": result["front"]}
        print_json({"run_id": parent.id, "trials": rows, "importance": importance, "page": str(page)} | kept)
        return 0
    console = result_console()
    names = list(dict.fromkeys(name for row in rows for name in row["settings"]))
    console.print(table(
        ["trial", "run", results.heading(goal["name"]), *others, *names, "state"],
        [[row["number"], (row["run"] or "")[:8], *(row["values"] or ["–"] * (1 + len(others))),
          *[row["settings"].get(name, "–") for name in names],
          "front" if row["number"] in front else row["state"]] for row in rows],
    ))  # fmt: skip
    if importance:
        console.print()
        shares = [[name, f"{share:.0%}"] for name, share in importance.items()]
        console.print(table(["setting", f"share of the differences in {goal['name']}"], shares))
    console.print(f"page     {page}", soft_wrap=True, markup=False)
    console.print(f"best     {parent.folder / 'best.yaml'}   (copy it to conf/experiment/NAME.yaml)", soft_wrap=True)
    return 0


def importances(parent: runs.Run, rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Share of the variance of the goal that each setting which all trials have explains, the largest first; {} where
    it cannot be said.

    Source: Hutter et al. 2014, "An Efficient Approach for Assessing Hyperparameter Importance" (fANOVA), by Optuna.
    """
    import optuna
    from optuna.distributions import CategoricalDistribution

    from dlrun.commands._sweep_study import distribution

    plan = Plan.read(parent.folder)
    by_key = {dimension.key: distribution(dimension) for dimension in plan.space if dimension.when is None}
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study()
    for row in rows:
        if row["state"] == "complete":
            params = {name: value for name, value in row["settings"].items() if name in by_key}
            mine = {name: by_key[name] for name in params}
            study.add_trial(optuna.trial.create_trial(params=params, distributions=mine, value=row["values"][0]))
    if len(study.trials) < _FEW:
        return {}
    common = [name for name in by_key if all(name in trial.params for trial in study.trials)]
    varied = [
        name for name in common
        if not isinstance(by_key[name], CategoricalDistribution) or len({t.params[name] for t in study.trials}) > 1
    ]  # fmt: skip
    with contextlib.suppress(ValueError, RuntimeError):  # all values equal
        found = optuna.importance.get_param_importances(
            study, params=varied, evaluator=optuna.importance.FanovaImportanceEvaluator(seed=0)
        )
        return {name: float(share) for name, share in found.items()}
    return {}
