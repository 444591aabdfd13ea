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
BARS = {  # metric, "at least" or "at most" this, seconds within
    "fashion_mnist_cnn": ("test/accuracy", ">=", 0.925, 6 * 60),
    "cifar10_resnet20": ("test/accuracy", ">=", 0.82, 20 * 60),
    "bccd_detection": ("test/ap50", ">=", 0.55, 25 * 60),
    "camvid_unet": ("test/mean_iou", ">=", 0.38, 25 * 60),
    "steering_angle": ("test/mse", "<=", 0.6 * 0.01519, 10 * 60),  # 0.01519: of predicting zero
    "shakespeare_gpt": ("valid/loss", "<=", 1.78, 4 * 60),
    "shakespeare_lstm": ("valid/loss", "<=", 1.95, 6 * 60),
    "alpaca_chat": ("test/perplexity", "<=", 8.25, 10 * 60),
    "sst2_bilstm": ("test/accuracy", ">=", 0.80, 8 * 60),
    "sst2_minilm": ("test/accuracy", ">=", 0.88, 15 * 60),
    "ag_news_minilm": ("test/accuracy", ">=", 0.86, 15 * 60),
    "ag_news_textcnn": ("test/accuracy", ">=", 0.84, 3 * 60),
    "multi30k_gru_attention": ("test/bleu", ">=", 20, 30 * 60),
    "multi30k_transformer": ("test/bleu", ">=", 22, 40 * 60),
    "fsdd_cnn": ("test/accuracy", ">=", 0.97, 5 * 60),
    "fsdd_ctc": ("test/wer", "<=", 0.06, 15 * 60),
    "amazon_games_sasrec": ("test/hr_10", ">=", 0.65, 40 * 60),
    "adult_mlp": ("test/accuracy", ">=", 0.850, 4 * 60),
    "adult_ft_transformer": ("test/accuracy", ">=", 0.853, 12 * 60),
    "driving_speed_forecast": ("test/mase", "<=", 1.0, 5 * 60),
}


def run(*arguments: str) -> dict:
    """The JSON object of a dlrun command; its progress goes to stderr as it comes."""
    ended = subprocess.run([*DLRUN, *arguments, "--json"], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(ended.stdout)


def experiment(name: str, runs: str) -> bool:
    """Train one experiment; True if it reached its bar in its time."""
    metric, how, bar, limit = BARS[name]
    start = time.perf_counter()
    result = run("train", f"experiment={name}", "--runs", runs)
    seconds = time.perf_counter() - start
    value = result["metrics"][metric]
    row(f"`dlrun train experiment={name}`", f"{metric} {value:.4f}", f"{how} {bar:g}", f"{seconds:.0f} s of {limit} s")
    return (value >= bar if how == ">=" else value <= bar) and seconds <= limit


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
