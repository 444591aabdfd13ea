"""`kill -9` at any moment, then `--resume latest`: the result is bit-identical to a run that was left alone."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dlrun.training.metrics_log import read_rows

pytestmark = pytest.mark.slow

BASE = (
    "train",
    "hardware.device=cpu",
    "hardware.threads=1",
    "model=mlp",
    "train.save_every=7 steps",
    "train.log_every=5",
    "train.duration=30 epochs",
)
VARIANTS = {
    "dropout, ema, warm-up": ("model.dropout=0.2", "train.ema=0.95", "schedule.warmup=10 %"),
    "accumulation, augmentation, mixing": ("train.accumulate=2", "data.augment={random_crop: {padding: 1}, mixup: {}}"),
    "fp16 with its scaler, momentum, early stop": (
        "train.precision=fp16",
        "optimizer=sgd",
        "optimizer.lr=0.05",
        "train.patience=12",
    ),
    "texts in batches of like length": ("data=number_words", "data.kind=classification", "data.size=1000", "model=bag"),
}


def command(runs: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "dlrun", *arguments, "--runs", str(runs)]


def fingerprint(runs: Path) -> dict:
    """Everything a run leaves behind that must not depend on how often it was killed."""
    [folder] = runs.glob("*/artifacts")
    last = folder / "checkpoints" / "last"
    files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in last.glob("*.safetensors")}
    state = json.loads((last / "state.json").read_text())
    state["progress"].pop("seconds")
    rows = [
        (row["step"], key, value)
        for row in read_rows(folder / "metrics.jsonl")
        for key, value in row["values"].items()
        if not key.startswith(("rate/", "system/"))
    ]
    result = json.loads((folder / "result.json").read_text())
    return {"files": files, "state": state, "rows": rows, "metrics": result["metrics"], "best": result["best_step"]}


def train_to_the_end(runs: Path, variant: tuple[str, ...]) -> None:
    subprocess.run(command(runs, *BASE, *variant), check=True, capture_output=True)


def train_with_kills(runs: Path, variant: tuple[str, ...], kills: int, draws: random.Random) -> int:
    """Kill so many times, each at a random moment after training began; returns how often it hit a living process."""
    hit = 0
    arguments: tuple[str, ...] = (*BASE, *variant)
    for _ in range(kills):
        process = subprocess.Popen(command(runs, *arguments), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for_a_new_checkpoint(runs, process)
        time.sleep(draws.uniform(0, 0.6))
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            hit += 1
        process.wait()
        arguments = ("train", "--resume", "latest")
    done = subprocess.run(command(runs, "train", "--resume", "latest"), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return hit


def wait_for_a_new_checkpoint(runs: Path, process: subprocess.Popen) -> None:
    before = set(runs.glob("*/artifacts/checkpoints/0*"))
    while process.poll() is None and not set(runs.glob("*/artifacts/checkpoints/0*")) - before:
        time.sleep(0.005)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_killed_run_equals_an_uninterrupted_one(tmp_path, name, request):
    rounds = 60 if request.config.getoption("--soak") else 1
    train_to_the_end(tmp_path / "straight", VARIANTS[name])
    expected = fingerprint(tmp_path / "straight")
    for round_number in range(rounds):
        broken = tmp_path / f"broken{round_number}"
        hit = train_with_kills(broken, VARIANTS[name], 2, random.Random(f"{name}{round_number}"))
        assert hit > 0 or rounds > 1, "the run ended before it could be killed: make it longer"
        found = fingerprint(broken)
        for part in expected:
            assert found[part] == expected[part], part


def test_sigterm_saves_marks_killed_and_says_how_to_go_on(tmp_path):
    runs = tmp_path / "runs"
    process = subprocess.Popen(
        command(
            runs, *BASE, "train.duration=5 minutes", "train.save_every=1000 epochs", "train.evaluate_every=500 epochs"
        ),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    metrics = None
    while metrics is None or not metrics.exists() or metrics.stat().st_size == 0:
        assert process.poll() is None, process.communicate()
        metrics = next(runs.glob("*/artifacts/metrics.jsonl"), None)
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    [folder] = runs.glob("*/artifacts")
    assert process.returncode == 143
    assert f"dlrun train --resume {folder.parent.name[:8]}" in said
    assert json.loads((folder / "run.json").read_text())["status"] == "KILLED"
    step = int((folder / "checkpoints" / "last").resolve().name)
    assert step == json.loads((folder / "checkpoints" / "last" / "state.json").read_text())["progress"]["step"] > 0


def test_seeds_killed_go_on_where_they_were(tmp_path):
    """The parent is killed while its second seed trains: the first is not trained again, the second goes on."""
    runs = tmp_path / "runs"
    arguments = [*BASE, "--seeds", "3"]
    process = subprocess.Popen(command(runs, *arguments), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("seed 1 "):
            break
    wait_for_checkpoint_of_second(runs)
    process.kill()
    process.wait()
    process.stderr.close()
    first = next(runs.glob("*/artifacts/seeds.json")).parent
    again = subprocess.run(
        command(runs, "train", "--resume", first.parent.name, "--json"), capture_output=True, text=True, timeout=120
    )
    assert again.returncode == 0, again.stderr
    assert "seed 0" not in again.stderr and "seed 1 (2 of 3)" in again.stderr and "resumed at step" in again.stderr
    shown = json.loads(again.stdout)
    children = json.loads((first / "run.json").read_text())["children"]
    assert len(children) == len(set(children)) == 3 and shown["status"] == "FINISHED"
    values = [
        json.loads((runs / child / "artifacts" / "result.json").read_text())["metrics"]["test/accuracy"]
        for child in children
    ]
    assert shown["metrics"]["test/accuracy"] == pytest.approx(sum(values) / 3)


def wait_for_checkpoint_of_second(runs: Path) -> None:
    while len(list(runs.glob("*/artifacts/checkpoints/last"))) < 2:
        time.sleep(0.02)
