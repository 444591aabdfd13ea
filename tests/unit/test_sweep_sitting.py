"""What a sweep checks and settles around its trials: its plan, a resume, what it hears, its table, its ranking."""

import queue
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dlrun import runs as folders
from dlrun import tracking, trials
from dlrun.commands import _making as making
from dlrun.commands import _sweep_figures as figures
from dlrun.commands import _sweep_plan as plans
from dlrun.commands import _sweep_results as results
from dlrun.commands import _sweep_resume, _sweep_sitting, sweep
from dlrun.commands._sweep_plan import Plan
from dlrun.commands._sweep_sitting import Job, Sitting
from dlrun.commands._sweep_study import Study, objectives
from dlrun.commands._sweep_view import View
from dlrun.commands._sweep_workers import Worker
from dlrun.commands.train import Options
from dlrun.config import check
from dlrun.config.schema import SearchConfig
from dlrun.config.space import Dimension
from dlrun.errors import DlrunError
from dlrun.registry import Registry

LR = Dimension("optimizer.lr", "float", low=1e-4, high=0.1, log=True)


def options(runs: Path) -> Options:
    return Options(runs, Registry())


def plan_of(**search: Any) -> Plan:
    return Plan(["model=logistic", "hardware.device=cpu"], [LR], SearchConfig("random", **search), None)


def made_run(runs: Path, verb: str, name: str = "r", **record: Any) -> folders.Run:
    config = plans.config_of(plan_of().fixed, plan_of(), options(runs), name)
    return making.new_run(config, Registry(), runs, verb=verb, **record)


# ---------------------------------------------------------------- the plan


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ("optimizer.lr=0.1,0.2", "optimizer.lr=0.3"),
            "optimizer.lr: has several values, and then one: optimizer.lr=0.3",
        ),
        (
            ("optimizer.lr=0.1,0.2", "search.storage=postgresql+psycopg://a:b@host/c"),
            "search.storage: holds a password",
        ),
        (("model=logistic,mlp", "search.space={when:{model:mlp}}"), "search.space.when.model: 'mlp' does not say"),
        (("task=classification,regression",), "task: each task chases a goal of its own"),
        (
            ("optimizer.lr=0.1,0.2", "search.pruner=asha", "search.objectives=[loss:min,parameters:min]"),
            "search.pruner=asha: no pruner compares several objectives",
        ),
        (("optimizer.lr=0.1,0.2", "search.objectives=loss:min"), "one in a list: search.objectives=[loss:min]"),
    ],
)
def test_a_plan_that_cannot_be_is_refused_before_a_run_is_made(dlrun, runs, arguments, said):
    code, _, errors = dlrun("sweep", *arguments, "--runs", str(runs))
    assert code == 2 and said in errors and "Traceback" not in errors, errors
    assert not list(runs.glob("*/artifacts"))


def test_the_command_line_comes_before_a_space_in_yaml_and_a_space_after_one_value(runs):
    yaml = "search.space={optimizer.lr: 'interval(1e-3,1e-2)', data.batch_size: 'choice(32,64)'}"
    given = ("model=logistic", "optimizer.lr=0.3", yaml, "model=logistic,mlp")
    plan, _ = plans.planned(given, options(runs))
    assert {dimension.key for dimension in plan.space} == {"data.batch_size", "model"}
    assert "optimizer.lr=0.3" in plan.fixed


def test_what_every_choice_that_varies_knows_may_be_fixed_though_the_default_choice_does_not(runs):
    plan, config = plans.planned(("model=resnet20,resnet32", "model.shortcut=projection"), options(runs))
    assert (config.model.name, config.model.options["shortcut"]) == ("resnet", "projection")
    assert [dimension.choices for dimension in plan.space] == [("resnet20", "resnet32")]


def test_a_setting_is_of_whole_numbers_only_where_the_choice_that_varies_takes_no_others(runs):
    given = ("model=cnn,mlp", "model.dropout=interval(0,1)", "data.batch_size=interval(16,64)")
    plan, _ = plans.planned(("optimizer=sgd,adamw", *given), options(runs))
    kinds = {dimension.key: dimension.kind for dimension in plan.space}
    assert (kinds["model.dropout"], kinds["data.batch_size"]) == ("float", "int")
    _, when = "sgd", "search.space={when: {optimizer: {sgd: {optimizer.momentum: 'interval(0,1)'}}}}"
    plan, _ = plans.planned(("optimizer=sgd,adamw", when), options(runs))
    assert plan.space[1].kind == "float"


