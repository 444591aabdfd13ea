"""The training loop, on one page, and the engine it drives."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from dlrun.contracts import Batch, Schedule, Task, processed
from dlrun.errors import DlrunError, Exit
from dlrun.training.batches import Feed
from dlrun.training.metrics_log import MetricsLog
from dlrun.training.precision import Precision
from dlrun.training.state import State

Ended = Literal["complete", "early stop", "SIGINT", "SIGTERM"]


class Reporter(Protocol):
    """Who is told how it goes: the terminal, or nobody."""

    def begin(self, plan: Plan, step: int) -> None: ...
    def step(self, step: int, values: dict[str, float] | None, fraction: float) -> None: ...
    def evaluated(self, step: int, values: dict[str, float], best: bool) -> None: ...
    def note(self, text: str) -> None: ...
    def end(self) -> None: ...


@dataclass(frozen=True)
class Plan:
    """A run's durations in steps. total: None where time decides.  seconds: None where steps decide."""

    total: int | None
    seconds: float | None
    evaluate_every: int
    save_every: int
    log_every: int
    patience: int | None
    min_improvement: float
    clip_norm: float | None
    clip_value: float | None

    def fraction(self, step: int, seconds: float) -> float:
        """How much of the run is behind us, 0 to 1."""
        if self.seconds is not None:
            return min(1.0, seconds / self.seconds)
        assert self.total is not None
        return min(1.0, step / max(1, self.total))


@dataclass
class Engine:
    """Everything `fit` drives. `model` is what forward is called on (perhaps DDP or compiled around state.model)."""

    model: nn.Module
    task: Task
    state: State
    feed: Feed
    plan: Plan
    schedule: Schedule  # fraction of the run behind us -> factor
    precision: Precision
    log: MetricsLog | None  # of the main rank
    reporter: Reporter
    evaluate: Callable[[], dict[str, float]]
    save: Callable[[bool], None]  # argument: this step is the best so far
    after_step: list[Callable[[int, list[Batch]], dict[str, float]]] = field(default_factory=list)
    after_evaluate: list[Callable[[int, dict[str, float]], bool]] = field(default_factory=list)
    meter: RateMeter = field(default_factory=lambda: RateMeter())
    signals: list[int] = field(default_factory=list)
    lr_scales: list[Callable[[float], float]] = field(default_factory=list)  # one a parameter group
    last_saved: int = -1


def fit(engine: Engine) -> Ended:
    """Train until the plan ends, patience runs out, or a signal asks to stop."""
    e, plan, state = engine, engine.plan, engine.state
    progress, optimizer, world = state.progress, state.optimizer, state.world
    clock = Clock(progress.seconds)
    e.model.train()
    stopped_early = False
    for micro_batches in e.feed.steps_from(progress.step):
        fraction = plan.fraction(progress.step, progress.seconds)
        targets = sum(e.task.count(batch) for batch in micro_batches)
        done = sum(processed(e.task, batch) for batch in micro_batches)
        targets, done, votes = world.totals(targets, done, bool(e.signals) or fraction >= 1.0)
        if votes:
            break
        set_learning_rates(e, fraction)
        optimizer.zero_grad(set_to_none=True)
        for last, batch in marked_last(micro_batches):
            with gradients_shared(e.model, last):
                with e.precision.autocast():
                    loss = e.task.loss(e.model, batch)
                share = world.size / targets if e.task.additive else 1 / (loss.count * len(micro_batches))
                finite = FiniteCheck(loss.sum)
                e.precision.backward(loss.sum * share)
            finite.stop_unless_finite(progress.step, batch)
            progress.loss_sum += loss.sum.detach()
            progress.loss_count += loss.count
        clip(e)
        e.precision.step(optimizer)
        if state.average is not None:
            state.average.update_parameters(state.model)
        progress.step += 1
        progress.seconds = clock.seconds()
        e.meter.step(done)
        report_step(e, micro_batches)
        if stopped_early := due(progress.step, plan.evaluate_every, plan.total) and evaluate_and_judge(e):
            break
        if due(progress.step, plan.save_every, plan.total) and e.last_saved != progress.step:
            e.save(False)
    progress.seconds = clock.seconds()  # with the last evaluation, as with those before it
    return "early stop" if stopped_early else ended_by(e.signals)


# ---------------------------------------------------------------- the steps of a step


def set_learning_rates(e: Engine, fraction: float) -> None:
    """Learning rate of each group: its base rate x the schedule x the group's own factor at this time."""
    factor = e.schedule(fraction)
    for group, scale in zip(e.state.optimizer.param_groups, e.lr_scales, strict=True):
        group["lr"] = group["initial_lr"] * factor * scale(fraction)


def marked_last(micro_batches: list[Batch]) -> Iterator[tuple[bool, Batch]]:
    """(is it the last?, micro-batch) for the micro-batches that have rows."""
    for index, batch in enumerate(micro_batches):
        yield index == len(micro_batches) - 1, batch


def gradients_shared(model: nn.Module, now: bool) -> AbstractContextManager:
    """DDP adds gradients up over ranks at the last micro-batch only."""
    if now or not isinstance(model, nn.parallel.DistributedDataParallel):
        return nullcontext()
    return model.no_sync()


