"""A compression that ended early goes on: what was done is not done again, and it comes out as if it had not ended."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dlrun.commands import _compress_tools
from dlrun.runs import load
from dlrun.training.metrics_log import read_rows

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("short_timing")]

STACK = (
    "compression=[prune_magnitude,finetune]", "compression.prune_magnitude.sparsity=0.7",
    "compression.prune_magnitude.finetune=8 epochs", "compression.finetune.duration=8 epochs",
    "train.evaluate_every=2 epochs", "train.save_every=1 epoch",
)  # fmt: skip


@pytest.fixture
def ended(runs, dlrun):
    """The JSON object of a command that ends well, and what it said."""

    def call(*words):
        code, out, err = dlrun(*words, "--runs", str(runs), "--json")
        assert code == 0, err
        return json.loads(out), err

    return call


def weights(said):
    return load_file(f"{said['run_dir']}/checkpoints/best/weights.safetensors")


def unfinished(runs):
    """The folder of the only compression that has not come to its end."""
    [found] = [path.parent for path in runs.glob("*/artifacts/compression.json") if load(path.parent).result is None]
    return found


def assert_same(found, expected, tolerance=0.0):
    assert found["metrics"] == pytest.approx(expected["metrics"], rel=tolerance, abs=tolerance)
    mine, theirs = weights(found), weights(expected)
    torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=tolerance)
    rows = [read_rows(Path(said["run_dir"]) / "metrics.jsonl") for said in (found, expected)]
    assert [row["step"] for row in rows[0]] == [row["step"] for row in rows[1]]
    losses = [[row["values"]["valid/loss"] for row in each if "valid/loss" in row["values"]] for each in rows]
    assert losses[0] == pytest.approx(losses[1], rel=tolerance)


@pytest.fixture
def broken_off(runs, dlrun, monkeypatch):
    """A function that begins a compression whose fine-tuning number `at` breaks after so many steps, as if the power
    went; returns the run's folder."""

    def call(at, step, *words):
        fit, calls = _compress_tools.fit, []

        def breaking(engine):
            def stop(now, _):
                if len(calls) == at + 1 and now == step:
                    raise RuntimeError("the power went")
                return {}

            calls.append(engine)
            engine.after_step.append(stop)
            return fit(engine)

        with monkeypatch.context() as patch:
            patch.setattr(_compress_tools, "fit", breaking)
            with pytest.raises(RuntimeError, match="the power went"):
                dlrun("compress", *words, "--runs", str(runs))
        return unfinished(runs)

    return call


@pytest.mark.parametrize(("at", "step"), [(0, 5), (0, 60), (1, 3), (1, 71)])
def test_a_stack_that_broke_off_comes_out_as_if_it_had_not(runs, train, ended, broken_off, at, step):
    run = train("model=mlp")
    expected, _ = ended("compress", run.id, *STACK)
    assert not (runs / expected["run_id"] / "artifacts" / "finetuning").exists()
    begun = broken_off(at, step, run.id, *STACK)
    assert load(begun).status == "FAILED"
    found, err = ended("compress", "--resume", begun.parent.name)
    assert ("fine-tuning was done" in err) == (at == 1)
    assert_same(found, expected)
    zeros = sum(int((tensor == 0).sum()) for name, tensor in weights(found).items() if tensor.dim() > 1)
    assert zeros >= 0.69 * sum(tensor.numel() for tensor in weights(found).values() if tensor.dim() > 1)
    assert not (begun / "finetuning").exists() and load(begun).status == "FINISHED"


