"""One sweep on two machines (two working folders), which share a database and a tracking server."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.services

SMALL = (
    "model=logistic",
    "hardware.device=cpu",
    "hardware.threads=1",
    "tracking.system_metrics=false",
    "train.duration=4 epochs",
    "search=random",
    "optimizer.lr=tag(log, interval(1e-3,1e-1))",
)


def command(folder: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "dlrun", "sweep", *arguments, "--runs", str(folder / "runs")]


def ended(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(command(folder, *arguments), capture_output=True, text=True, timeout=400, cwd=folder)


def started(folder: Path, *arguments: str) -> subprocess.Popen:
    return subprocess.Popen(
        command(folder, *arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder
    )


def records(folder: Path, verb: str) -> list[dict]:
    found = [json.loads(path.read_text()) for path in folder.glob("runs/*/artifacts/run.json")]
    return [record for record in found if record["verb"] == verb]


def begun(folder: Path, trials: int = 1) -> str:
    """The sweep's id, once it has begun so many trials."""
    for _ in range(600):
        if len(records(folder, "train")) >= trials:
            return records(folder, "sweep")[0]["id"]
        time.sleep(0.2)
    raise AssertionError("no trial was begun")


@pytest.fixture
def machines(tmp_path: Path) -> tuple[Path, Path]:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    return tmp_path / "one", tmp_path / "two"


def test_two_machines_share_the_trials_of_one_sweep(machines, postgres, tracking_server):
    one, two = machines
    shared = (f"search.storage={postgres}", f"tracking.uri={tracking_server}")
    trials = 24  # more than one machine can train while the other starts
    first = started(one, *SMALL, *shared, f"search.trials={trials}", "--json")
    sweep = begun(one)
    second = ended(two, "--join", sweep[:12], *shared, "--json")
    out, errors = first.communicate(timeout=400)
    assert first.returncode == 0, errors
    assert second.returncode == 0, second.stderr
    shown = json.loads(out)
    mine, theirs = records(one, "train"), records(two, "train")
    assert mine and theirs
    assert len(mine) + len(theirs) == trials == len(shown["trials"])
    assert {record["id"] for record in mine + theirs} == {row["run"] for row in shown["trials"]}
    assert all(row["state"] in ("complete", "pruned") for row in shown["trials"])
    assert len({row["settings"]["optimizer.lr"] for row in shown["trials"]}) == trials  # the machines drew apart
    assert all(sweep in record["parents"] for record in theirs)
    assert _nested(tracking_server, sweep) == {record["id"] for record in mine + theirs} | {
        record["id"] for record in records(two, "join")
    }


def test_a_machine_that_is_killed_loses_no_trial_and_repeats_none(machines, postgres, tracking_server):
    one, two = machines
    shared = (f"search.storage={postgres}", f"tracking.uri={tracking_server}")
    first = started(one, *SMALL, *shared, "search.trials=6", "--json")
    sweep = begun(one)
    second = started(two, "--join", sweep, *shared)
    begun_there = time.monotonic() + 120
    while not records(two, "train") and time.monotonic() < begun_there:
        time.sleep(0.1)
    second.send_signal(signal.SIGKILL)
    second.communicate()
    again = ended(two, "--join", sweep, *shared)
    assert again.returncode == 0, again.stderr
    out, errors = first.communicate(timeout=400)
    assert first.returncode == 0, errors
    shown = json.loads(out)
    assert len(shown["trials"]) == 6
    runs = [row["run"] for row in shown["trials"]]
    assert len(set(runs)) == 6 and all(row["state"] in ("complete", "pruned") for row in shown["trials"])


@pytest.mark.parametrize(
    ("missing", "code", "said"),
    [
        ("database", 2, "where is the sweep's database?"),
        ("server", 8, "share a tracking server"),
        ("sweep", 2, "no sweep of the name"),
    ],
)
def test_joining_without_what_is_shared_is_refused(machines, postgres, tracking_server, missing, code, said):
    one, two = machines
    shared = {"database": f"search.storage={postgres}", "server": f"tracking.uri={tracking_server}"}
    assert ended(one, *SMALL, *shared.values(), "search.trials=1").returncode == 0
    sweep = "0123abcd" if missing == "sweep" else records(one, "sweep")[0]["id"]
    given = [text for name, text in shared.items() if name != missing]
    if missing == "server":
        given.append("tracking.uri=null")
    refused = ended(two, "--join", sweep, *given)
    assert refused.returncode == code and said in refused.stderr, refused.stderr
    assert not records(two, "train") and "Traceback" not in refused.stderr


def test_a_database_that_cannot_be_reached_is_named(machines):
    refused = ended(machines[0], *SMALL, "search.storage=postgresql+psycopg://dlrun@127.0.0.1:1/none")
    assert refused.returncode == 8 and "search.storage: cannot be reached" in refused.stderr
    assert "Traceback" not in refused.stderr


def _nested(server: str, parent: str) -> set[str]:
    code = (
        "import sys, mlflow\n"
        f"client = mlflow.MlflowClient({server!r})\n"
        "experiments = [e.experiment_id for e in client.search_experiments()]\n"
        f"found = client.search_runs(experiments, \"tags.`mlflow.parentRunId` = '{parent}'\")\n"
        "print(*[run.info.run_id for run in found])"
    )
    environment = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true"}
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    return set(said.stdout.split())