class FiniteCheck:
    """Whether a loss is finite, asked of the device after the forward and read after the backward was queued:
    a GPU then never waits for the answer."""

    def __init__(self, loss: Tensor) -> None:
        flag = torch.isfinite(loss.detach())
        self._flag, self._event = flag, None
        if flag.is_cuda:
            self._flag = torch.empty((), dtype=torch.bool, pin_memory=True)
            self._flag.copy_(flag, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()

    def stop_unless_finite(self, step: int, batch: Batch) -> None:
        """Raises: NotFinite before the update, with the batch's example ids."""
        if self._event is not None:
            self._event.synchronize()
        if not bool(self._flag):
            raise NotFinite(step, batch["id"].tolist())


class NotFinite(DlrunError):
    """The loss is NaN or infinite; nothing was updated with it."""

    def __init__(self, step: int, ids: list[int]) -> None:
        super().__init__(
            f"the loss is not finite at step {step}; stopped before the update",
            "try a smaller optimizer.lr, train.clip_norm=1.0, or train.diagnose=true",
            Exit.TRAINING,
        )
        self.step, self.ids = step, ids

    def __reduce__(self):
        return type(self), (self.step, self.ids)


def clip(e: Engine) -> None:
    """Limit gradients by value, then by norm, at their true size."""
    if e.plan.clip_norm is None and e.plan.clip_value is None and not e.after_step:
        return
    e.precision.unscale(e.state.optimizer)  # for hooks too: a fused optimizer would unscale inside its kernel
    parameters = [p for group in e.state.optimizer.param_groups for p in group["params"]]
    if e.plan.clip_value is not None:
        nn.utils.clip_grad_value_(parameters, e.plan.clip_value)
    if e.plan.clip_norm is not None:
        nn.utils.clip_grad_norm_(parameters, e.plan.clip_norm)


def report_step(e: Engine, micro_batches: list[Batch]) -> None:
    """Hooks, and every log_every steps a row of metrics (the only place where the device is waited for)."""
    progress, plan = e.state.progress, e.plan
    extra: dict[str, float] = {}
    for hook in e.after_step:
        extra |= hook(progress.step, micro_batches)
    values = None
    if progress.step % plan.log_every == 0 or progress.step == plan.total or extra:
        total, count = e.state.world.totals(float(progress.loss_sum), progress.loss_count)
        progress.loss_sum.zero_()
        progress.loss_count = 0
        values = {"train/loss": total / max(1.0, count), "train/lr": e.state.optimizer.param_groups[0]["lr"], **extra}
        if (rate := e.meter.rate) is not None:
            values["rate/per_second"] = rate
        if e.log is not None:
            e.log.write(progress.step, values)
    e.reporter.step(progress.step, values, plan.fraction(progress.step, progress.seconds))


def due(step: int, every: int, total: int | None) -> bool:
    """Whether something that happens every so many steps, and at the end, happens at this one."""
    return step % every == 0 or step == total


def evaluate_and_judge(e: Engine) -> bool:
    """Evaluate, save if it is the best so far, and say whether to stop early. Equal on every rank."""
    progress, goal = e.state.progress, e.task.goal
    with e.meter.paused():
        values = e.evaluate()
        value = values.get(chased := f"valid/{goal.metric}")
        best = value is not None and goal.better(value, progress.best_value)
        gain = abs(value - progress.best_value) if value is not None and progress.best_value is not None else None
        enough = best and (gain is None or gain > e.plan.min_improvement)
        progress.evaluations_without_gain = 0 if enough else progress.evaluations_without_gain + 1
        if best:
            progress.best_value, progress.best_step = value, progress.step
        if e.log is not None and values:
            e.log.write(progress.step, values)
        first = [name for name in (chased, "valid/loss") if name in values]  # what a person looks for
        e.reporter.evaluated(progress.step, {name: values[name] for name in dict.fromkeys([*first, *values])}, best)
        stop = any([hook(progress.step, values) for hook in e.after_evaluate])
        stop |= e.plan.patience is not None and progress.evaluations_without_gain >= e.plan.patience
        stop = e.state.world.totals(stop)[0] > 0  # a sweep tells the first rank alone, and all ranks save together
        if best or stop:
            e.save(best)
    return stop


def ended_by(signals: list[int]) -> Ended:
    """The reason `fit` left its loop."""
    return ("SIGINT" if signals[0] == signal.SIGINT else "SIGTERM") if signals else "complete"


# ---------------------------------------------------------------- clocks


class Clock:
    """Seconds since it was made, on top of those of earlier sittings."""

    def __init__(self, before: float) -> None:
        self._start = time.perf_counter() - before

    def seconds(self) -> float:
        """Now."""
        return time.perf_counter() - self._start


class RateMeter:
    """Tokens or examples a second (contracts.processed) in steady state: first steps and evaluations do not count."""

    def __init__(self, skip: int = 5) -> None:
        self._skip, self._count, self._seconds, self._last = skip, 0.0, 0.0, time.perf_counter()

    def step(self, count: float) -> None:
        """One step that worked on so many ended now."""
        now = time.perf_counter()
        if self._skip > 0:
            self._skip -= 1
        else:
            self._count += count
            self._seconds += now - self._last
        self._last = now

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time spent inside does not count."""
        yield
        self._last = time.perf_counter()

    @property
    def rate(self) -> float | None:
        """So many a second so far, or None before there is anything to say."""
        return self._count / self._seconds if self._seconds > 0 else None
