"""Several processes: the same weights as one, a failing rank's own words, and nobody left behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

pytestmark = pytest.mark.slow

SGD = (
    "train",
    "model=mlp",
    "model.norm=none",
    "model.dropout=0",
    "hardware.device=cpu",
    "hardware.threads=1",
    "optimizer=sgd",
    "optimizer.lr=0.1",
    "optimizer.momentum=0.9",
    "train.duration=2 epochs",
    "data.batch_size=60",
    "hardware.timeout_seconds=60",
)


def run(runs: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "dlrun", *arguments, "--runs", str(runs)],
        capture_output=True,
        text=True,
        env=os.environ | environment,
        timeout=120,
    )


def weights(runs: Path) -> dict[str, torch.Tensor]:
    [folder] = runs.glob("*/artifacts")
    return load_file(folder / "checkpoints" / "last" / "weights.safetensors")


def test_two_ranks_give_the_weights_of_one_process(tmp_path):
    alone, two = run(tmp_path / "one", *SGD), run(tmp_path / "two", *SGD, "hardware.processes=2")
    assert alone.returncode == 0, alone.stderr
    assert two.returncode == 0, two.stderr
    left, right = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name in left:
        torch.testing.assert_close(left[name], right[name], rtol=1e-4, atol=1e-5)
    assert "valid/accuracy" in two.stderr and "test/accuracy" in two.stdout


FAILING = '''"""A model whose second rank fails at its third step."""
import os
from torch import nn


class Net(nn.Module):
    def __init__(self, features, classes):
        super().__init__()
        self.head, self.calls = nn.Linear(features, classes), 0

    def forward(self, x):
        self.calls += 1
        if self.training and self.calls == 3 and os.environ.get("RANK") == "1":
            {failure}
        return self.head(x.flatten(1))


def build(spec):
    """A linear layer."""
    return Net(64, spec.size("classes"))
'''


def project(folder: Path, failure: str) -> tuple[str, ...]:
    (folder / "components" / "models").mkdir(parents=True)
    (folder / "components" / "models" / "failing.py").write_text(FAILING.format(failure=failure))
    return (
        *(argument for argument in SGD if not argument.startswith("model")),
        "hardware.processes=2",
        "--components",
        str(folder / "components"),
        "--config-dir",
        str(conf(folder)),
    )


def conf(folder: Path) -> Path:
    (folder / "conf" / "model").mkdir(parents=True)
    (folder / "conf" / "model" / "mlp.yaml").write_text("# the failing model\nname: failing\n")
    return folder / "conf"


def children_of(marker: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if marker in " ".join(process.cmdline()) and process.pid != os.getpid():
                found.append(process)
        except psutil.Error:
            continue
    return found


def test_a_failing_ranks_own_traceback_is_shown_and_no_process_is_left(tmp_path):
    ended = run(tmp_path / "runs", *project(tmp_path, 'raise ValueError("the dog ate rank one")'))
    assert ended.returncode == 3, ended.stderr
    assert 'raise ValueError("the dog ate rank one")' in ended.stderr
    assert "rank 1: ValueError: the dog ate rank one" in ended.stderr
    assert "ChildFailedError" not in ended.stderr
    assert children_of(str(tmp_path / "runs")) == []


def test_a_rank_killed_from_outside_is_named(tmp_path):
    ended = run(tmp_path / "runs", *project(tmp_path, "os.kill(os.getpid(), 9)"))
    assert ended.returncode == 3, ended.stderr
    assert "rank 1 was ended by SIGKILL" in ended.stderr
    assert children_of(str(tmp_path / "runs")) == []


def test_sigterm_to_the_launcher_saves_on_every_rank_and_ends_with_143(tmp_path):
    runs = tmp_path / "runs"
    process = subprocess.Popen(
        [sys.executable, "-m", "dlrun", *SGD, "hardware.processes=2", "train.duration=5 minutes", "--runs", str(runs)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not list(runs.glob("*/artifacts/checkpoints/0*")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 143, said
    assert "--resume" in said
    assert children_of(str(runs)) == []


def test_dlrun_joins_a_torchrun_job_that_is_already_there(tmp_path):
    runs = tmp_path / "runs"
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node=2",
        "--master-addr=127.0.0.1",
        "--master-port=29611",
        "-m",
        "dlrun",
        *SGD,
        "--json",
        "--runs",
        str(runs),
    ]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    assert len(list(runs.glob("*/artifacts/run.json"))) == 1
    assert ended.stdout.count('"run_id"') == 1