def test_a_space_under_a_choice_always_counts_where_that_choice_is_fixed_and_never_where_another_is(runs):
    yaml = "search.space={model: 'choice(logistic,resnet20)', seed: 'range(0,3)', " \
           "when: {model: {resnet20: {model.width: 'choice(8,16)'}}}}"  # fmt: skip
    plan, _ = plans.planned(("model=resnet20", yaml), options(runs))
    assert [(dimension.key, dimension.when) for dimension in plan.space] == [("seed", None), ("model.width", None)]
    plan, _ = plans.planned(("model=logistic", yaml), options(runs))
    assert [dimension.key for dimension in plan.space] == ["seed"]


def test_trials_start_from_the_run_that_was_the_latest_when_the_sweep_was_planned(runs):
    source = made_run(runs, "train")
    given = ("model=logistic", "optimizer.lr=0.1,0.2", "transfer=finetune", "transfer.from=run:latest")
    plan, config = plans.planned(given, options(runs))
    assert config.transfer.source == f"run:{source.id}"
    made_run(runs, "sweep")
    assert plans.config_of(plan.fixed, plan, options(runs), "").transfer.source == f"run:{source.id}"


def test_energy_that_no_counter_measures_is_refused_before_the_first_trial(runs, monkeypatch):
    parent = made_run(runs, "sweep")
    plan_of(objectives=["accuracy:max", "energy_joules:min"]).write(parent.folder)
    unread = {"joules": None, "method": "unavailable"}
    monkeypatch.setattr(trials, "EnergyMeter", lambda _device: SimpleNamespace(reading=lambda: unread))
    said: list[dict] = []
    line = SimpleNamespace(say=lambda **event: said.append(event))
    trials._look(parent.folder, Registry(), trials.build.Datasets(), line)  # type: ignore[arg-type]
    assert said[0]["event"] == "failed" and "no trial can report energy_joules" in said[0]["message"]


# ---------------------------------------------------------------- a resume


def test_a_resume_may_change_the_hardware_and_let_more_trials_run_and_fail(runs):
    parent = made_run(runs, "sweep")
    child = made_run(runs, "train", nested_under=parent.id)
    given = ("hardware.threads=3", "search.trials=30", "search.max_failures=null")
    plan = _sweep_resume.changed(plan_of(trials=20, max_failures=2), given, options(runs))
    assert (plan.search.trials, plan.search.max_failures, plan.fixed[-1]) == (30, None, "hardware.threads=3")
    _sweep_resume.write(parent, plan, given, options(runs))
    assert Plan.read(parent.folder) == plan
    assert [check.read(run.folder, Registry()).hardware.threads for run in (parent, child)] == [3, 3]


def test_a_finished_sweep_that_gets_more_trials_is_not_finished_any_more(runs):
    parent = making.finish(made_run(runs, "sweep"), "FINISHED", "complete")
    plan = _sweep_resume.changed(plan_of(trials=20), ["search.trials=30"], options(runs))
    assert _sweep_resume.write(parent, plan, ["search.trials=30"], options(runs)).status == "KILLED"
    [parent] = folders.listing(runs)
    statuses: list[str] = []

    def work(home: folders.Run) -> None:
        home.update(children=("a",))  # as each new trial does
        statuses.append(folders.load(home.folder).status)

    view: Any = SimpleNamespace(note=lambda _text: None)
    assert sweep._held(parent, work, view, "") == 0
    assert [*statuses, folders.load(parent.folder).status] == ["RUNNING", "FINISHED"]
    assert folders.load(parent.folder).record.children == ("a",)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("optimizer.lr=1", "--resume cannot change optimizer.lr"),
        ("search.seed=1", "--resume cannot change search.seed"),
        ("search.trials=3", "search.trials=3 is less than 20"),
    ],
)
def test_a_resume_does_not_make_another_sweep(runs, given, said):
    with pytest.raises(DlrunError, match=said):
        _sweep_resume.changed(plan_of(), [given], options(runs))


