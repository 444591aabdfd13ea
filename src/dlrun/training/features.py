"""A frozen body's features, computed once: feature extraction then trains its head on a small table."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from dlrun.contracts import Batch, Inputs, Split, WithLengths
from dlrun.training.buckets import longest_first
from dlrun.training.evaluate import batches
from dlrun.training.precision import Precision


class FeatureSplit:
    """A split whose only input is the field "features"."""

    in_memory = True

    def __init__(self, fields: dict[str, Tensor]) -> None:
        self.fields = fields

    def __len__(self) -> int:
        return len(self.fields["id"])

    def gather(self, rows_B: Tensor) -> Batch:
        """Rows of the table; ids are the original row numbers."""
        return {name: value[rows_B] for name, value in self.fields.items()}


class AsStored:
    """The input pipeline of features: there is nothing left to do."""

    def encode(self, rows):
        """Features are never typed in by a person."""
        raise AssertionError("features are made from a split, not from rows")

    def prepare(self, batch: Batch) -> Batch:
        """The batch itself."""
        return batch


@torch.no_grad()
def extract(
    model: nn.Module,
    head: str,
    split: Split,
    inputs: Inputs,
    given: tuple[str, ...],
    *,
    batch_size: int,
    place: Callable[[Batch], Batch],
    precision: Precision,
) -> FeatureSplit:
    """What reaches the module named `head` for every example of a split, in eval mode.

    given: the batch fields the model takes; every other field is kept beside the features.
    """
    caught: list[Tensor] = []
    hook = model.get_submodule(head).register_forward_pre_hook(lambda _, args: caught.append(args[0].float().cpu()))
    rest: list[Batch] = []
    was_training = model.training
    model.eval()
    try:
        for batch in batches(split, inputs, batch_size=batch_size, place=place):
            with precision.autocast():
                model(*(batch[name] for name in given))
            rest.append({name: value.cpu() for name, value in batch.items() if name not in given})
    finally:
        hook.remove()
        model.train(was_training)
    fields = {name: torch.cat([part[name] for part in rest]) for name in rest[0]} | {"features": torch.cat(caught)}
    if isinstance(split, WithLengths):  # read in another order
        back = torch.argsort(longest_first(split))
        fields = {name: field[back] for name, field in fields.items()}
    return FeatureSplit(fields)
