"""`dlrun sweep` whose trials are several processes: pruned by all ranks, failed by one, gone on with after a kill."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.slow

TWO = (
    "sweep",
    "hardware.processes=2",
    "hardware.device=cpu",
    "hardware.threads=1",
    "hardware.timeout_seconds=60",
    "tracking.system_metrics=false",
    "search=grid",
)
# What does not learn cannot be better than its own first evaluation, so it is pruned without being best.
MODEL = '''"""A linear layer that learns, does not learn, or loses its second rank."""
import os
from typing import Literal

from torch import nn


class Net(nn.Module):
    def __init__(self, features, classes, kind):
        super().__init__()
        self.head, self.kind, self.calls = nn.Linear(features, classes), kind, 0

    def forward(self, x):
        self.calls += 1
        if self.kind == "killed" and self.calls == 3 and os.environ["RANK"] == "1":
            os.kill(os.getpid(), 9)
        return self.head(x.flatten(1)) * (0 if self.kind == "still" else 1)


def build(spec, *, kind: Literal["learns", "killed", "still"] = "learns"):
    """A linear layer.

    Settings:
    kind: what becomes of it
    """
    return Net(64, spec.size("classes"), kind)
'''


def dlrun(runs: Path, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "dlrun", *arguments, "--runs", str(runs)], capture_output=True, text=True, timeout=300
    )


def processes_of(folder: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if str(folder) in " ".join(process.cmdline()) and process.pid != os.getpid():
                found.append(process)
        except psutil.Error:
            continue
    return found


def test_trials_of_two_ranks_are_scored_pruned_and_failed_and_the_search_goes_on(tmp_path):
    (tmp_path / "components" / "models").mkdir(parents=True)
    (tmp_path / "components" / "models" / "linear.py").write_text(MODEL)
    (tmp_path / "conf" / "model").mkdir(parents=True)
    (tmp_path / "conf" / "model" / "linear.yaml").write_text("# a linear layer\nname: linear\n")
    folders = ("--components", str(tmp_path / "components"), "--config-dir", str(tmp_path / "conf"))
    pruner = ("search.pruner=median", "search.pruner_options={n_startup_trials: 1, n_warmup_steps: 1}")
    space = ("model=linear", "model.kind=killed,learns,still", "train.duration=3 epochs", "search.seed=5")
    ended = dlrun(tmp_path / "runs", *TWO, *space, *pruner, *folders, "--json")
    assert ended.returncode == 0, ended.stderr
    trials = {row["settings"]["model.kind"]: row for row in json.loads(ended.stdout)["trials"]}
    assert [row["settings"]["model.kind"] for row in json.loads(ended.stdout)["trials"]][-1] == "still"
    assert (trials["learns"]["state"], trials["learns"]["reason"]) == ("complete", "complete")
    result = json.loads((tmp_path / "runs" / trials["learns"]["run"] / "artifacts" / "result.json").read_text())
    assert trials["learns"]["values"] == [result["metrics"]["valid/accuracy"]] and result["step"] > 20
    assert (trials["killed"]["state"], trials["killed"]["reason"]) == ("fail", "rank 1 was ended by SIGKILL")
    steps = result["step"] // 3
    assert (trials["still"]["state"], trials["still"]["reason"]) == ("pruned", f"pruned at step {2 * steps}")
    stopped = json.loads((tmp_path / "runs" / trials["still"]["run"] / "artifacts" / "result.json").read_text())
    assert stopped["step"] == 2 * steps
    assert processes_of(tmp_path / "runs") == []


def test_a_sweep_killed_with_its_ranks_at_work_leaves_nobody_and_goes_on_from_their_checkpoint(tmp_path):
    runs = tmp_path / "runs"
    space = ("model=logistic", "optimizer.lr=0.01,0.02", "train.duration=200 steps", "train.save_every=20 steps")
    command = [sys.executable, "-m", "dlrun", *TWO, *space, "search.pruner=none", "--runs", str(runs)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not list(runs.glob("*/artifacts/checkpoints/last")):
        time.sleep(0.02)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 30
    while processes_of(runs) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert processes_of(runs) == []
    [begun] = runs.glob("*/artifacts/trial.json")
    assert not (begun.parent / "result.json").exists()
    [sweep] = [
        json.loads(path.read_text())["id"]
        for path in runs.glob("*/artifacts/run.json")
        if json.loads(path.read_text())["verb"] == "sweep"
    ]
    ended = dlrun(runs, "sweep", "--resume", sweep, "--json")
    assert ended.returncode == 0, ended.stderr
    trials = json.loads(ended.stdout)["trials"]
    assert [row["state"] for row in trials] == ["complete"] * 2
    assert trials[0]["run"] == begun.parents[1].name and len(list(runs.glob("*/artifacts/trial.json"))) == 2
    assert len((begun.parent / "resumes.jsonl").read_text().splitlines()) == 1
    steps = [json.loads((runs / row["run"] / "artifacts" / "result.json").read_text())["step"] for row in trials]
    assert steps == [200, 200]
