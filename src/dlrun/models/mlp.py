"""Multi-layer perceptron: fully connected layers on the flattened input."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from dlrun.contracts import DataSpec
from dlrun.models import _layers, _members

# B batch, D width of a layer, K classes


class _Hidden(nn.Module):
    """linear, norm, activation, dropout; with a branch scale, added to its own input."""

    def __init__(
        self, num_inputs: int, width: int, activation: str, norm: str, dropout: float, branch_scale: float
    ) -> None:
        super().__init__()
        self.linear = nn.Linear(num_inputs, width)
        self.norm = _layers.norm_1d(norm, width)
        self.activation = _layers.activation(activation)
        self.dropout = nn.Dropout(dropout)
        self.branch_scale = branch_scale if num_inputs == width else 0.0

    def forward(self, x_BD: Tensor) -> Tensor:
        y_BD = self.dropout(self.activation(self.norm(self.linear(x_BD))))
        return x_BD + self.branch_scale * y_BD if self.branch_scale else y_BD


class Mlp(nn.Module):
    """Hidden layers, then a linear head."""

    def __init__(self, hidden: list[_Hidden], head: nn.Linear) -> None:
        super().__init__()
        self.hidden = nn.Sequential(*hidden)
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        """[B, …] to logits [B, K]."""
        return self.head(self.hidden(torch.flatten(x, 1)))


def build(
    spec: DataSpec,
    *,
    depth: int = 2,
    width: int = 256,
    widths: tuple[int, ...] | None = None,
    activation: Literal[
        "relu", "leaky_relu", "elu", "selu", "gelu", "silu", "mish", "softplus", "tanh", "sigmoid"
    ] = "relu",
    norm: Literal["none", "batch", "layer"] = "none",
    dropout: float = 0.0,
    init: Literal["kaiming", "xavier", "orthogonal", "lecun", "default"] = "kaiming",
    skip: bool = False,
    members: int = 1,
) -> nn.Module:
    """A stack of fully connected layers.

    Settings:
    depth: number of hidden layers, at least 0
    width: units of each hidden layer, at least 1
    widths: units of each hidden layer, one number a layer, e.g. [512,256,128]; replaces depth and width
    activation: after every hidden layer
    norm: normalisation before the activation
    dropout: share of hidden units set to zero while training, in [0, 1)
    init: how weights start; default leaves them as torch made them
    skip: add the input of every hidden layer of equal width to its output
    members: that share its weights, each with vectors of its own (a batch ensemble, Wen et al. 2020); 1 for none
    """
    _layers.require(0 <= dropout < 1, "dropout", dropout, "a number in [0, 1)")
    sizes = _layers.positive_integers("widths", widths) if widths is not None else _equal_widths(depth, width)
    inputs = (math.prod(spec.input_shape), *sizes)
    # Branches of 1/sqrt(layers) keep the variance bounded however deep (Hayou et al. 2021, "Stable ResNet").
    branch_scale = 1.0 / math.sqrt(len(sizes)) if skip and sizes else 0.0
    hidden = [
        _Hidden(before, after, activation, norm, dropout, branch_scale)
        for before, after in zip(inputs, sizes, strict=False)
    ]
    model = _layers.initialise(Mlp(hidden, nn.Linear(inputs[-1], spec.num_outputs)), init, activation)
    return _members.several(model, members, spec)


def _equal_widths(depth: int, width: int) -> tuple[int, ...]:
    _layers.require(depth >= 0, "depth", depth, "an integer of at least 0")
    _layers.require(width >= 1, "width", width, "an integer of at least 1")
    return (width,) * depth
