"""The mean of several models' tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from dlrun.errors import DlrunError


def mean(members: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Summed in double precision, so that the mean of equal tensors is that tensor; counts are the first member's.

    Raises: DlrunError for members whose tensors differ in name or shape.
    """
    first = members[0]
    for other in members[1:]:
        for name in sorted(first.keys() ^ other.keys()):
            raise DlrunError(f"the weights cannot be averaged: '{name}' is in one member only", "use ensemble=average")
        for name, tensor in first.items():
            if tensor.shape != other[name].shape:
                shapes = f"{list(tensor.shape)} and {list(other[name].shape)}"
                raise DlrunError(f"the weights cannot be averaged: '{name}' is {shapes}", "use ensemble=average")
    found = {}
    for name, tensor in first.items():
        if not tensor.is_floating_point():
            found[name] = tensor.clone()
            continue
        total = torch.zeros(tensor.shape, dtype=torch.float64)
        for member in members:
            total += member[name].double()
        found[name] = (total / len(members)).to(tensor.dtype)
    return found
