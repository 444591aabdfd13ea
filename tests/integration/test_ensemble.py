"""`dlrun ensemble` as a person meets it, on digits runs that are made once."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dlrun import cli, predictor
from dlrun import runs as running
from dlrun.contracts import Predictor

SMALL = ("hardware.device=cpu", "tracking.system_metrics=false", "data.split_seed=0")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, store: Path) -> Path:
    """A runs folder: two MLPs with dropout (several checkpoints each), and a logistic regression."""
    from dlrun.commands import _making as making
    from dlrun.commands.train import Options, composed
    from dlrun.registry import Registry
    from dlrun.worker import Silent

    runs = tmp_path_factory.mktemp("ensemble") / "runs"
    runs.mkdir()
    for path in store.parent.glob("*mlflow*"):
        if path.is_file():
            shutil.copy(path, runs / path.name)
    rows = "\n".join(f"{x},{x * x % 7},{3 * x + 0.5}" for x in range(400))
    (runs.parent / "numbers.csv").write_text(f"a,b,y\n{rows}\n")
    table = ("task=regression", "data=files", f"data.path={runs.parent / 'numbers.csv'}", "data.target=y")
    options = Options(runs, Registry())
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(making, "_draw", lambda _: None)
        for name, *overrides in (
            *((f"mlp{seed}", f"seed={seed}", "model=mlp", "model.dropout=0.2") for seed in range(2)),
            ("linear", "model=logistic"),
            ("elsewhere", "model=logistic", "data.split_seed=1"),
            ("numbers", "model=mlp", *table, "data.batch_size=16"),
        ):
            own = [*SMALL, f"name={name}", "train.duration=2 epochs", "train.keep=3", *overrides]
            config = composed(own, options)
            made = making.new_run(config, options.registry, runs, verb="train")
            making.execute(made, config, options.registry, Silent())
    return runs


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves figures out, which take longer than all else: asked for by `call`, unless a test is about them."""
    from dlrun.commands import ensemble

    monkeypatch.setattr(ensemble, "_draw", lambda *_: [])


