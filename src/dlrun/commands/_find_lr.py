"""The learning-rate range test: the rate grows exponentially while the model trains, and the loss is watched."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dlrun.assembly import Parts
from dlrun.commands import _rehearsal as rehearsal
from dlrun.config.schema import RunConfig
from dlrun.errors import DlrunError, Exit
from dlrun.runs import disk_error
from dlrun.training.loop import NotFinite, fit

FIRST, LAST, STEPS = 1e-6, 10.0, 100
_DIVERGED = 4.0  # times the lowest loss so far, as fast.ai's finder stops
_SMOOTHING = 0.85  # weight of the past; 0.98 is usual for thousands of steps, too much for a hundred


@dataclass(frozen=True)
class RangeTest:
    """Rates tried, the loss of the step at each, the same smoothed, and what follows.

    steepest: where the smoothed loss falls fastest over log lr.  lowest: where it is lowest.
    """

    rates: list[float]
    losses: list[float]
    smoothed: list[float]
    steepest: float
    lowest: float
    diverged: bool

    @property
    def suggestion(self) -> float:
        """The steepest point, but at most a tenth of the lowest, which is at the edge of divergence."""
        return min(self.steepest, self.lowest / 10)

    @property
    def override(self) -> str:
        """To be pasted behind `dlrun train`."""
        return f"optimizer.lr={self.suggestion:.2g}"

    def rows(self, count: int) -> list[list[str]]:
        """About so many lines of the curve, evenly spread."""
        every = max(1, len(self.rates) // count)
        return [[f"{self.rates[i]:.2e}", f"{self.losses[i]:.4f}", f"{self.smoothed[i]:.4f}"]
                for i in range(0, len(self.rates), every)]  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        """For --json."""
        return {"suggestion": self.suggestion, "override": self.override, "steepest": self.steepest,
                "lowest": self.lowest, "diverged": self.diverged,
                "curve": [list(row) for row in zip(self.rates, self.losses, self.smoothed, strict=True)]}  # fmt: skip


class _Diverged(Exception):
    """The loss has left for good."""


def range_test(parts: Parts, config: RunConfig) -> RangeTest:
    """Train for at most a hundred steps while the rate grows from 1e-6 to 10.

    Raises: DlrunError if the optimizer takes no rate, or the loss falls at none.
    Source: Smith 2017, "Cyclical Learning Rates for Training Neural Networks", section 3.3.
    """
    base = parts.state.optimizer.param_groups[0]["initial_lr"]
    if not base:
        raise DlrunError(f"optimizer.lr: {base} cannot be scaled", "give it any value above 0; it is replaced anyway")
    losses: list[float] = []

    def watch(step: int, _micro_batches: object) -> dict[str, float]:
        progress = parts.state.progress
        losses.append(float(progress.loss_sum) / max(1, progress.loss_count))
        if not math.isfinite(losses[-1]) or smooth(losses)[-1] > _DIVERGED * min(smooth(losses)):
            raise _Diverged
        return {}

    growth = LAST / FIRST
    engine = rehearsal.engine(parts, steps=STEPS, after_step=watch, log_every=1,
                              schedule=lambda fraction: FIRST * growth**fraction / base)  # fmt: skip
    diverged = False
    try:
        fit(engine)
    except (_Diverged, NotFinite):
        diverged = True
    known = [loss for loss in losses if math.isfinite(loss)]
    return judged([FIRST * growth ** (step / STEPS) for step in range(len(known))], known, diverged)


def smooth(losses: list[float]) -> list[float]:
    """Exponential moving average, its start corrected as Adam's is (Kingma and Ba 2015, section 3)."""
    average, smoothed = 0.0, []
    for step, loss in enumerate(losses, 1):
        average = _SMOOTHING * average + (1 - _SMOOTHING) * loss
        smoothed.append(average / (1 - _SMOOTHING**step))
    return smoothed


def judged(rates: list[float], losses: list[float], diverged: bool) -> RangeTest:
    """What a curve says. Raises: DlrunError with code TRAINING if it never falls by a tenth of a percent."""
    curve = smooth(losses)
    lowest = min(range(len(curve)), key=curve.__getitem__) if curve else 0
    if lowest < 3 or curve[lowest] > 0.999 * curve[0]:
        after = " before it diverges" if diverged else ""
        raise DlrunError(
            f"the loss falls at no learning rate between {FIRST:g} and {LAST:g}{after}",
            "look at the data and the model first: train.overfit_one_batch=true",
            Exit.TRAINING,
        )
    falls = [curve[i - 1] - curve[i + 1] for i in range(1, lowest)]  # rates are evenly spaced over log lr
    steepest = 1 + max(range(len(falls)), key=falls.__getitem__)
    return RangeTest(rates, losses, curve, rates[steepest], rates[lowest], diverged)


def draw(result: RangeTest, path: Path, title: str) -> None:
    """The curve as a PNG. Raises: DlrunError with code DISK if it cannot be written."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(result.rates, result.losses, color="#b0b0b0", linewidth=1, label="loss of each step")
    axes.plot(result.rates, result.smoothed, color="#0072b2", linewidth=2, label="smoothed")
    axes.axvline(result.suggestion, color="#d55e00", linestyle="--", label=f"suggested: {result.suggestion:.2g}")
    axes.set(xscale="log", xlabel="learning rate", ylabel="training loss", title=title)
    axes.set_ylim(top=min(max(result.losses), 2 * result.smoothed[0]))
    axes.legend(frameon=False)
    try:
        figure.savefig(path, dpi=150, format="png")
    except OSError as error:
        raise disk_error(path, error) from error
