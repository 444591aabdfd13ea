"""What tests share: a runs folder with a ready store, and `train`, which makes a real run in it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("COLUMNS", "160")
if "PYTEST_XDIST_WORKER" in os.environ:  # several processes that take every core each slow one another down
    os.environ["OMP_NUM_THREADS"] = "1"
for name in ("DLRUN_RUNS", "DLRUN_COMPONENTS", "MLFLOW_TRACKING_URI", "RANK", "WORLD_SIZE"):
    os.environ.pop(name, None)

TINY = ("model=logistic", "train.duration=2 epochs", "hardware.device=cpu", "tracking.system_metrics=false")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--soak", action="store_true", help="repeat kill tests hundreds of times")


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database, made once; making it is what takes seconds."""
    from dlrun import tracking

    folder = tmp_path_factory.mktemp("store")
    return tracking.prepare_store(folder)


@pytest.fixture
def runs(tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty runs folder with its store; the test stands in the folder above it."""
    folder = tmp_path / "runs"
    folder.mkdir()
    for path in store.parent.glob("*mlflow*"):
        if path.is_file():
            shutil.copy(path, folder / path.name)
    monkeypatch.chdir(tmp_path)
    yield folder


@pytest.fixture
def short_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Speed is measured with as few calls as make a median: the numbers are there, and say nothing."""
    from dlrun.training import latency

    monkeypatch.setattr(latency, "_SECONDS", 0.0)


@pytest.fixture
def train(runs: Path) -> Callable:
    """train(*overrides, components=None) -> the Run, trained in this process on digits."""
    from dlrun.commands import _making as making
    from dlrun.commands.train import Options, composed
    from dlrun.registry import Registry
    from dlrun.worker import Silent

    def make(*overrides: str, components: Path | None = None):
        options = Options(runs, Registry(components))
        config = composed([*TINY, *overrides], options)
        run = making.new_run(config, options.registry, runs, verb="train")
        return making.execute(run, config, options.registry, Silent()).run

    return make


@pytest.fixture
def dlrun(runs: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Callable:
    """dlrun("train", "model=mlp") -> (exit code, stdout, stderr) of the command line, run in this process."""
    import sys

    from dlrun import cli

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["dlrun", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    return call