@pytest.fixture
def call(
    request: pytest.FixtureRequest,
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable:
    """call("mlp0", "ensemble=vote") -> (exit code, the JSON object, stderr) of `dlrun ensemble`."""
    monkeypatch.chdir(tmp_path)
    if "report" not in request.node.name:
        request.getfixturevalue("undrawn")

    def run(*arguments: str, verb: str = "ensemble") -> tuple[int, dict, str]:
        monkeypatch.setattr(sys, "argv", ["dlrun", verb, *arguments, "--json", "--runs", str(folder)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capsys.readouterr()
        return int(ended.value.code or 0), json.loads(captured.out or "{}"), captured.err

    return run


def made(answer: tuple[int, dict, str]) -> dict:
    code, shown, err = answer
    assert code == 0, err
    return shown


def report(shown: dict) -> dict:
    return json.loads((Path(shown["run_dir"]) / "report" / "ensemble.json").read_text())


# ---------------------------------------------------------------- the result is a run


def test_an_ensemble_of_one_equals_the_model_to_the_bit(call, folder):
    shown = made(call("mlp0"))
    alone = predictor.load(running.find(folder, "mlp0").folder)
    joined = predictor.load(Path(shown["run_dir"]))
    assert isinstance(joined, Predictor)
    for split in ("valid", "test"):
        first, second = alone.predict_split(split), joined.predict_split(split)
        assert torch.equal(first.ids, second.ids)
        assert torch.equal(first.fields["log_probabilities"], second.fields["log_probabilities"])


def test_the_json_object_has_the_names_of_every_run_and_members(call, folder):
    shown = made(call("mlp0", "mlp1", "linear"))
    assert set(shown) == {"run_id", "run_dir", "status", "goal", "metrics", "seconds", "rate", "parents", "members"}
    ids = [running.find(folder, name).id for name in ("mlp0", "mlp1", "linear")]
    assert shown["parents"] == ids == [member["run_id"] for member in shown["members"]]
    assert shown["status"] == "FINISHED" and shown["goal"]["split"] == "test"
    assert shown["goal"]["value"] == shown["metrics"]["test/accuracy"]
    assert sum(member["weight"] for member in shown["members"]) == pytest.approx(1)


@pytest.mark.slow
def test_the_ensemble_is_evaluated_predicted_and_combined_again(call, folder, tmp_path):
    first = made(call("mlp0", "mlp1", "linear"))
    name = first["run_id"]
    again = made(call(name, verb="evaluate"))
    assert again["metrics"]["test/accuracy"] == first["metrics"]["test/accuracy"]
    shutil.rmtree(Path(first["run_dir"]) / "predictions")
    anew = made(call(name, verb="evaluate"))
    assert anew["metrics"]["test/loss"] == pytest.approx(first["metrics"]["test/loss"], rel=1e-6)
    joined = predictor.load(Path(first["run_dir"]))
    rows = joined.predict_rows([{"image": torch.zeros(8, 8, dtype=torch.uint8).numpy()}] * 2)
    assert joined.task.rows(rows)[0]["label"] in joined.spec.labels
    twice = made(call(name, "mlp1"))
    assert twice["parents"][0] == name
    names = ("mlp0", "mlp1", "linear", "mlp1")
    parts = [predictor.load(running.find(folder, each).folder).predict_split("test") for each in names]
    a, b, c, d = (part.fields["log_probabilities"].double().exp() for part in parts)
    wanted = ((a + b + c) / 3 + d) / 2
    said = predictor.load(Path(twice["run_dir"])).predict_split("test").fields["log_probabilities"].double().exp()
    torch.testing.assert_close(said, wanted, atol=1e-6, rtol=0)
    ancestors = made(call(twice["run_id"], verb="lineage"))["parents"]
    assert {each["run_id"] for each in ancestors[0]["parents"]} == set(first["parents"])


def test_members_predict_once_for_many_ensembles(call, folder, monkeypatch):
    first = made(call("mlp0", "mlp1"))
    monkeypatch.setattr(predictor, "load", lambda *_, **__: pytest.fail("a member's model was loaded"))
    from dlrun import build

    monkeypatch.setattr(build, "dataset", lambda *_, **__: pytest.fail("the data was read"))
    for method in ("average", "weighted", "vote", "rank", "greedy"):
        again = made(call("mlp0", "mlp1", f"ensemble={method}"))
        assert again["status"] == "FINISHED" and again["run_id"] != first["run_id"]
        assert method != "average" or again["metrics"] == first["metrics"]


def test_an_ensemble_keeps_what_it_said_of_both_splits(call, monkeypatch):
    name = made(call("mlp0", "mlp1"))["run_id"]
    code, _, err = call(name, "--split", "valid", verb="evaluate")
    assert code == 0 and "of valid from predictions made before" in " ".join(err.split())
    made(call("linear"))
    monkeypatch.setattr(predictor, "load", lambda *_, **__: pytest.fail("a member's model was loaded"))
    assert made(call(name, "linear", "ensemble=weighted"))["parents"][0] == name


def test_members_are_compared_before_the_next_one_predicts(call, monkeypatch):
    from dlrun.commands import _ensemble_members as members

    asked, real = [], members.predicted
    monkeypatch.setattr(members, "predicted", lambda *given: asked.append(given[1]) or real(*given))
    code, _, _ = call("linear", "elsewhere", "mlp0", "mlp1")
    assert code == 2 and asked == ["test", "test"]


def test_no_member_is_called_best_where_they_share_no_validation_split(call, monkeypatch):
    from dlrun.commands import _ensemble_members as members
    from dlrun.errors import DlrunError

    real = members.predict

    def apart(given, split, reporter):
        if split == "valid":
            raise DlrunError("run a and run b do not have the same valid split")
        return real(given, split, reporter)

    monkeypatch.setattr(members, "predict", apart)
    found = report(made(call("mlp0", "mlp1")))
    assert set(found["gain"]) == {"over_mean_member"} and found["subset"] is None


def test_the_report_has_members_gain_contributions_and_a_subset(call):
    shown = made(call("mlp0", "mlp1", "linear"))
    found = report(shown)
    for row in (*found["members"], found["ensemble"]):
        assert {"value", "nll", "brier", "ece", "ece_calibrated", "parameters", "latency_seconds"} <= set(row)
    assert found["ensemble"]["value"] == shown["goal"]["value"]
    assert found["ensemble"]["parameters"] == sum(row["parameters"] for row in found["members"])
    values = [row["value"] for row in found["members"]]
    gain = found["gain"]["over_mean_member"]
    assert gain["value"] == pytest.approx(shown["goal"]["value"] - sum(values) / 3)
    assert gain["low"] <= gain["value"] <= gain["high"] and gain["resamples"] == 1000
    for index in range(3):
        assert found["disagreement"][index][index] == 0 and found["error_correlation"][index][index] == 1
        row = found["members"][index]
        assert row["contribution"] == pytest.approx(shown["goal"]["value"] - row["without"])
    assert len(found["subset"]["path"]) == 3 and found["selective"]["goal"][-1] == pytest.approx(shown["goal"]["value"])
    assert (Path(shown["run_dir"]) / "figures" / "ensemble.png").stat().st_size > 5_000


@pytest.mark.slow
@pytest.mark.parametrize("method", ["average", "soup", "mc_dropout"])
def test_the_report_says_whether_shifted_inputs_are_told_apart(call, method):
    words = ("mlp0",) if method == "mc_dropout" else ("mlp0", "mlp1")
    found = report(made(call(*words, f"ensemble={method}", "ensemble.shift=true")))
    shift = found["shift"]
    assert shift["split"] == "test" and 100 < shift["examples"] <= 512
    assert 0 <= shift["entropy"] == found["ensemble"]["shift_auroc"] <= 1
    assert 0 <= shift["mutual_information"] <= 1
    if method == "average":  # the soup is of members that began apart; what dropout adds shrinks with the contrast
        assert all(each > 0.6 for each in (shift["entropy"], *(row["shift_auroc"] for row in found["members"])))
    assert sum(shift["histogram"]["clean"]) == sum(shift["histogram"]["shifted"]) == shift["examples"]
    again = report(made(call(*words, f"ensemble={method}", "ensemble.shift=true")))["shift"]
    assert again == shift


@pytest.mark.slow
def test_calibration_divides_the_logits_that_are_stored(call):
    plain, sharp = made(call("mlp0", "mlp1")), made(call("mlp0", "mlp1", "ensemble.calibrate=true"))
    assert sharp["metrics"]["test/accuracy"] == plain["metrics"]["test/accuracy"]
    assert sharp["metrics"]["test/ece"] == pytest.approx(report(plain)["ensemble"]["ece_calibrated"], abs=1e-4)
    assert sharp["metrics"]["valid/loss"] < plain["metrics"]["valid/loss"]


# ---------------------------------------------------------------- methods


@pytest.mark.slow
@pytest.mark.parametrize("method", ["weighted", "vote", "rank", "greedy", "stack"])
def test_every_method_makes_a_run_that_is_read_back_as_it_was(call, method):
    shown = made(call("mlp0", "mlp1", "linear", f"ensemble={method}"))
    joined = predictor.load(Path(shown["run_dir"]))
    assert joined.evaluate("test")["accuracy"] == pytest.approx(shown["metrics"]["test/accuracy"])
    if method == "greedy":
        alone: list[dict] = [
            running.find(joined.run.folder.parents[1], name).result or {} for name in ("mlp0", "mlp1", "linear")
        ]
        best = max(result["metrics"]["valid/accuracy"] for result in alone)
        assert shown["metrics"]["valid/accuracy"] >= best


@pytest.mark.slow
def test_stacking_does_not_see_the_labels_of_the_test_split(call, monkeypatch):
    from dlrun.commands import _ensemble_members as members

    def plan(shown):
        return json.loads((Path(shown["run_dir"]) / "plan.json").read_text())["fit"]

    first = plan(made(call("mlp0", "linear", "ensemble=stack")))
    real = members.predict

    def shuffled(given, split, reporter):
        found = real(given, split, reporter)
        assert found
        if split == "test":
            order = torch.randperm(len(found[0].outputs.ids), generator=torch.Generator().manual_seed(0))
            for each in found:
                each.outputs.fields["label"] = each.outputs.fields["label"][order]
        return found

    monkeypatch.setattr(members, "predict", shuffled)
    other = made(call("mlp0", "linear", "ensemble=stack"))
    assert plan(other) == first and other["metrics"]["test/accuracy"] < 0.5


def test_the_soup_of_one_run_is_the_run(call, folder):
    shown = made(call("mlp0", "mlp0", "ensemble=soup"))
    one, other = (predictor.load(path) for path in (running.find(folder, "mlp0").folder, Path(shown["run_dir"])))
    for name, tensor in one.model.state_dict().items():
        assert torch.equal(tensor, other.model.state_dict()[name])
    found = report(shown)
    assert found["ensemble"]["parameters"] == (one.run.result or {})["parameters"]
    assert found["selective"]["goal"][-1] == pytest.approx(shown["goal"]["value"])


def test_an_ensemble_of_predictions_has_no_weights_for_a_soup(call):
    name = made(call("mlp0", "mlp1"))["run_id"]
    code, _, err = call("mlp0", name, "ensemble=soup")
    said = f"run {name[:8]} is an ensemble of predictions, and has no weights that could be averaged"
    assert code == 2 and said in " ".join(err.split())


def test_weights_along_a_run_are_averaged(call, folder):
    shown = made(call("mlp0", "ensemble=swa", "ensemble.refresh_norms=false"))
    run = running.find(folder, "mlp0")
    from dlrun.training import checkpoint

    steps = checkpoint.steps(run.checkpoints)
    assert [member["step"] for member in shown["members"]] == steps and len(steps) == 2
    parts = [predictor.load(run.folder, step=step).model.state_dict() for step in steps]
    for name, tensor in predictor.load(Path(shown["run_dir"])).model.state_dict().items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor, torch.stack([part[name] for part in parts]).mean(0))
    named = made(call(*(f"mlp0@{step}" for step in steps), "ensemble=swa", "ensemble.refresh_norms=false"))
    assert named["metrics"] == shown["metrics"]


def test_a_member_may_be_a_checkpoint(call, folder):
    steps = sorted(int(path.name) for path in running.find(folder, "mlp0").checkpoints.glob("0*"))
    shown = made(call(f"mlp0@{steps[0]}", f"mlp0@{steps[-1]}"))
    assert [member["step"] for member in shown["members"]] == [steps[0], steps[-1]]


@pytest.mark.slow
def test_draws_of_dropout_differ_and_are_the_same_when_asked_again(call):
    shown = made(call("mlp0", "ensemble=mc_dropout", "ensemble.draws=3"))
    found = report(shown)
    assert found["disagreement"][0][1] > 0
    joined = predictor.load(Path(shown["run_dir"]))
    said = [joined.predict_split("test").fields["log_probabilities"] for _ in range(2)]
    assert torch.equal(*said)
    assert joined.evaluate("test")["loss"] == pytest.approx(shown["metrics"]["test/loss"])


@pytest.mark.slow
def test_members_can_be_trained_by_the_command(call, folder):
    config = ("model=logistic", "train.duration=1 epoch", *SMALL[:2])
    shown = made(call(*config, "ensemble=bagging", "ensemble.count=2"))
    children = [running.load(folder / member["run_id"] / "artifacts") for member in shown["members"]]
    assert len({child.record.parents for child in children}) == 1 and len(children) == 2
    shown = made(call("linear", "name=again", "ensemble=deep", "ensemble.count=2"))
    seeds = [member["run_id"] for member in shown["members"]]
    first, second = (predictor.load(folder / each / "artifacts") for each in seeds)
    assert [each.config.seed for each in (first, second)] == [0, 1] and first.config.model.name == "logistic"
    shown = made(call(*config[:1], "train.duration=4 epochs", *SMALL[:2], "ensemble=snapshot", "ensemble.cycles=2"))
    steps = [member["step"] for member in shown["members"]]
    assert steps == sorted(steps) and len(steps) == 2
    assert len({member["run_id"] for member in shown["members"]}) == 1


@pytest.mark.slow
@pytest.mark.parametrize(("name", "members"), [("shared", "shared members"), (None, "mlp0 members")])
@pytest.mark.parametrize("method", ["batch_ensemble", "deep"])
def test_a_name_is_the_ensembles_and_not_that_of_what_it_trains(method, name, members, call, folder):
    words = () if name is None else (f"name={name}",)
    shown = made(call("mlp0", *words, f"ensemble={method}", "ensemble.count=2", "train.duration=1 epoch"))
    own = running.load(Path(shown["run_dir"]))
    trained = running.load(folder / shown["parents"][0] / "artifacts")
    if method == "deep":
        assert trained.record.name == f"{members} seed 0"
        trained = running.load(folder / trained.record.parents[0] / "artifacts")
    assert (own.record.name, trained.record.name) == (name or own.record.name, members)
    assert own.record.name.startswith(name or f"{method} of ")
    assert running.find(folder, "mlp0").record.verb == "train"


@pytest.mark.slow
def test_the_children_of_several_seeds_are_members(call, folder, capsys):
    parent = made(call("--seeds", "2", "model=logistic", "train.duration=1 epoch", *SMALL, "name=pair", verb="train"))
    shown = made(call(parent["run_id"]))
    assert len(shown["members"]) == 2


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("numbers", "numbers", "ensemble.shift=true"), 2, "compared for classification"),
        (("mlp0", "numbers"), 2, "do not learn the same: classification and regression"),
        (("linear", "elsewhere"), 2, "do not have the same test split"),
        (("mlp0", "linear", "ensemble=soup"), 2, "are different models (mlp, logistic)"),
        (("ensemble=vote",), 2, "is made of runs, and none is named"),
        (("mlp0", "mlp1", "--top", "2"), 2, "--top goes with a sweep"),
        (("mlp0", "mlp1", "optimizer.lr=1"), 2, "ensemble cannot change optimizer.lr"),
        (("mlp0", "ensemble=avrage"), 2, "ensemble: no choice 'avrage'"),
        (("mlp0", "ensemble.of=logit"), 2, "ensemble.of: 'logit' was given"),
        (("linear", "ensemble=mc_dropout"), 2, "has no dropout"),
        (("mlp0", "linear", "ensemble=mc_dropout"), 2, "draws from one run"),
        (("mlp0@3",), 2, "has no checkpoint of step 3; it has"),
        (("mlp0", "mlp1", "ensemble=deep"), 2, "trains its members itself"),
        (("mlp0", "mlp1", "ensemble=swa"), 2, "averages checkpoints along one run, and 2 runs are named"),
        (("nobody",), 2, "unknown run 'nobody'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_members_that_do_not_fit_are_refused_before_a_run_is_made(call, folder, arguments, code, said):
    before = len(running.listing(folder))
    ended, _, err = call(*arguments)
    assert (ended, said in err) == (code, True), err
    assert "Traceback" not in err and len(running.listing(folder)) == before


def test_an_ensemble_whose_member_is_gone_says_which(call, folder):
    shown = made(call("mlp0", "mlp1"))
    plan = Path(shown["run_dir"]) / "plan.json"
    plan.write_text(plan.read_text().replace(running.find(folder, "mlp1").id, "f" * 32))
    code, _, err = call(shown["run_id"], verb="evaluate")
    assert code == 4 and "its member ffffffff is gone" in err


def test_an_ensemble_that_was_killed_does_not_read_as_finished(call, folder, monkeypatch):
    from dlrun.commands import _ensemble_report

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(_ensemble_report, "report", killed)
    code, _, _ = call("mlp0", "mlp1")
    latest = running.listing(folder)[0]
    assert code == 130 and latest.record.verb == "ensemble" and latest.status == "KILLED" and not latest.result


# ---------------------------------------------------------------- members that share weights

SHARED = ("ensemble=batch_ensemble", "ensemble.count=3")
TOGETHER = ("ensemble=deep", "ensemble.count=3", "ensemble.together=true")
SHORT = (
    "model=mlp",
    "model.width=16",
    "train.duration=3 epochs",
    *SMALL,
)


@pytest.mark.slow
@pytest.mark.parametrize("method", [SHARED, TOGETHER])
def test_members_of_one_model_are_trained_once_and_say_what_its_run_says(method, call, folder):
    shown = made(call(*method, *SHORT))
    found = report(shown)
    assert len({member["run_id"] for member in shown["members"]}) == 1 and len(shown["members"]) == 3
    assert found["kind"] == "parts" and found["disagreement"][0][1] > 0 and found["selective"]["goal"]
    run = running.load(folder / shown["parents"][0] / "artifacts")
    assert run.record.verb == "train" and found["ensemble"]["parameters"] == (run.result or {})["parameters"]
    assert (run.result or {})["metrics"]["test/accuracy"] == pytest.approx(shown["metrics"]["test/accuracy"], abs=0.01)
    assert (run.result or {})["metrics"]["test/loss"] == pytest.approx(shown["metrics"]["test/loss"], rel=1e-4)
    alone, joined = (predictor.load(path).predict_split("test") for path in (run.folder, Path(shown["run_dir"])))
    assert torch.equal(alone.fields["log_probabilities"], joined.fields["log_probabilities"])
    before = len(running.listing(folder))
    again = made(call(run.id, *method, "ensemble.shift=true"))
    assert again["parents"] == [run.id] and len(running.listing(folder)) == before + 1  # nothing was trained
    assert 0 <= report(again)["shift"]["mutual_information"] <= 1


def test_a_model_that_cannot_share_its_weights_is_refused_with_those_that_can(call, folder):
    before = len(running.listing(folder))
    code, _, err = call("ensemble=batch_ensemble", "model=logistic", *SMALL)
    assert code == 2 and "model=logistic does not share its weights between members" in err
    assert "choose model=cnn, mlp, resnet, or ensemble=deep" in " ".join(err.split())
    assert len(running.listing(folder)) == before


def test_copies_that_would_not_be_trained_as_each_alone_leave_no_run(call, folder):
    before = len(running.listing(folder))
    code, _, err = call(*TOGETHER, *SHORT, "train.clip_norm=1.0")
    assert code == 2 and "model.copies=3 does not go with train.clip_norm" in " ".join(err.split())
    assert len(running.listing(folder)) == before