@pytest.mark.parametrize("words", [
    ("compression=distill", "model@compression.distill.student=logistic", "compression.distill.duration=6 epochs"),
    ("compression=prune_movement", "compression.prune_movement.finetune=6 epochs"),
    ("compression=[qat,quantize_static]", "compression.qat.duration=6 epochs"),
    ("compression=cluster", "compression.cluster.finetune=6 epochs"),
], ids=lambda words: words[0].partition("=")[2])  # fmt: skip
def test_every_way_to_train_goes_on(train, ended, broken_off, words):
    run = train("model=mlp")
    words = (*words, "train.evaluate_every=2 epochs", "train.save_every=1 epoch")
    expected, _ = ended("compress", run.id, *words)
    begun = broken_off(0, 50, run.id, *words)
    found, err = ended("compress", "--resume", begun.parent.name)
    assert "fine-tuning resumed at step" in err
    # What a teacher says is kept from the first batch it is in, and the batches of a half epoch round otherwise.
    assert_same(found, expected, tolerance=1e-5 if "compression=distill" in words else 0.0)


def test_a_teacher_is_the_run_it_was_in_the_beginning_and_a_parent(runs, train, dlrun, broken_off):
    run, teacher = train("model=logistic", "data.split_seed=0"), train("model=mlp", "data.split_seed=0", "seed=1")
    words = ("compression=[finetune,distill]", "compression.distill.duration=1 epoch",
             "compression.distill.teacher=latest")  # fmt: skip
    begun = broken_off(0, 5, run.id, *words)
    asked = json.loads((begun / "compression.json").read_text())
    assert asked["compression"]["distill"]["teacher"] == teacher.id
    assert dlrun("compress", "--resume", "latest", "--runs", str(runs))[0] == 0
    found = load(begun)
    assert list(found.record.parents) == [run.id, teacher.id]
    assert found.result is not None and found.result["steps"][1]["report"]["teacher"] == teacher.short_id
    _, out, _ = dlrun("lineage", begun.parent.name, "--runs", str(runs))
    assert teacher.short_id in out and run.short_id in out


def test_a_search_looks_again_only_where_it_had_not(train, ended, broken_off):
    run = train("model=mlp")
    words = ("compression=prune_magnitude", "compression.prune_magnitude.finetune=2 epochs", "--max-drop", "0.02")
    expected, _ = ended("compress", run.id, *words)
    begun = broken_off(2, 4, run.id, *words)
    found, err = ended("compress", "--resume", begun.parent.name)
    assert err.count("fine-tuning was done") == 2
    values = [[each["value"] for each in said["search"]["tried"]] for said in (found, expected)]
    assert values[0] == values[1] and len(values[0]) > 2
    assert all(torch.equal(tensor, weights(expected)[name]) for name, tensor in weights(found).items())


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_one_that_is_killed_or_stopped_goes_on_by_the_command_it_names(runs, train, ended, number, code):
    run = train("model=mlp")
    words = ("compression=finetune", "compression.finetune.duration=60 epochs", "train.save_every=1 epoch")
    command = [sys.executable, "-m", "dlrun", "compress", run.id, *words, "--runs", str(runs)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    deadline = time.monotonic() + 120
    while not list(runs.glob("*/artifacts/finetuning/0/0*")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    os.kill(process.pid, number)
    _, err = process.communicate(timeout=120)
    assert process.returncode == code
    begun = unfinished(runs)
    assert load(begun).status == "KILLED"
    if number != signal.SIGKILL:
        assert f"Go on with: dlrun compress --resume {begun.parent.name[:8]}" in err
    found, err = ended("compress", "--resume", begun.parent.name)
    assert "fine-tuning resumed at step" in err and found["run_id"] == begun.parent.name
    assert len((begun / "resumes.jsonl").read_text().splitlines()) == 1
    shown, err = ended("compress", "--resume", begun.parent.name)
    assert "nothing is left to do" in err and shown["after"] == found["after"]


def test_what_cannot_be_resumed_is_said(runs, train, dlrun):
    run = train("model=mlp")
    for words, says in [
        (("--resume", run.id), "is of train, and only a compression is resumed here"),
        ((run.id, "--resume", run.id), "--resume goes on with what was asked for then"),
        ((), "compress needs a run"),
    ]:
        code, _, err = dlrun("compress", *words, "--runs", str(runs))
        assert code == 2 and says in err and err.count("\n") <= 2
