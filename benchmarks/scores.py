"""Whole experiments against the bar their header states: make scores NAME="fashion_mnist_cnn transfer_digits".

Runs each named experiment to its end and prints one row for docs/scores.md. DLRUN_TEST_DATA names the data's folder.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

DLRUN = [sys.executable, "-m", "dlrun"]
BARS = {"fashion_mnist_cnn": (0.925, 6 * 60), "cifar10_resnet20": (0.82, 20 * 60)}  # score at least, seconds within


def run(*arguments: str) -> dict:
    """The JSON object of a dlrun command; its progress goes to stderr as it comes."""
    ended = subprocess.run([*DLRUN, *arguments, "--json"], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(ended.stdout)


def experiment(name: str, runs: str) -> bool:
    """Train one experiment; True if it reached its bar in its time."""
    bar, limit = BARS[name]
    start = time.perf_counter()
    result = run("train", f"experiment={name}", "--runs", runs)
    seconds = time.perf_counter() - start
    value = result["goal"]["value"]
    row(f"`dlrun train experiment={name}`", f"{value:.4f}", f"{bar}", f"{seconds:.0f} s of {limit} s")
    return value >= bar and seconds <= limit


def transfer_digits(runs: str) -> bool:
    """A body trained on Fashion-MNIST, fine-tuned on 1,000 digits, against from scratch; three seeds each."""
    run("train", "experiment=transfer_body", "--runs", runs)
    scratch = run("train", "experiment=digits_1000_scratch", "--seeds", "3", "--runs", runs)
    tuned = run(
        "train", "experiment=digits_1000_transfer", "transfer.from=run:transfer_body", "--seeds", "3", "--runs", runs
    )
    means = [result["metrics"]["test/accuracy"] for result in (scratch, tuned)]
    spreads = [result["metrics"]["test/accuracy_std"] for result in (scratch, tuned)]
    row("transfer to 1,000 digits, against from scratch", f"{means[1]:.4f} ± {spreads[1]:.4f}",
        f"above {means[0]:.4f} ± {spreads[0]:.4f}", "3 seeds each")  # fmt: skip
    return means[1] - means[0] > max(spreads)


def row(*cells: str) -> None:
    """One row of docs/scores.md."""
    machine = f"{os.cpu_count()} cores, {platform.machine()}"
    print("| " + " | ".join([*cells, machine, datetime.date.today().isoformat()]) + " |", flush=True)


def main() -> None:
    names = sys.argv[1:] or [*BARS, "transfer_digits"]
    unknown = [name for name in names if name not in BARS and name != "transfer_digits"]
    if unknown:
        sys.exit(f"no experiment {unknown[0]}; known: {', '.join([*BARS, 'transfer_digits'])}")
    if "DLRUN_TEST_DATA" not in os.environ:
        sys.exit("set DLRUN_TEST_DATA to the folder of the data sets")
    os.environ["DLRUN_TEST_DATA"] = str(Path(os.environ["DLRUN_TEST_DATA"]).absolute())
    with tempfile.TemporaryDirectory() as runs:
        reached = [transfer_digits(runs) if name == "transfer_digits" else experiment(name, runs) for name in names]
    sys.exit(0 if all(reached) else 1)


if __name__ == "__main__":
    main()