def test_a_sweep_that_goes_on_after_ctrl_c_runs_in_mlflow_too(runs):
    import mlflow

    making.finish(made_run(runs, "sweep"), "KILLED", "SIGINT")
    [parent] = folders.listing(runs)
    client = mlflow.MlflowClient(f"sqlite:///{runs}/mlflow.db")
    seen = [client.get_run(parent.id).info.status]
    view: Any = SimpleNamespace(note=lambda _text: None)
    sweep._held(parent, lambda _: seen.append(client.get_run(parent.id).info.status), view, "")
    assert [*seen, client.get_run(parent.id).info.status] == ["KILLED", "RUNNING", "FINISHED"]
    assert tracking.is_pending(parent.folder) is False


def test_a_trial_killed_after_its_result_was_written_ended_as_it_did(tmp_path):
    child = folders.create(tmp_path, folders.RunRecord(id="a" * 32, verb="train"))
    killed = child.update(status="KILLED", reason="its process is gone")
    assert _sweep_sitting._ended_as(killed) == "complete"
    assert _sweep_sitting._ended_as(
        replace(killed, record=replace(killed.record, status="FINISHED", reason="early stop"))
    ) == ("early stop")
    folders.write_json(child.folder / "pruned.json", {"step": 12})
    assert _sweep_sitting._ended_as(killed) == "pruned at step 12"


# ---------------------------------------------------------------- hearing and showing


def sitting_that_hears(*events: dict, notes: list[str]) -> tuple[Sitting, Worker]:
    sitting = Sitting.__new__(Sitting)
    worker = Worker(0, None, Job(SimpleNamespace(number=4), None, "", SimpleNamespace(close=lambda **_: None)))  # type: ignore[arg-type]
    heard: queue.Queue = queue.Queue()
    for event in events:
        heard.put((worker, event))
    sitting.plan, sitting.waiting = plan_of(), []
    sitting.workers = SimpleNamespace(heard=heard, all=[worker])  # type: ignore[assignment]
    sitting.view = SimpleNamespace(note=notes.append)  # type: ignore[assignment]
    sitting._noted = set()
    return sitting, worker


def test_what_a_trial_notes_is_passed_on_with_its_number():
    notes: list[str] = []
    said = {"event": "note", "text": "a warning"}
    sitting, _ = sitting_that_hears(said, said, notes=notes)
    sitting._hear(), sitting._hear()
    assert notes == ["trial 4: a warning"]


def test_a_trial_whose_worker_alone_was_told_to_stop_waits_to_go_on(monkeypatch):
    ended: list[tuple] = []
    monkeypatch.setattr(making, "finish", lambda child, status, reason: ended.append((status, reason)) or "child")
    sitting, worker = sitting_that_hears({"event": "ended", "ended": "SIGTERM"}, notes=[])
    sitting._hear()
    [(trial, child)] = sitting.waiting
    assert (trial.number, child, worker.job, ended) == (4, "child", None, [("KILLED", "SIGTERM")])


def test_the_live_table_counts_what_was_pruned_and_what_failed(tmp_path):
    config = SearchConfig("random", trials=9)
    study = Study("s", tmp_path / "study.jsonl", config, [LR], objectives(["accuracy:max"]), Registry())
    for result, pruned in (
        ({"metrics": {"valid/accuracy": 0.5}}, False),
        ({"metrics": {"valid/accuracy": 0.1}}, True),
        (None, False),
    ):
        trial, _ = study.ask()  # type: ignore[misc]
        study.told(trial, result, "", pruned)
    column = View(plan_of())._table(study, []).columns[1]
    assert str(next(iter(column.cells))).startswith("3 of 9 trials, 1 pruned, 1 failed, 0 running")


# ---------------------------------------------------------------- several objectives


def row(number: int, *values: float, state: str = "complete") -> dict[str, Any]:
    settings = {"optimizer.lr": 0.01 * (number + 1)}
    return {
        "number": number,
        "run": f"{number}" * 32,
        "state": state,
        "values": list(values),
        "settings": settings,
        "reason": "x",
    }


