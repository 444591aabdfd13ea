"""The largest useful batch: powers of two, each really trained on, until memory or the gain in speed ends."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import psutil
import torch

from dlrun.assembly import Parts
from dlrun.commands import _measuring as measuring
from dlrun.commands import _rehearsal as rehearsal
from dlrun.contracts import Batch
from dlrun.errors import DlrunError, Exit
from dlrun.machine import free_memory_bytes
from dlrun.training.batches import Feed
from dlrun.training.loop import fit

SMALLEST = 8
_WARM_UP, _MOST_STEPS, _ENOUGH_SECONDS = 2, 50, 1.0
_GAIN = 1.05  # a doubled batch that is not at least this much faster gained nothing
_SHARE_OF_MEMORY = 0.8  # of what is free; the rest is for the system, which must never swap
_TEMPORARY = 2.0  # gradients of activations and work space, as a multiple of the activations kept


@dataclass(frozen=True)
class Trial:
    """One batch size. memory_bytes: peak of the device, or of this process on a CPU."""

    batch_size: int
    samples_per_second: float
    memory_bytes: int


@dataclass(frozen=True)
class Found:
    """Every size that was tried, and why no larger one was."""

    trials: list[Trial]
    reason: str

    @property
    def suggestion(self) -> int:
        """The smallest batch within 5 % of the best speed: a larger one only means fewer updates."""
        best = max(trial.samples_per_second for trial in self.trials)
        return min(trial.batch_size for trial in self.trials if trial.samples_per_second * _GAIN >= best)

    @property
    def override(self) -> str:
        """To be pasted behind `dlrun train`."""
        return f"data.batch_size={self.suggestion}"

    def to_json(self) -> dict[str, Any]:
        """For --json."""
        return {"suggestion": self.suggestion, "override": self.override, "reason": self.reason,
                "trials": [vars(trial) for trial in self.trials]}  # fmt: skip


def search(parts: Parts, report: Callable[[str], None]) -> Found:
    """Double the batch until memory is short, two sizes in a row are no faster, or the data ends.

    A batch is one micro-batch here, whatever train.accumulate says. Raises: DlrunError with code MEMORY
    if even the smallest does not fit.
    """
    trials: list[Trial] = []
    rows = len(parts.feed.split)
    size = min(SMALLEST, rows)
    per_example = _bytes_per_example(parts, size)
    while True:
        reason = _short_of_memory(parts, size * per_example, size)
        trial = None if reason else _try(parts, replace(parts.feed, batch_size=size, accumulate=1))
        if trial is None:
            reason = reason or f"{size} examples do not fit into memory"
            break
        trials.append(trial)
        report(f"{size} examples: {trial.samples_per_second:,.0f} a second")
        if _stalled(trials):
            reason = "two sizes in a row were no faster"
            break
        if 2 * size > rows:
            reason = f"there are {rows} training examples"
            break
        size *= 2
    if not trials:
        raise DlrunError(reason, "take a smaller model, or train.precision=bf16", Exit.MEMORY)
    return Found(trials, reason)


def _stalled(trials: list[Trial]) -> bool:
    if len(trials) < 3:
        return False
    before = max(trial.samples_per_second for trial in trials[:-2])
    return all(trial.samples_per_second < _GAIN * before for trial in trials[-2:])


# ---------------------------------------------------------------- one size


def _try(parts: Parts, feed: Feed) -> Trial | None:
    """Some real steps with a learning rate of nought; None if the device's memory does not hold them."""
    device = parts.state.world.device
    began = [time.perf_counter()]
    sizes, seconds = [], []

    def watch(step: int, micro_batches: list[Batch]) -> dict[str, float]:
        rehearsal.wait_for(device)
        began.append(time.perf_counter())
        sizes.append(len(micro_batches[0]["id"]))
        seconds.append(began[-1] - began[-2])
        if step > _WARM_UP + 2 and began[-1] - began[_WARM_UP] > _ENOUGH_SECONDS:
            raise _Enough
        return {}

    engine = rehearsal.engine(parts, steps=_WARM_UP + _MOST_STEPS, after_step=watch, feed=feed, schedule=lambda _: 0.0)
    with _peak(device) as peak:
        try:
            fit(engine)
        except _Enough:
            pass
        except torch.OutOfMemoryError:
            parts.state.optimizer.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()
            return None
    largest = max(sizes)  # the last batch of an epoch is smaller, and says nothing of this size
    full = [spent for size, spent in zip(sizes[_WARM_UP:], seconds[_WARM_UP:], strict=True) if size == largest]
    # The quick ones: others shared the machine. "inclusive", as the default goes beyond two values, and below zero.
    quick = statistics.quantiles(full, n=4, method="inclusive")[0] if len(full) > 1 else min(seconds)
    return Trial(feed.batch_size, largest / quick, peak[0])


class _Enough(Exception):
    """The steps so far tell the speed."""


@contextmanager
def _peak(device: torch.device) -> Iterator[list[int]]:
    """A list whose only entry is, afterwards, the highest memory in use meanwhile, in bytes."""
    found = [0]
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield found
        found[0] = torch.cuda.max_memory_allocated(device)
        return
    process, done = psutil.Process(), threading.Event()

    def sample() -> None:
        while not done.wait(0.005):
            found[0] = max(found[0], process.memory_info().rss)

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        done.set()
        thread.join()
        found[0] = max(found[0], process.memory_info().rss)


# ---------------------------------------------------------------- never swapping


def _bytes_per_example(parts: Parts, size: int) -> float:
    """What a small batch keeps for its backward pass, with the work space beside it."""
    batch = next(replace(parts.feed, batch_size=size, accumulate=1).steps_from(0))[0]
    kept = measuring.forward(parts, batch).activation_bytes
    parts.state.optimizer.zero_grad(set_to_none=True)
    return kept * (1 + _TEMPORARY) / len(batch["id"])


def _short_of_memory(parts: Parts, need: float, size: int) -> str:
    """Why so many examples must not be tried on a CPU, or nothing. (A GPU refuses by itself, and nothing is lost.)"""
    free = free_memory_bytes()
    if parts.state.world.device.type != "cpu" or need <= _SHARE_OF_MEMORY * free:
        return ""
    return f"{size} examples would take about {need / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB are free"
