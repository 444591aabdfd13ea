"""Logistic regression: one linear layer on the flattened input, the place to start."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from dlrun.contracts import DataSpec

# B batch, K classes


class Logistic(nn.Module):
    """Flatten, then one linear layer to the logits."""

    def __init__(self, num_inputs: int, num_classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(num_inputs, num_classes)
        # The loss is convex, so the start decides nothing; from zero the first prediction is uniform.
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[B, …] to logits [B, K]."""
        return self.head(torch.flatten(x, 1))


def build(spec: DataSpec) -> nn.Module:
    """Logistic regression (with several classes: multinomial, as softmax turns its logits into probabilities)."""
    return Logistic(math.prod(spec.input_shape), spec.num_outputs)
