"""Adding the sums of metrics up over ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dlrun.contracts import Metric


def reduce(metrics: Sequence[Metric], all_reduce_sum: Callable[[Tensor], object]) -> None:
    """Let every rank's metrics hold the sums of all ranks, with one communication.

    all_reduce_sum: sums one float64 CPU tensor over ranks, in place.
    """
    states = [state for metric in metrics for state in metric.state()]
    if not states:
        return
    flat = torch.cat([state.reshape(-1) for state in states])
    all_reduce_sum(flat)
    for state, summed in zip(states, flat.split([state.numel() for state in states]), strict=True):
        state.copy_(summed.reshape(state.shape))


class Sums:
    """A float64 tensor that is added to where the batches are, without waiting for the device.

    It comes to the CPU when it is looked at, so ranks that saw no batch agree with the others.
    """

    def __init__(self, *shape: int) -> None:
        self._total = torch.zeros(shape, dtype=torch.float64)

    def add(self, amounts: Tensor) -> None:
        """Add float64 amounts of the same shape."""
        if self._total.device != amounts.device:
            self._total = self._total.to(amounts.device)
        self._total += amounts

    def on_cpu(self) -> Tensor:
        """The total itself, on the CPU from now on: changing it changes the sums."""
        self._total = self._total.cpu()
        return self._total
