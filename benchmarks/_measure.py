"""What the benchmarks share: medians, rounds in turn, a run in this process, the peak memory of a child."""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent


def data_folder() -> Path:
    """The folder of real data sets. Exits with a sentence where there is none."""
    folder = os.environ.get("DLRUN_TEST_DATA")
    if not folder or not Path(folder).is_dir():
        sys.exit("set DLRUN_TEST_DATA to the folder that holds fashion_mnist/ and cifar10_jpeg/")
    return Path(folder).absolute()


def in_turn(contenders: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Call every contender once a round, so that a machine whose speed drifts is fair to all."""
    found: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds):
        for name, measure in contenders.items():
            found[name].append(measure())
            print(f"  round {number + 1}: {name:<28} {found[name][-1]:10.1f}", file=sys.stderr)
    return found


def median(values: Sequence[float]) -> float:
    """The middle value."""
    return statistics.median(values)


def ratio(left: Sequence[float], right: Sequence[float]) -> float:
    """Median of the ratios round by round."""
    return median([a / b for a, b in zip(left, right, strict=True)])


def dlrun_rate(*overrides: str, mirrored: bool = True) -> float:
    """Steady-state samples a second of a real run, of texts tokens a second; made in this process."""
    from dlrun import tracking, worker
    from dlrun.commands import _making as making
    from dlrun.commands.train import Options, composed
    from dlrun.registry import Registry

    with tempfile.TemporaryDirectory() as folder:
        runs = Path(folder)
        options = Options(runs, Registry())
        config = composed([*overrides, "train.evaluate_every=1000000 steps", "train.save_every=1000000 steps"], options)
        tracking.prepare_store(runs)
        run = making.new_run(config, options.registry, runs, verb="train")
        if mirrored:
            ended = making.execute(run, config, options.registry, worker.Silent()).run
        else:
            worker.train(run.folder, options.registry, worker.Silent())
            ended = run
        assert ended.result is not None
        [rate] = ended.result["rate"].values()
        return rate


def peak_megabytes(command: Sequence[str]) -> float:
    """Peak resident memory of a command, as the kernel counted it."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT)
    after = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    assert after >= before
    return after / 1024


def seconds_of(command: Sequence[str], runs: int, *, codes: Sequence[int] = (0,)) -> float:
    """Median wall seconds of a command, after one warm-up."""
    found = []
    for number in range(runs + 1):
        start = time.perf_counter()
        ended = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT)
        if number:
            found.append(time.perf_counter() - start)
        assert ended.returncode in codes, (command, ended.returncode)
    return median(found)
