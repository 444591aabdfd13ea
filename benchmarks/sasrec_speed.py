"""Training speed of SASRec, as ratios in one run: dlrun against the same model fed by a per-sample DataLoader.

DLRUN_TEST_DATA=FOLDER python benchmarks/sasrec_speed.py [--rounds 3] [--steps 300]

Amazon Video Games, 128 users a step, histories of up to 50 items, one negative a place. The other loop makes a sample
as the published implementations do, by two workers: a history with zeros in front of it up to 50, and its negatives.
"""

from __future__ import annotations

import argparse
import itertools
import random
import sys
import time
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
import torch
from _measure import data_folder, dlrun_rate, in_turn, median, ratio
from safetensors.numpy import load

from dlrun.contracts import NO_TARGET, Dataset
from dlrun.data import ratings
from dlrun.models import sasrec
from dlrun.tasks import _ranking_losses

BATCH, HISTORY = 128, 50
_SKIPPED = 10  # steps before the clock starts


def games() -> Dataset:
    path = str(data_folder() / "amazon_video_games" / "Video.txt.gz")
    return ratings.build(SimpleNamespace(seed=0, spec=None), path=path, history=HISTORY)  # type: ignore[arg-type]


class Users(torch.utils.data.Dataset):
    """A user at a time: what they had, what came next, and something they never had."""

    def __init__(self, data: Dataset) -> None:
        log = load(data.spec.files["interactions.safetensors"])
        ends = log["starts"]
        trained = [log["item"][a:b][log["is_train"][a:b] == 1] for a, b in itertools.pairwise(ends)]
        self.items = [items for items in trained if len(items) > 1]
        self.num_items = data.spec.size("items")

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int):
        history, right, wrong = (np.zeros(HISTORY, dtype=np.int64) for _ in range(3))
        items = self.items[index]
        had, following, place = set(items.tolist()), items[-1], HISTORY - 1
        for item in reversed(items[:-1]):
            history[place], right[place] = item, following
            drawn = random.randint(1, self.num_items)
            while drawn in had:
                drawn = random.randint(1, self.num_items)
            wrong[place], following, place = drawn, item, place - 1
            if place == -1:
                break
        return history, right, wrong


def loader_rate(data: Dataset, users: Users, steps: int) -> float:
    """Steps a second of the loop over a DataLoader."""
    torch.manual_seed(0)
    model = sasrec.build(data.spec)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, betas=(0.9, 0.98))
    loader = torch.utils.data.DataLoader(users, BATCH, shuffle=True, num_workers=2, persistent_workers=True)
    epochs = itertools.chain.from_iterable(itertools.repeat(loader))
    started = 0.0
    for step, (history, right, wrong) in enumerate(itertools.islice(epochs, steps + _SKIPPED)):
        if step == _SKIPPED:
            started = time.perf_counter()
        optimizer.zero_grad()
        scores = model(history[:, 0], history, torch.stack([right, wrong], -1))[right > 0]
        _ranking_losses.bce(scores[:, 0], scores[:, 1:]).mean().backward()
        optimizer.step()
    return steps / (time.perf_counter() - started)


def dlrun_steps(data: Dataset, steps: int) -> float:
    """Steps a second of a real run, whose rate counts items that came next."""
    split = data.split("train")
    whole = split.gather(torch.arange(len(split)))
    a_step = int((whole["targets"] != NO_TARGET).sum()) / len(split) * BATCH
    path = data_folder() / "amazon_video_games" / "Video.txt.gz"
    rate = dlrun_rate(
        "task=ranking", "task.loss=bce", "data=ratings", f"data.path={path}", f"data.history={HISTORY}",
        f"data.batch_size={BATCH}", "data.valid_users=100", "model=sasrec", "optimizer=adam", "schedule=constant",
        "task.catalogue=never", f"train.duration={steps + _SKIPPED} steps", "hardware.device=cpu",
        "tracking.system_metrics=false",
    )  # fmt: skip
    return rate / a_step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=300)
    given = parser.parse_args()
    data = games()
    users = Users(data)
    found = in_turn(
        {
            "dlrun": lambda: dlrun_steps(data, given.steps),
            "DataLoader, two workers": lambda: loader_rate(data, users, given.steps),
        },
        given.rounds,
    )
    for name, rates in found.items():
        print(f"{name:<26} {median(rates):10.1f} steps/s   {ratio(found['dlrun'], rates):6.2f} x")


if __name__ == "__main__":
    main()