ROWS = [row(0, 0.9, 500), row(1, 0.8, 100), row(2, 0.85, 900), row(3, state="fail")]
TWO = {
    "goal": {"name": "accuracy", "mode": "max"},
    "objectives": ["accuracy:max", "parameters:min"],
    "front": [0, 1],
    "trials": ROWS,
}


def test_trials_of_the_front_come_before_those_that_another_beats():
    assert [row["number"] for row in results.ranked_rows(TWO)] == [0, 1, 2, 3]
    one = TWO | {"objectives": ["accuracy:max"], "front": [0]}
    assert [row["number"] for row in results.ranked_rows(one)] == [0, 2, 1, 3]
    pruned = one | {"trials": [row(0, 0.9, state="pruned"), *ROWS[1:]]}
    assert [row["number"] for row in results.ranked_rows(pruned)] == [2, 1, 0, 3]


def test_the_whole_front_keeps_its_weights_and_one_that_comes_late_displaces_no_second_best(tmp_path):
    chased = objectives(["accuracy:max", "parameters:min"])
    study = Study("s", tmp_path / "study.jsonl", SearchConfig("random", keep=2), [LR], chased, Registry())
    kept = []
    for number, (accuracy, parameters) in enumerate([(0.9, 100), (0.89, 95), (0.8, 50), (0.95, 90)]):
        run = folders.create(tmp_path, folders.RunRecord(id=f"{number}" * 32, verb="train"))
        run.checkpoints.mkdir()
        trial, _ = study.ask()  # type: ignore[misc]
        study.bind(trial, run.id, [])
        study.told(trial, {"metrics": {"valid/accuracy": accuracy}, "parameters": parameters}, "", pruned=False)
        results.keep_the_best("s", study, tmp_path)
        kept.append({path.parents[1].name[0] for path in tmp_path.glob("*/artifacts/checkpoints")})
    assert kept == [{"0"}, {"0", "1"}, {"0", "1", "2"}, {"2", "3"}]


def test_the_best_of_a_sweep_are_those_whose_weights_are_kept(tmp_path):
    parent = folders.create(tmp_path, folders.RunRecord(id="f" * 32, verb="sweep"))
    folders.write_json(parent.folder / "result.json", TWO)
    for kept in ("0", "1", "2"):
        run = folders.create(tmp_path, folders.RunRecord(id=kept * 32, verb="train"))
        if kept != "2":
            run.checkpoints.mkdir()
    assert [run.id[0] for run in sweep.top(parent, tmp_path, 2)] == ["0", "1"]
    (tmp_path / ("0" * 32) / "artifacts" / "checkpoints").rmdir()
    with pytest.raises(DlrunError, match="the weights of 00000000, 22222222 are gone") as raised:
        sweep.top(parent, tmp_path, 3)
    assert raised.value.hint == "those left: 11111111"


def test_compare_shows_both_objectives_marks_the_front_and_draws_it(dlrun, tmp_path, runs):
    parent = folders.create(runs, folders.RunRecord(id="f" * 32, verb="sweep"))
    folders.write_json(parent.folder / "result.json", TWO)
    plan_of().write(parent.folder)
    code, out, errors = dlrun("compare", parent.id, "--runs", str(runs))
    assert code == 0, errors
    assert "parameters" in out and out.count("front") == 2
    assert (parent.folder / "figures" / "sweep-front.png").stat().st_size > 5_000
    page = (parent.folder / "report" / "sweep.html").read_text()
    assert "<th>parameters</th>" in page and page.count("<td>front</td>") == 2 and 'alt="front"' in page
    assert "What mattered for accuracy" in page


def test_choices_among_numbers_are_drawn_as_numbers():
    given = [{"settings": {"a": text, "b": "x"}} for text in ("256", "32", "1e2")]
    assert [row["settings"] for row in figures._with_numbers([*given, {"settings": {"b": "1"}}])] == [
        {"a": 256.0, "b": "x"}, {"a": 32.0, "b": "x"}, {"a": 100.0, "b": "x"}, {"b": "1"},
    ]  # fmt: skip


def test_the_front_of_one_objective_is_not_drawn(tmp_path):
    drawn = figures.draw(tmp_path / "figures", "t", TWO["goal"], ROWS)
    assert sorted(drawn) == ["history", "parallel", "slices"]
