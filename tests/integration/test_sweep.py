"""`dlrun sweep` as a person meets it: trials, pruning, failures, killing and resuming."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.slow

SMALL = (
    "sweep",
    "model=logistic",
    "hardware.device=cpu",
    "hardware.threads=1",
    "tracking.system_metrics=false",
    "train.duration=2 epochs",
    "search=random",
)


def dlrun(runs: Path, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "dlrun", *arguments, "--runs", str(runs)],
        capture_output=True, text=True, timeout=300, cwd=cwd,
    )  # fmt: skip


def records(runs: Path, verb: str) -> list[dict]:
    found = [json.loads(path.read_text()) for path in runs.glob("*/artifacts/run.json")]
    return [record for record in found if record["verb"] == verb]


@pytest.fixture(scope="module")
def swept(tmp_path_factory) -> tuple[Path, dict]:
    """A sweep of four trials with two workers."""
    runs = tmp_path_factory.mktemp("sweep") / "runs"
    space = ("optimizer.lr=tag(log, interval(1e-3,1e-1))", "data.batch_size=32,64")
    ended = dlrun(runs, *SMALL, *space, "search.trials=4", "search.keep=2", "--workers", "2", "--json")
    assert ended.returncode == 0, ended.stderr
    return runs, json.loads(ended.stdout)


def test_the_json_object_has_every_trial_and_the_best(swept):
    runs, shown = swept
    assert shown["status"] == "FINISHED" and shown["goal"]["name"] == "accuracy" and shown["goal"]["split"] == "valid"
    assert len(shown["trials"]) == 4
    values = [row["values"][0] for row in shown["trials"] if row["state"] == "complete"]
    assert shown["goal"]["value"] == max(values)
    children = records(runs, "train")
    assert {record["id"] for record in children} == {row["run"] for row in shown["trials"]}
    assert all(record["status"] == "FINISHED" for record in children)
    [parent] = records(runs, "sweep")
    assert len(parent["children"]) == 4


def test_only_the_weights_of_the_best_are_kept(swept):
    runs, shown = swept
    done = [row for row in shown["trials"] if row["state"] == "complete"]
    best = {row["run"] for row in sorted(done, key=lambda row: -row["values"][0])[:2]}
    kept = {path.parents[1].name for path in runs.glob("*/artifacts/checkpoints")}
    assert kept == best
    gone = next(row["run"] for row in shown["trials"] if row["run"] not in best)
    ended = dlrun(runs, "evaluate", gone)
    assert ended.returncode == 4 and "its weights were removed by the sweep" in ended.stderr


def test_the_best_configuration_is_an_experiment_that_trains(swept, tmp_path):
    runs, shown = swept
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    text = (runs / shown["run_id"] / "artifacts" / "best.yaml").read_text()
    (tmp_path / "conf" / "experiment" / "found.yaml").write_text(text)
    ended = dlrun(tmp_path / "runs", "train", "experiment=found", "--json", cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    again = json.loads(ended.stdout)["metrics"]
    best = runs / shown["best"]["run"] / "artifacts" / "result.json"
    assert again["valid/accuracy"] == json.loads(best.read_text())["metrics"]["valid/accuracy"]


def test_a_trial_in_a_warm_worker_gives_the_weights_of_a_run_alone(swept, tmp_path):
    runs, shown = swept
    row = next(row for row in shown["trials"] if row["run"] == shown["best"]["run"])
    ended = dlrun(tmp_path / "runs", "train", *shown["best"]["overrides"])
    assert ended.returncode == 0, ended.stderr
    [alone] = (tmp_path / "runs").glob("*/artifacts/checkpoints/last/weights.safetensors")
    warm = runs / row["run"] / "artifacts" / "checkpoints" / "last" / "weights.safetensors"
    assert alone.read_bytes() == warm.read_bytes()


def test_the_fifth_trial_of_one_warm_worker_gives_the_weights_of_a_run_alone(tmp_path):
    """With dropout, a changed picture in every batch, and other models before it in the same process."""
    drawn = ("data.augment={random_crop: {padding: 1}}", "train.duration=40 steps")
    space = ("model=mlp,logistic,cnn", "optimizer.lr=0.001,0.01", "search=grid")
    ended = dlrun(tmp_path / "runs", *SMALL, *drawn, *space, "search.pruner=none", "search.keep=6", "--json")
    assert ended.returncode == 0, ended.stderr
    fifth = json.loads(ended.stdout)["trials"][4]
    folder = tmp_path / "runs" / fifth["run"] / "artifacts"
    assert fifth["settings"]["model"] == "mlp"
    chosen = json.loads((folder / "trial.json").read_text())["overrides"]
    common = [argument for argument in SMALL[1:] if not argument.startswith(("model", "search"))]
    ended = dlrun(tmp_path / "alone", "train", *common, *drawn, *chosen)
    assert ended.returncode == 0, ended.stderr
    [alone] = (tmp_path / "alone").glob("*/artifacts/checkpoints/last/weights.safetensors")
    assert (folder / "checkpoints" / "last" / "weights.safetensors").read_bytes() == alone.read_bytes()


def test_latency_is_measured_of_every_trial_and_weighed_against_accuracy(tmp_path):
    chased = "search.objectives=[accuracy:max,latency:min,parameters:min]"
    ended = dlrun(tmp_path / "runs", *SMALL, "model=logistic,mlp,cnn", "search=grid", chased, "--json")
    assert ended.returncode == 0, ended.stderr
    shown = json.loads(ended.stdout)
    for row in shown["trials"]:
        result = json.loads((tmp_path / "runs" / row["run"] / "artifacts" / "result.json").read_text())
        assert row["values"] == [
            result["metrics"]["valid/accuracy"], 1e3 * result["latency_seconds"], result["parameters"]
        ]  # fmt: skip
        assert row["values"][1] > 0
    stored = json.loads((Path(shown["run_dir"]) / "result.json").read_text())
    assert stored["objectives"] == ["accuracy:max", "latency:min", "parameters:min"]
    costs = {row["number"]: (-row["values"][0], *row["values"][1:]) for row in shown["trials"]}
    unbeaten = [
        number for number, mine in costs.items()
        if not any(other != mine and all(a <= b for a, b in zip(other, mine, strict=True)) for other in costs.values())
    ]  # fmt: skip
    assert stored["front"] == unbeaten and shown["best"]["number"] in unbeaten
    said = dlrun(tmp_path / "runs", "sweep", "--resume", shown["run_id"]).stdout
    assert "latency" in said and "front" in said


def test_a_finished_sweep_is_only_shown_again(swept):
    runs, shown = swept
    ended = dlrun(runs, "sweep", "--resume", shown["run_id"], "--json")
    assert ended.returncode == 0 and "nothing is left to do" in ended.stderr
    assert json.loads(ended.stdout)["trials"] == shown["trials"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("optimizer.lrr=0.1,0.2",), "unknown setting 'optimizer.lrr'"),
        (("optimizer.lr=interval(1,0.5)",), "does not begin below its end"),
        (("seed=0",), "there is nothing to search"),
        (("model=logistic,mlp", "model.dropout=0.1,0.2"), "search.space.when"),
        (("optimizer.lr=0.1,0.2", "search.objectives=[test/accuracy:max]"), "the test split must not choose"),
        (
            ("optimizer.lr=0.1,0.2", "search.pruner=median", "search.pruner_options={n_startup: 1}"),
            "no option 'n_startup'",
        ),
    ],
)
def test_a_space_that_cannot_be_is_refused_before_the_first_trial(tmp_path, arguments, said):
    ended = dlrun(tmp_path / "runs", *SMALL, *arguments, "search.trials=2")
    assert ended.returncode == 2, ended.stderr
    assert said in ended.stderr and "Traceback" not in ended.stderr
    assert records(tmp_path / "runs", "train") == []


def test_a_failed_trial_is_recorded_with_its_reason_and_the_search_goes_on(tmp_path):
    ended = dlrun(tmp_path / "runs", *SMALL, "optimizer.lr=0.1,-1", "search=grid", "--json")
    assert ended.returncode == 0, ended.stderr
    states = {row["state"]: row["reason"] for row in json.loads(ended.stdout)["trials"]}
    assert states == {"complete": "complete", "fail": "optimizer: AdamW: Invalid learning rate: -1.0"}
    ended = dlrun(tmp_path / "none", *SMALL, "optimizer.lr=-2,-1", "search=grid")
    assert ended.returncode == 3 and "no trial succeeded" in ended.stderr


def test_an_objective_the_task_does_not_report_is_named_with_those_it_does(tmp_path):
    ended = dlrun(tmp_path / "runs", *SMALL, "optimizer.lr=0.1,0.2", "search.objectives=[acuracy:max]")
    assert ended.returncode == 2, ended.stderr
    assert "does not report 'acuracy'; it reports accuracy, loss" in ended.stderr


def test_a_trial_whose_data_leaves_no_objective_fails_and_the_search_goes_on(tmp_path):
    ended = dlrun(tmp_path / "runs", *SMALL, "data.valid_fraction=0.2,0,0.1", "search=grid", "--json")
    assert ended.returncode == 0, ended.stderr
    rows = {row["settings"]["data.valid_fraction"]: row for row in json.loads(ended.stdout)["trials"]}
    assert [(rows[text]["state"], rows[text]["reason"]) for text in ("0", "0.1", "0.2")] == [
        ("fail", "reports no accuracy"), ("complete", "complete"), ("complete", "complete")
    ]  # fmt: skip
    failed = tmp_path / "runs" / rows["0"]["run"] / "artifacts"
    assert not (failed / "checkpoints").exists()


# ---------------------------------------------------------------- kill -9


LONGER = (*SMALL, "train.duration=40 epochs", "train.save_every=20 steps", "search.pruner=none")


def started(runs: Path, *arguments: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "dlrun", *arguments, "--runs", str(runs)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def wait_until_one_trains(runs: Path, process: subprocess.Popen, count: int = 1) -> None:
    while process.poll() is None and len(list(runs.glob("*/artifacts/checkpoints/last"))) < count:
        time.sleep(0.02)


def check_whole(runs: Path, trials: int) -> None:
    """Every trial ended once, under one run each, and nothing still says it runs."""
    [parent] = records(runs, "sweep")
    shown = json.loads((runs / parent["id"] / "artifacts" / "result.json").read_text())
    assert parent["status"] == "FINISHED"
    assert [row["state"] for row in shown["trials"]] == ["complete"] * trials
    assert len({row["run"] for row in shown["trials"]}) == trials
    tried = {tuple(row["settings"].items()) for row in shown["trials"]}
    assert len(tried) == trials, "the grid, of as many points, lacks some and repeats others"
    begun = [record for record in records(runs, "train") if (runs / record["id"] / "artifacts" / "trial.json").exists()]
    assert sorted(record["id"] for record in begun) == sorted(row["run"] for row in shown["trials"])
    assert all(record["status"] == "FINISHED" for record in begun)
    assert all(record["status"] != "RUNNING" for record in records(runs, "train"))


def test_the_parent_killed_again_and_again_loses_and_repeats_no_trial(tmp_path):
    runs, trials = tmp_path / "runs", 4
    process = started(runs, *LONGER, "optimizer.lr=0.001,0.002,0.003,0.004", f"search.trials={trials}", "search=grid")
    for kill in range(3):
        wait_until_one_trains(runs, process, kill + 1)
        time.sleep(0.1 * kill)
        process.kill()
        process.wait()
        [parent] = records(runs, "sweep")
        process = started(runs, "sweep", "--resume", parent["id"])
    assert process.wait(timeout=240) == 0
    check_whole(runs, trials)


def test_a_finished_sweep_given_more_trials_and_killed_goes_on_with_them(tmp_path):
    runs, space = tmp_path / "runs", ("optimizer.lr=0.001,0.002,0.003", "search=grid")
    ended = dlrun(runs, *LONGER, *space, "train.duration=2 epochs", "search.trials=2", "--json")
    assert ended.returncode == 0, ended.stderr
    parent = json.loads(ended.stdout)["run_id"]
    process = started(runs, "sweep", "--resume", parent, "search.trials=3")
    while process.poll() is None and len(records(runs, "train")) < 3:
        time.sleep(0.02)
    assert {record["status"] for record in records(runs, "sweep")} == {"RUNNING"}
    process.kill()
    process.wait()
    assert dlrun(runs, "sweep", "--resume", parent).returncode == 0
    check_whole(runs, 3)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_worker_killed_or_stopped_loses_no_trial(tmp_path, number):
    runs = tmp_path / "runs"
    process = started(runs, *LONGER, "optimizer.lr=0.001,0.002", "search.trials=2", "search=grid", "search.keep=2")
    wait_until_one_trains(runs, process)
    [worker] = [
        child for child in psutil.Process(process.pid).children() if "dlrun.trials" in " ".join(child.cmdline())
    ]
    worker.send_signal(number)
    assert process.wait(timeout=240) == 0
    check_whole(runs, 2)
    resumed = list(runs.glob("*/artifacts/resumes.jsonl"))
    assert len(resumed) == 1


def test_thirty_kills_of_parent_and_workers_lose_and_repeat_no_trial(tmp_path, request):
    """`make soak`: half of the kills hit the sweep, half one of its two workers, at moments drawn by a seed."""
    if not request.config.getoption("--soak"):
        pytest.skip("only with --soak")
    draw, kills, trials, runs = random.Random(0), 0, 12, tmp_path / "runs"
    space = ("optimizer.lr=choice(" + ",".join(f"{i / 1000}" for i in range(1, trials + 1)) + ")", "search=grid")
    long = (*LONGER, "train.duration=200 epochs", *space, f"search.trials={trials}", "--workers", "2")
    process = started(runs, *long)
    wait_until_one_trains(runs, process)
    while kills < 30:
        time.sleep(draw.uniform(0.0, 6.0))
        assert process.poll() is None, "the sweep ended before it was killed 30 times: make its trials longer"
        children = psutil.Process(process.pid).children()
        workers = [child for child in children if "dlrun.trials" in " ".join(child.cmdline())]
        if kills % 2 and workers:
            draw.choice(workers).kill()
        else:
            process.kill()
            process.wait()
            [parent] = records(runs, "sweep")
            process = started(runs, "sweep", "--resume", parent["id"], "--workers", "2")
        kills += 1
    assert process.wait(timeout=1800) == 0
    check_whole(runs, trials)


def test_ctrl_c_saves_the_trials_and_names_the_command_that_goes_on(tmp_path):
    runs = tmp_path / "runs"
    process = subprocess.Popen(
        [sys.executable, "-m", "dlrun", *LONGER, "optimizer.lr=0.001,0.002", "search=grid", "--runs", str(runs)],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    wait_until_one_trains(runs, process)
    os.kill(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "go on with: dlrun sweep --resume" in said
    statuses = {record["status"] for record in records(runs, "train") + records(runs, "sweep")}
    assert statuses <= {"KILLED", "FINISHED"} and "KILLED" in statuses
    [parent] = records(runs, "sweep")
    assert dlrun(runs, "sweep", "--resume", parent["id"]).returncode == 0
    check_whole(runs, 2)


def test_workers_may_be_jobs_of_a_cluster(tmp_path):
    """submitit's local cluster: the same submission and the same socket, processes of this machine."""
    pytest.importorskip("submitit")
    space = ("optimizer.lr=tag(log, interval(1e-3,1e-1))", "hardware=slurm", "+hardware.slurm.cluster=local")
    ended = dlrun(tmp_path / "runs", *SMALL, *space, "search.trials=3", "--workers", "2", "--json")
    assert ended.returncode == 0, ended.stderr
    shown = json.loads(ended.stdout)
    assert [row["state"] for row in shown["trials"]] == ["complete"] * 3
    token = next((tmp_path / "runs").glob("*/artifacts/slurm/token"))
    assert token.stat().st_mode & 0o077 == 0


def test_a_cluster_that_is_not_here_is_named(tmp_path):
    pytest.importorskip("submitit")
    space = ("optimizer.lr=0.1,0.2", "hardware=slurm", "search.trials=2", "+hardware.slurm.slurm_partion=gpu")
    ended = dlrun(tmp_path / "runs", *SMALL, *space)
    assert ended.returncode == 2 and "Traceback" not in ended.stderr, ended.stderr
    assert "hardware" in ended.stderr
