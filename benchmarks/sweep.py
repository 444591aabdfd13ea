"""What pruning and warm workers are worth.

python benchmarks/sweep.py [--parts epochs overhead] [--seeds 0 1 2 3 4] [--trials 20]

epochs    on 10,000 images of Fashion-MNIST: the epochs after which TPE with ASHA has reached the best validation
          accuracy of a random search without pruning, as a share of the epochs that the random search took in all
          (median over seeds; bound 0.5). DLRUN_TEST_DATA names the folder of fashion_mnist/.
overhead  seconds a trial costs beside its own training: in a sweep's warm worker, and as a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

DLRUN = [sys.executable, "-m", "dlrun"]
QUIET = ("tracking.system_metrics=false", "hardware.device=cpu")
EPOCHS = 8  # of a trial that is not pruned
SPACE = (
    "optimizer.lr=tag(log, interval(1e-4,1e-1))",
    "optimizer.weight_decay=tag(log, interval(1e-4,3e-1))",
    "model.dropout=interval(0.0,0.6)",
    "data.batch_size=choice(32,64,128,256)",
)


def dlrun(*arguments: str) -> dict:
    """The JSON object of a command."""
    ended = subprocess.run([*DLRUN, *arguments, "--json"], capture_output=True, text=True)
    if ended.returncode:
        raise SystemExit(ended.stderr)
    return json.loads(ended.stdout)


def history(runs: Path, trials: list[dict]) -> list[float]:
    """The validation accuracy of every epoch trained, in the order in which the sweep spent them."""
    spent: list[float] = []
    for row in trials:
        lines = (runs / row["run"] / "artifacts" / "metrics.jsonl").read_text().splitlines()
        values = [json.loads(line)["values"] for line in lines]
        spent += [value["valid/accuracy"] for value in values if "valid/accuracy" in value][:EPOCHS]
    return spent


def search(folder: Path, seed: int, trials: int, *chosen: str) -> list[float]:
    """One sweep's history."""
    runs = folder / "runs"
    shown = dlrun(
        "sweep", "experiment=fashion_mnist_cnn", "data.train_size=10000", "data.valid_size=2000",
        "model.channels=[8,16,32]", "model.convolutions=1", f"train.duration={EPOCHS} epochs", *QUIET, *SPACE, *chosen,
        f"search.seed={seed}", f"search.trials={trials}", "search.keep=1", "--runs", str(runs),
    )  # fmt: skip
    return history(runs, shown["trials"])


def epochs(seeds: list[int], trials: int) -> None:
    """Print, for each seed and as a median, the share of random search's epochs."""
    shares = []
    for seed in seeds:
        with tempfile.TemporaryDirectory() as folder:
            plain = search(Path(folder), seed, trials, "search=random", "search.pruner=none")
        with tempfile.TemporaryDirectory() as folder:
            pruned = search(Path(folder), seed, 3 * trials, "search=tpe", "search.pruner=asha")
        best, budget = max(plain), len(plain)
        needed = next((index + 1 for index, value in enumerate(pruned) if value >= best), None)
        share = needed / budget if needed else float("inf")
        shares.append(share)
        print(
            f"seed {seed}: random {best:.4f} in {budget} epochs; ASHA+TPE reaches it after {needed or 'never'}"
            f" ({share:.2f}), and {max(pruned[:budget]):.4f} in as many",
            flush=True,
        )
    print(f"median share of the epochs: {statistics.median(shares):.2f}   (bound 0.5)")


def overhead(trials: int) -> None:
    """Print the seconds beside the training: of a warm trial, and of a run in a process of its own."""
    settings = ("model=mlp", "train.duration=3 epochs", *QUIET)
    with tempfile.TemporaryDirectory() as folder:
        runs = Path(folder) / "runs"
        dlrun("train", *settings, "--runs", str(runs))  # makes the store
        start = time.perf_counter()
        alone = [dlrun("train", *settings, f"seed={seed}", "--runs", str(runs)) for seed in range(3)]
        fresh = (time.perf_counter() - start - sum(result["seconds"] for result in alone)) / len(alone)
        times = []
        for count in (2, trials + 2):  # the difference leaves out what a sweep costs once
            start = time.perf_counter()
            shown = dlrun(
                "sweep", *settings, "search=random", "search.pruner=none", "optimizer.lr=interval(0.001,0.01)",
                f"search.trials={count}", "--runs", str(runs),
            )  # fmt: skip
            folders = [runs / row["run"] / "artifacts" / "result.json" for row in shown["trials"]]
            trained = sum(json.loads(path.read_text())["seconds"] for path in folders)
            times.append(time.perf_counter() - start - trained)
    warm = (times[1] - times[0]) / trials
    print(f"overhead of a trial in a warm worker   {warm:.2f} s   (bound 0.3 s)")
    print(f"overhead of a process of its own       {fresh:.2f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=["epochs", "overhead"], choices=["epochs", "overhead"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--trials", type=int, default=20)
    given = parser.parse_args()
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    if "overhead" in given.parts:
        overhead(given.trials)
    if "epochs" in given.parts:
        epochs(given.seeds, given.trials)


if __name__ == "__main__":
    main()
