"""Factors on the loss by class, checked."""

from __future__ import annotations

import torch
from torch import Tensor

from dlrun.errors import DlrunError


def class_weights(given: list | None, num_classes: int) -> Tensor | None:
    """[C] float32, or None for equal weights. Raises: DlrunError unless there is a fit number for each class."""
    if given is None:
        return None
    numbers = [value for value in given if isinstance(value, (int, float)) and value >= 0]
    if len(given) != num_classes or len(numbers) != num_classes or not sum(numbers):
        raise DlrunError(
            f"task.class_weights: {given} is not a number of at least 0 for each of the {num_classes} classes",
            f"give {num_classes} numbers, not all of them 0",
        )
    return torch.tensor(numbers, dtype=torch.float32)
