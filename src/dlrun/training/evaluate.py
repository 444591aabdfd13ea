"""Evaluation: a model over a split, to metrics or to Outputs, and the files of what metrics show beside numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from dlrun.contracts import Batch, Gathered, Inputs, Outputs, Split, Task, Thorough, WithTables
from dlrun.runs import write_json
from dlrun.training.buckets import longest_first
from dlrun.training.distributed import World
from dlrun.training.precision import Precision


def batches(
    split: Split, inputs: Inputs, *, batch_size: int, place: Callable[[Batch], Batch], rank: int = 0, size: int = 1
) -> Iterator[Batch]:
    """A split, prepared and on the device, in order or the longest rows first; of several ranks every size-th batch."""
    order = longest_first(split)
    for start in range(rank * batch_size, len(split), batch_size * size):
        batch = split.gather(order[start : start + batch_size])
        if len(batch["id"]):
            yield inputs.prepare(place(batch))


def thorough(task: Task) -> Task:
    """The task as it is when cost does not matter: texts are said and scored, where they are scored at all."""
    return task.thorough() if isinstance(task, Thorough) else task


@torch.no_grad()
def outputs_of(model: nn.Module, task: Task, stream: Iterator[Batch], precision: Precision) -> Iterator[Outputs]:
    """The task's outputs batch by batch, in eval mode; the model's mode is restored afterwards."""
    was_training = model.training
    model.eval()
    try:
        for batch in stream:
            with precision.autocast():
                yield task.outputs(model, batch)
    finally:
        model.train(was_training)


def evaluate(
    model: nn.Module,
    task: Task,
    stream: Iterator[Batch],
    precision: Precision,
    world: World,
    tables: dict[str, list] | None = None,
) -> dict[str, float]:
    """Metrics of the whole split, equal on every rank.

    tables: filled with what metrics have to show beside numbers (a confusion matrix), where it is wanted.
    """
    metrics = task.metrics()
    for outputs in outputs_of(model, task, stream, precision):
        for metric in metrics:
            metric.update(outputs)
    values: dict[str, float] = {}
    for metric in metrics:
        if isinstance(metric, Gathered):
            metric.receive(world.gather_rows(metric.rows()))
        for sums in metric.state():
            world.add_up(sums)
        values |= metric.compute()
        if tables is not None and isinstance(metric, WithTables):
            tables |= metric.tables()
    return values


def write_tables(folder: Path, tables: Mapping[str, list], labels: Sequence[str]) -> None:
    """confusion.json and report/NAME.json of a run, from what metrics have to show beside numbers."""
    for name, table in tables.items():
        path = folder / ("confusion.json" if name == "confusion" else f"report/{name}.json")
        path.parent.mkdir(exist_ok=True)
        write_json(path, {"labels": list(labels), "counts" if name == "confusion" else "values": table})
