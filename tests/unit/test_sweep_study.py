"""A sweep's study by itself: what it asks for next, after kills too, and what it keeps of what it is told."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from dlrun.commands import _sweep_plan as plans
from dlrun.commands._sweep_plan import Plan
from dlrun.commands._sweep_results import trial_rows
from dlrun.commands._sweep_storage import refuse_password
from dlrun.commands._sweep_study import Study, objectives
from dlrun.config.schema import SearchConfig
from dlrun.config.space import Dimension, overrides
from dlrun.errors import DlrunError
from dlrun.registry import Registry

LR = Dimension("optimizer.lr", "float", low=1e-4, high=0.1, log=True)
SIX = [Dimension("model", "choice", ("mlp", "cnn")), Dimension("seed", "int", low=1, high=3)]


def study(folder: Path, search: str, space: list[Dimension], sitting: str = "", **settings) -> Study:
    """Opened anew, as a resumed sweep opens it."""
    config = SearchConfig(search, **settings)
    return Study("s", folder / "study.jsonl", config, space, objectives(["accuracy:max"]), Registry(), sitting)


def asked(made: Study) -> tuple:
    """Its next trial, and its values."""
    found = made.ask()
    assert found is not None
    return found


def settings(made: Study) -> list[tuple]:
    return [tuple(trial.params.values()) for trial in made.trials]


def test_a_grid_gone_on_with_after_every_trial_tries_each_point_once(tmp_path):
    plain = study(tmp_path, "grid", SIX)
    for _ in range(plain.budget):
        plain.ask()
    (tmp_path / "killed").mkdir()
    for sitting in range(6):
        resumed = study(tmp_path / "killed", "grid", SIX, "other machine" if sitting % 2 else "")
        trial, _ = asked(resumed)
        resumed.bind(trial, f"run{sitting}", [])
    assert settings(resumed) == settings(plain) and len(set(settings(plain))) == 6


def test_the_points_of_lost_trials_of_a_grid_are_tried_later(tmp_path):
    for _ in range(3):
        made = study(tmp_path, "grid", SIX)
        trial, _ = asked(made)  # killed before its run was made
        made.lose(made.study.get_trials()[trial.number])
    made = study(tmp_path, "grid", SIX)
    while len(made.trials) < made.budget:
        made.ask()
    assert made.budget == 6 and len(set(settings(made))) == 6


@pytest.mark.parametrize("conditional", [False, True])
def test_quasi_random_points_gone_on_with_are_those_of_one_sitting(tmp_path, conditional):
    space = [LR, Dimension("model", "choice", ("mlp", "cnn"))]
    space += [Dimension("model.dropout", "float", low=0.0, high=0.5, when=("model", "mlp"))] if conditional else []

    def drawn(made: Study, trials: int) -> list[tuple]:
        for _ in range(trials):
            trial, _ = asked(made)
            made.told(trial, {"metrics": {"valid/accuracy": 0.5}}, "complete", pruned=False)
        return settings(made)

    (tmp_path / "plain").mkdir()
    plain = drawn(study(tmp_path / "plain", "quasi_random", space), 6)
    for _ in range(3):
        resumed = drawn(study(tmp_path, "quasi_random", space), 2)
    assert resumed == plain and len(set(plain)) == 6


def test_a_grid_says_how_many_trials_it_has_and_how_many_points_it_leaves_out():
    options = SimpleNamespace(registry=Registry())

    def said(search: str, trials: int) -> str:
        return plans.counted(Plan([], SIX, SearchConfig(search, trials=trials), None), options)  # type: ignore[arg-type]

    assert said("grid", 20) == "6 trials by grid"
    assert said("grid", 4) == "4 trials by grid (of its 6 points; for all: search.trials=6)"
    assert said("random", 20) == "20 trials by random"


@pytest.mark.parametrize("search", ["tpe", "random", "quasi_random", "gp", "cmaes"])
def test_one_setting_with_other_values_under_each_of_two_choices_is_searched(tmp_path, search):
    space = [
        Dimension("model", "choice", ("mlp", "cnn")),
        Dimension("model.dropout", "choice", ("0.1", "0.2"), when=("model", "mlp")),
        Dimension("model.dropout", "float", low=0.3, high=0.4, when=("model", "cnn")),
    ]
    made = study(tmp_path, search, space, trials=12, options={} if "random" in search else {"startup": 4})
    for _ in range(12 if search in ("tpe", "random") else 6):
        trial, values = asked(made)
        [model, dropout] = overrides(space, values)
        assert dropout in ("model.dropout=0.1", "model.dropout=0.2") or model == "model=cnn"
        made.told(trial, {"metrics": {"valid/accuracy": 0.5}}, "complete", pruned=False)
    rows = trial_rows(made)
    assert all(set(row["settings"]) == {"model", "model.dropout"} for row in rows)
    assert all((float(row["settings"]["model.dropout"]) >= 0.3) == (row["settings"]["model"] == "cnn") for row in rows)


# ---------------------------------------------------------------- what it is told


def test_an_evaluation_repeated_after_a_resume_is_one_resource_to_the_pruner(tmp_path):
    made = study(tmp_path, "random", [LR])
    trial, _ = asked(made)
    for step in (10, 20, 30):
        made.prune(trial, step, {"valid/accuracy": step / 100})
    resumed = study(tmp_path, "random", [LR])
    again = resumed.again(resumed.trials[0])
    for step in (20, 30, 40):
        resumed.prune(again, step, {"valid/accuracy": step / 100})
    assert resumed.trials[0].intermediate_values == {0: 0.1, 1: 0.2, 2: 0.3, 3: 0.4}


def test_asha_judges_a_trial_by_its_first_evaluation_and_again_by_its_fourth(tmp_path):
    """Rungs at 1, 4 and 16 units of the resource, with a reduction factor of 4: Li et al. 2020, algorithm 2."""
    made = Study(
        "s", tmp_path / "study.jsonl", SearchConfig("random", pruner="asha", pruner_options={"min_resource": 1}), [LR],
        objectives(["accuracy:max"]), Registry(),
    )  # fmt: skip

    def lasts(value: float) -> int:
        trial, _ = asked(made)
        stopped = (number for number in range(1, 9) if made.prune(trial, number, {"valid/accuracy": value}))
        return next(stopped, 8)

    weak = (0.1, 0.2, 0.3, 0.15, 0.25, 0.05)
    assert [lasts(value) for value in (0.9, *weak, 0.8, 0.91)] == [8, *[1] * len(weak), 4, 8]


def test_a_trial_without_one_of_the_objectives_fails_with_its_name_as_the_reason(tmp_path):
    chased = objectives(["accuracy:max", "energy_joules:min"])
    made = Study("s", tmp_path / "study.jsonl", SearchConfig("random"), [LR], chased, Registry())
    trial, _ = asked(made)
    made.told(trial, {"metrics": {"valid/accuracy": 0.5}, "energy": {"joules": None}}, "complete", pruned=False)
    [row] = trial_rows(made)
    assert (row["state"], row["reason"], row["values"]) == ("fail", "reports no energy_joules", [])


def test_a_value_that_is_no_number_fails_its_trial_and_says_so(tmp_path):
    made = study(tmp_path, "random", [LR])
    trial, _ = asked(made)
    made.told(trial, {"metrics": {"valid/accuracy": float("nan")}}, "complete", pruned=False)
    assert [(row["state"], row["reason"]) for row in trial_rows(made)] == [("fail", "accuracy is not a number")]


def test_a_metric_that_is_reported_only_as_the_tasks_goal_says_so(tmp_path):
    made = Study("s", tmp_path / "study.jsonl", SearchConfig("random"), [LR], objectives(["bleu:max"]), Registry())
    made.goals = ("loss", "bleu")
    trial, _ = asked(made)
    with pytest.raises(DlrunError, match="does not report 'bleu'; it reports loss") as raised:
        made.prune(trial, 10, {"valid/loss": 1.0})
    assert raised.value.hint.startswith("task.goal=bleu, or one of parameters")


# ---------------------------------------------------------------- where it is kept


def test_a_study_left_by_a_kill_with_its_lock_and_half_a_line_is_gone_on_with_at_once(tmp_path):
    made = study(tmp_path, "random", [LR])
    made.ask()
    before = settings(made)
    journal = tmp_path / "study.jsonl"
    with open(journal, "ab") as file:
        file.write(b'{"op_code":4,"worker_id":"a')
    (tmp_path / "study.jsonl.lock").symlink_to(journal)
    resumed = study(tmp_path, "random", [LR])
    resumed.ask()
    assert not (tmp_path / "study.jsonl.lock").is_symlink()
    assert settings(study(tmp_path, "random", [LR]))[:1] == before and len(resumed.trials) == 2


@pytest.mark.parametrize("where", ["ann:secret@host/sweeps", "host/sweeps?user=ann&password=secret"])
def test_a_password_in_the_address_of_the_study_is_refused_unread(where):
    with pytest.raises(DlrunError, match=r"search\.storage: holds a password") as raised:
        refuse_password(f"postgresql+psycopg://{where}")
    assert "secret" not in str(raised.value) and "PGPASSWORD" in raised.value.hint
    refuse_password("postgresql+psycopg://ann@host:5432/sweeps")
    refuse_password(None)
