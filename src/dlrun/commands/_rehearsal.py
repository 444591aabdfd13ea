"""A run without a run folder: everything built in this process and driven by the real loop; nothing is written."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch

from dlrun import assembly, worker
from dlrun.assembly import Parts
from dlrun.config.schema import RunConfig
from dlrun.contracts import Batch
from dlrun.registry import Registry
from dlrun.training.batches import Feed
from dlrun.training.distributed import World, choose_device, limit_threads
from dlrun.training.guards import deterministic, memory_errors
from dlrun.training.loop import Engine
from dlrun.training.state import Progress, seed_generators

_NEVER = sys.maxsize
Hook = Callable[[int, list[Batch]], dict[str, float]]


@contextlib.contextmanager
def assembled(config: RunConfig, registry: Registry, runs: Path) -> Iterator[Parts]:
    """All the parts of a run, with its first weights. Memory errors inside become one line, with exit code 5."""
    device = choose_device(config.hardware.device)
    limit_threads(config.hardware.threads, 1)
    limits = (config.data.batch_size, config.train.accumulate)
    with deterministic(config.train.deterministic), memory_errors(device, *limits):
        parts = assembly.assemble(config, registry, World(0, 1, device), runs, None)
        seed_generators(config.seed, 0)
        yield parts


def engine(
    parts: Parts,
    *,
    steps: int,
    after_step: Hook,
    feed: Feed | None = None,
    schedule: Callable[[float], float] | None = None,
    log_every: int = _NEVER,
) -> Engine:
    """The engine of so many steps that evaluates, saves and reports nothing.

    With log_every=1 the hook finds the step's own loss in `state.progress`.
    """
    device = parts.state.world.device
    progress = Progress(loss_sum=torch.zeros((), dtype=torch.float64, device=device))
    parts.state.progress = progress
    plan = replace(parts.plan, total=steps, seconds=None, evaluate_every=_NEVER, save_every=_NEVER,
                   log_every=log_every, patience=None)  # fmt: skip
    return Engine(
        model=parts.forward, task=parts.task, state=parts.state, feed=feed or parts.feed, plan=plan,
        schedule=schedule or parts.schedule, precision=parts.state.precision, log=None, reporter=worker.Silent(),
        evaluate=dict, save=lambda best: None, after_step=[after_step], lr_scales=parts.lr_scales,
    )  # fmt: skip


def wait_for(device: torch.device) -> None:
    """Return when the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
