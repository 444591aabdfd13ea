"""How long a model takes over its inputs, by the clock: for `compress`, and for sweeps that count it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from dlrun.contracts import Dataset
from dlrun.training.batches import placer
from dlrun.training.precision import Precision

_SECONDS = 1.0  # of measuring, once it is warm
_EXAMPLES = 16  # different ones, for they may differ in length

Run = Callable[[Sequence[Tensor]], None]


def forward(models: Sequence[nn.Module], precision: Precision, device: torch.device) -> Run:
    """A call of all the models, which returns when the device has done it. The models are set to evaluate."""
    for model in models:
        model.eval()

    def run(inputs: Sequence[Tensor]) -> None:
        with precision.autocast():
            for model in models:
                model(*inputs)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return run


def timed(run: Run, inputs: Sequence[Sequence[Tensor]], turns: int = 1) -> list[float]:
    """Seconds of each call, for about a second after three calls that warm up; of one of several turns its share."""
    for index in range(3 if turns == 1 else 1):
        run(inputs[index % len(inputs)])
    found, end = [], time.perf_counter() + _SECONDS / turns
    while time.perf_counter() < end or len(found) < -(-5 // turns):
        started = time.perf_counter()
        run(inputs[len(found) % len(inputs)])
        found.append(time.perf_counter() - started)
    return found


@torch.no_grad()
def latency_seconds(model: nn.Module, dataset: Dataset, precision: Precision, device: torch.device) -> float:
    """Median time of one example alone, of the held-out examples that the data has (else of those to train on).

    What makes the inputs from stored examples is not counted. The model is left to evaluate.
    """
    split = dataset.split(next(name for name in ("valid", "test", "train") if name in dataset.splits))
    place = placer(device, False)
    rows = [split.gather(torch.tensor([row])) for row in range(min(_EXAMPLES, len(split)))]
    batches = [dataset.inputs.prepare(place(row)) for row in rows if len(row["id"])]
    inputs = [[batch[name] for name in dataset.spec.inputs] for batch in batches]
    return statistics.median(timed(forward([model], precision, device), inputs))
