"""How long dlrun takes to answer: help, list, completion, a config error, the first optimizer step on digits, and an
ensemble of runs that have predicted before.

python benchmarks/startup.py [--runs 7]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from _measure import ROOT, median, seconds_of

DLRUN = str(Path(sys.executable).parent / "dlrun")


def first_step(runs: Path) -> float:
    """Seconds from the command to the row of step 1."""
    start = time.time()
    subprocess.run(
        [DLRUN, "train", "train.duration=1 step", "train.log_every=1", "--runs", str(runs)],
        check=True,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    newest = max(runs.glob("*/artifacts/metrics.jsonl"), key=lambda path: path.stat().st_mtime)
    return json.loads(newest.read_text().splitlines()[0])["time_ms"] / 1000 - start


def quiet(*words: str) -> list[str]:
    """A command whose answer is one JSON object."""
    return [DLRUN, *words, "--json"]


def ensemble(runs: Path, count: int) -> float:
    """Seconds of `dlrun ensemble` over three small runs whose predictions are kept."""
    for seed in range(3):
        settings = ("model=mlp", "train.duration=1 epoch", "data.split_seed=0", f"seed={seed}", f"name=member{seed}")
        subprocess.run(quiet("train", *settings, "--runs", str(runs)), check=True, capture_output=True)
    command = quiet("ensemble", "member0", "member1", "member2", "--runs", str(runs))
    subprocess.run(command, check=True, capture_output=True)  # keeps the predictions
    return seconds_of(command, count)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=7)
    count = parser.parse_args().runs
    print(f"dlrun --help                 {seconds_of([DLRUN, '--help'], count):.2f} s")
    print(f"dlrun list                   {seconds_of([DLRUN, 'list'], count):.2f} s")
    os.environ |= {"_DLRUN_COMPLETE": "complete_bash", "COMP_WORDS": "dlrun train model=", "COMP_CWORD": "2"}
    print(f"completion of model=         {seconds_of([DLRUN], count):.2f} s")
    for name in ("_DLRUN_COMPLETE", "COMP_WORDS", "COMP_CWORD"):
        del os.environ[name]
    print(f"a config error               {seconds_of([DLRUN, 'train', 'modle=mlp'], count, codes=(2,)):.2f} s")
    imports = seconds_of([sys.executable, "-c", "import torch, mlflow"], count)
    with tempfile.TemporaryDirectory() as folder:
        first_step(Path(folder))  # makes the store
        first = median([first_step(Path(folder)) for _ in range(count)])
        together = ensemble(Path(folder), count)
    learning = seconds_of([sys.executable, "-c", "import torch, mlflow, sklearn.linear_model"], count)
    print(f"import torch, mlflow         {imports:.2f} s")
    print(f"to the first step on digits  {first:.2f} s   (2 x the imports + 1 s = {2 * imports + 1:.2f} s)")
    print(f"ensemble, predictions kept   {together:.2f} s   (imports with scikit-learn + 2 s = {learning + 2:.2f} s)")


if __name__ == "__main__":
    main()
