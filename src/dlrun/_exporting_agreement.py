"""A graph that was read back: compared with the model on rows of the data, or called in its place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree as trees

from dlrun.contracts import Unfinished
from dlrun.errors import DlrunError
from dlrun.exporting import SIZES, Traced

TOLERANCE = 1e-4  # of a graph's outputs, times the largest of the model's, or 1 where that is smaller


class Loaded(nn.Module):
    """A file read back, called as the model is called.

    run: from inputs by name to the outputs in order.
    """

    def __init__(self, traced: Traced, run: Callable[[dict[str, Tensor]], Sequence[Tensor]]) -> None:
        super().__init__()
        self.traced, self.run = traced, run

    def forward(self, *inputs: Tensor) -> Any:
        source, form = self.traced.source, self.traced.form
        given = dict(zip(source.spec.inputs, inputs, strict=True))
        said = trees.tree_unflatten(list(self.run(given)), self.traced.nesting)
        if not isinstance(form, Unfinished):
            return said
        # What is finished outside of the graph reads inputs as the model does, not as they are stored.
        batch = source.inputs.prepare(given) if self.traced.prepares else given
        return form.finish(said, *[batch[name] for name in source.spec.inputs])


class Agreement(NamedTuple):
    """worst: the greatest difference between a graph's outputs and the model's.   allowed: what it may be.

    compared: how many examples of how many rows (and lengths) were looked at, in words.
    """

    worst: float
    allowed: float
    compared: str

    @property
    def holds(self) -> bool:
        return self.worst <= self.allowed


@torch.no_grad()
def agreement(
    traced: Traced, run: Callable[[dict[str, Tensor]], Sequence[Tensor]], tolerance: float = TOLERANCE
) -> Agreement:
    """The graph against the model itself, on rows of the data: several numbers of rows, several lengths.

    The model is asked as it is trained and evaluated, its exportable form only where that ends earlier.
    """
    source, worst, largest, lengths = traced.source, 0.0, 1.0, set()
    model = traced.form if isinstance(traced.form, Unfinished) else source.model
    for example in traced.examples():
        batch = source.inputs.prepare(dict(example)) if traced.prepares else example
        expected = trees.tree_leaves(model(*[batch[name] for name in source.spec.inputs]))
        lengths |= {example[name].shape[1] for name in list(traced.ragged)[:1]}
        for found, wanted in zip(run(example), expected, strict=True):
            if found.shape != wanted.shape:
                raise DlrunError(f"export: the graph gives {list(found.shape)}, the model {list(wanted.shape)}")
            wanted = wanted.double()
            difference = (found.double() - wanted).abs()
            # Places that the model holds to be impossible are minus infinity in both.
            difference = difference.masked_fill(found.double() == wanted, 0.0)
            worst = max(worst, float(difference.max()) if difference.numel() else 0.0)
            finite = wanted[wanted.isfinite()].abs()
            largest = max(largest, float(finite.max()) if finite.numel() else 0.0)
    said = f"{', '.join(map(str, SIZES))} rows" + (
        f", lengths {', '.join(map(str, sorted(lengths)))}" if lengths else ""
    )
    return Agreement(worst, tolerance * largest, said)
