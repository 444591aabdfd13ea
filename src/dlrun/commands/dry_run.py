"""`dlrun train --dry-run`: the run built and driven for a few steps; what it is made of, takes and will last."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import psutil
import torch

from dlrun.assembly import Parts
from dlrun.commands import _measuring as measuring
from dlrun.commands import _rehearsal as rehearsal
from dlrun.commands._terminal import TerminalReporter, number, print_json, result_console, table
from dlrun.commands.train import composed
from dlrun.config.schema import RunConfig
from dlrun.training.batches import Feed
from dlrun.training.distributed import World
from dlrun.training.loop import fit

if TYPE_CHECKING:
    from dlrun.commands.train import Options

_WARM_UP, _MEASURED = 2, 3


@dataclass(frozen=True)
class Rehearsal:
    """What a dry run found. memory: bytes of one process by what they are for."""

    layers: list[measuring.Layer]
    loss: float
    parameters: int
    trained: int
    memory: dict[str, int]
    steps_per_epoch: int
    steps: int
    seconds_per_step: float

    @property
    def seconds(self) -> float:
        """Estimated time of all steps; evaluations and checkpoints come on top."""
        return self.steps * self.seconds_per_step


def dry_run(overrides: Sequence[str], options: Options) -> int:
    """Rehearse the composed run and print what it takes. Writes nothing: no run folder, no MLflow run."""
    config = composed(overrides, options, TerminalReporter())
    with rehearsal.assembled(config, options.registry, options.runs) as parts:
        result = rehearse(parts, config)
        notes = parts.dataset.notes
    if options.as_json:
        print_json(_as_json(config, result, notes))
    else:
        _print(config, result, notes)
    return 0


def rehearse(parts: Parts, config: RunConfig) -> Rehearsal:
    """One batch forward and back, layer by layer; then some steps of the real loop against the clock.

    A run of several processes is rehearsed by one of them, with its share of the batch.
    Raises: DlrunError if the loss is not finite.
    """
    feed = _share(parts.feed, config.hardware.processes)
    first = measuring.forward(parts, next(feed.steps_from(0))[0])
    seconds = _seconds_per_step(parts, feed)
    steps = parts.plan.total
    if steps is None:
        assert parts.plan.seconds is not None
        steps = int(parts.plan.seconds / seconds)
    everything = list(parts.state.model.parameters())
    trained = [p for group in parts.state.optimizer.param_groups for p in group["params"]]
    return Rehearsal(first.layers, first.loss, sum(p.numel() for p in everything), sum(p.numel() for p in trained),
                     _memory(parts, first), parts.feed.steps_per_epoch, steps, seconds)  # fmt: skip


def _share(feed: Feed, processes: int) -> Feed:
    """What one of several processes is fed."""
    if processes == 1:
        return feed
    replace(feed, world=World(0, processes, feed.world.device))  # checks that the batch can be split
    return replace(feed, batch_size=feed.batch_size // processes)


def _seconds_per_step(parts: Parts, feed: Feed) -> float:
    """Median of three optimizer steps after two to warm up."""
    moments: list[float] = []

    def watch(_step: int, _micro_batches: object) -> dict[str, float]:
        rehearsal.wait_for(parts.state.world.device)
        moments.append(time.perf_counter())
        return {}

    fit(rehearsal.engine(parts, steps=_WARM_UP + _MEASURED, after_step=watch, feed=feed))
    return statistics.median(after - before for before, after in itertools.pairwise(moments[_WARM_UP - 1 :]))


def _memory(parts: Parts, first: measuring.Forward) -> dict[str, int]:
    state, device = parts.state, parts.state.world.device
    slots = [value for slot in state.optimizer.state.values() for value in slot.values()]
    found = {
        "weights": sum(measuring.size(p) for p in state.model.parameters()),
        "buffers": sum(measuring.size(b) for b in state.model.buffers()),
        "gradients": first.gradient_bytes,
        "optimizer state": sum(measuring.size(value) for value in slots if isinstance(value, torch.Tensor)),
        "activations": first.activation_bytes,
    }
    if state.average is not None:
        found["averaged weights"] = sum(measuring.size(p) for p in state.average.module.parameters())
    if device.type == "cuda":
        found["peak on the device"] = torch.cuda.max_memory_allocated(device)
    else:
        found["whole process now"] = psutil.Process().memory_info().rss
    return found


# ---------------------------------------------------------------- printing


def _as_json(config: RunConfig, result: Rehearsal, notes: Sequence[str]) -> dict[str, Any]:
    return {
        "model": config.model.name, "data": config.data.name, "notes": list(notes), "loss": result.loss,
        "layers": [vars(layer) | {"shape": list(layer.shape)} for layer in result.layers],
        "parameters": result.parameters, "trained_parameters": result.trained, "memory_bytes": result.memory,
        "steps_per_epoch": result.steps_per_epoch, "steps": result.steps,
        "seconds_per_step": result.seconds_per_step, "estimated_seconds": result.seconds,
    }  # fmt: skip


def _print(config: RunConfig, result: Rehearsal, notes: Sequence[str]) -> None:
    console = result_console()
    rows = [[layer.name, layer.type, " x ".join(map(str, layer.shape)), layer.parameters] for layer in result.layers]
    console.print(table(["layer", "type", "output", "parameters"], rows))
    for note in notes:
        console.print(note, markup=False, soft_wrap=True)
    facts = [
        ("parameters", f"{result.parameters:,}, of which {result.trained:,} train"),
        ("first loss", number(result.loss)),
        *((name, _bytes(size)) for name, size in result.memory.items()),
        ("steps", f"{result.steps:,} of {config.data.batch_size} examples, {result.steps_per_epoch:,} an epoch"),
        ("a step takes", f"{1000 * result.seconds_per_step:.1f} ms"),
        ("training takes", f"about {_time(result.seconds)}, evaluations and checkpoints not counted"),
    ]
    console.print()
    for name, text in facts:
        console.print(f"{name:<18} {text}", markup=False, soft_wrap=True)
    console.print("nothing was written", markup=False)


def _bytes(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB" if count >= 2**20 else f"{count / 2**10:,.1f} KiB"


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"
