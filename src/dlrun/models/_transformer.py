"""What the transformers share: heads, feed-forward layers, normalisation, positions, caches, and how weights start."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlrun.errors import DlrunError
from dlrun.models import _layers

# B batch, T time, D width of the model, H heads, d width of a head, C room of a cache

_RMS_EPS = 1e-6  # of Llama; torch's own is that of the number format, too small beside fp32's rounding


def norm(name: str, width: int, bias: bool = True) -> nn.Module:
    """Normalisation of the last dimension: "layer" (Ba et al. 2016) or "rms" (Zhang and Sennrich 2019, eq. 4)."""
    return nn.RMSNorm(width, eps=_RMS_EPS) if name == "rms" else nn.LayerNorm(width, bias=bias)


class FeedForward(nn.Module):
    """Two linear layers with an activation between, at every place alone.

    activation: a name of `_layers`; "relu_squared", max(x, 0)^2 (So et al. 2021, "Primer", section 4); or "swiglu",
    down(silu(gate x) * up x) (Shazeer 2020, "GLU Variants Improve Transformer", eq. 6). Gate and up are two matrices:
    the halves of one product would be strided, and slow on a CPU.
    """

    def __init__(self, width: int, hidden: int, activation: str, bias: bool, dropout: float) -> None:
        super().__init__()
        gated = activation == "swiglu"
        self.gate = nn.Linear(width, hidden, bias) if gated else None
        self.up = nn.Linear(width, hidden, bias)
        self.activation = _activation("silu" if gated else activation)
        self.down = nn.Linear(hidden, width, bias)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        y = self.activation(self.up(x)) if self.gate is None else self.activation(self.gate(x)) * self.up(x)
        return self.dropout(self.down(y))


class _SquaredRelu(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x).square()


def _activation(name: str) -> nn.Module:
    return _SquaredRelu() if name == "relu_squared" else _layers.activation(name)


def hidden_width(hidden: int | None, width: int, activation: str) -> int:
    """Units of a feed-forward layer: as given, else 4 x width, or with swiglu, which has three matrices and not two,
    8/3 x width rounded up to a multiple of 8. Raises: DlrunError below 1."""
    if hidden is not None:
        _layers.require(hidden >= 1, "hidden", hidden, "an integer of at least 1, or null")
        return hidden
    return 8 * math.ceil(width / 3) if activation == "swiglu" else 4 * width


def check_heads(width: int, heads: int, *, even: bool = False) -> None:
    """Raises: DlrunError unless the heads share out the width (even: into even numbers, as rotations need)."""
    _layers.require(width >= 1, "width", width, "an integer of at least 1")
    _layers.require(heads >= 1, "heads", heads, "an integer of at least 1")
    if width % heads:
        raise DlrunError(f"model.heads: {heads} heads do not share out a width of {width}", _nearest(width, heads))
    if even and (width // heads) % 2:
        raise DlrunError(
            f"model.positions: rope turns pairs; {heads} heads have {width // heads} of the width each, an odd number",
            "model.positions=learned",
        )


def _nearest(width: int, heads: int) -> str:
    divisors = [number for number in range(1, width + 1) if width % number == 0]
    return f"model.heads={min(divisors, key=lambda number: abs(number - heads))}"


def in_heads(x_BTD: Tensor, heads: int) -> Tensor:
    """[B, T, D] to [B, H, T, d]."""
    return x_BTD.unflatten(-1, (heads, -1)).transpose(1, 2)


def joined(x_BHTd: Tensor) -> Tensor:
    """[B, H, T, d] to [B, T, D]."""
    return x_BHTd.transpose(1, 2).flatten(2)


# ---------------------------------------------------------------- positions


def sinusoids(length: int, width: int, device: torch.device | None = None) -> Tensor:
    """[length, width]: sin(position / 10000^(2i / width)) at 2i and the cosine of the same at 2i + 1.

    Source: Vaswani et al. 2017, "Attention Is All You Need", section 3.5.
    """
    rates = torch.exp(torch.arange(0, width, 2, device=device) * (-math.log(10_000.0) / width))
    angles = torch.arange(length, device=device)[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[:, :width]


class Rotary(nn.Module):
    """Rotary positions: entries i and i + d/2 of a head are a point that turns by position / 10000^(2i / d).

    A product of a query and a key then depends on their distance alone.
    Source: Su et al. 2021, "RoFormer", eq. 34, with the pairs as Llama lays them out.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, context: int, head_width: int) -> None:
        super().__init__()
        rates = 10_000.0 ** (-torch.arange(0, head_width, 2) / head_width)
        angles = torch.arange(context)[:, None] * rates
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, x: Tensor, position_B: Tensor | None = None) -> Tensor:
        """Turn [B, T, …, d] from position 0 on, or [B, 1, …, d] at a position for each row."""
        if position_B is None:
            shape = (x.shape[1], *(1,) * (x.dim() - 3), -1)
            cos, sin = self.cos[: x.shape[1]].view(shape), self.sin[: x.shape[1]].view(shape)
        else:
            shape = (x.shape[0], *(1,) * (x.dim() - 2), -1)
            cos, sin = self.cos[position_B].view(shape), self.sin[position_B].view(shape)
        left, right = x.chunk(2, dim=-1)
        turned = torch.cat([left * cos - right * sin, right * cos + left * sin], dim=-1)
        return turned.to(x.dtype)  # under autocast the table is wider than what it turns


# ---------------------------------------------------------------- caches


class Cached(NamedTuple):
    """Keys and values of one layer for the tokens so far, [B, H, C, d]; written in place."""

    keys: Tensor
    values: Tensor

    @staticmethod
    def of(keys_BHTd: Tensor, values_BHTd: Tensor, room: int) -> Cached:
        """A copy with room for so many tokens."""
        free = (0, 0, 0, room - keys_BHTd.shape[2])
        return Cached(F.pad(keys_BHTd, free), F.pad(values_BHTd, free))

    def append(self, keys_BH1d: Tensor, values_BH1d: Tensor, place: Place) -> Cached:
        """Write the keys and values of one token a row. Returns those of all tokens up to the longest row's."""
        if place.seen is None:
            self.keys[:, :, place.longest] = keys_BH1d[:, :, 0]
            self.values[:, :, place.longest] = values_BH1d[:, :, 0]
        else:
            rows = torch.arange(len(self.keys), device=self.keys.device)
            self.keys[rows, :, place.position] = keys_BH1d[:, :, 0]
            self.values[rows, :, place.position] = values_BH1d[:, :, 0]
        return Cached(self.keys[:, :, : place.longest + 1], self.values[:, :, : place.longest + 1])


class Place(NamedTuple):
    """Where the next token of each row stands: position, int64 [B]; longest, the greatest of them.

    seen: bool [B, 1, 1, longest + 1], which tokens a row has by then; None where all rows are of one length.
    """

    position: Tensor
    longest: int
    seen: Tensor | None

    @staticmethod
    def after(lengths_B: Tensor, shortest: int, longest: int) -> Place:
        """The place after rows of these lengths."""
        if shortest == longest:
            return Place(lengths_B, longest, None)
        tokens = torch.arange(longest + 1, device=lengths_B.device)
        return Place(lengths_B, longest, (tokens <= lengths_B[:, None])[:, None, None])


# ---------------------------------------------------------------- weights


def initialise(model: nn.Module, std: float, residual_layers: int = 0) -> None:
    """Weights of linear layers and embeddings from a normal distribution, biases zero.

    residual_layers: where above 0, the layers named `out` and `down`, which add to the residual stream so many times,
    start smaller by the root of that number (Radford et al. 2019, "GPT-2", section 2.3).
    """
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear | nn.Embedding):
            adds = residual_layers > 0 and name.rpartition(".")[2] in ("out", "down")
            nn.init.normal_(layer.weight, std=std / math.sqrt(residual_layers) if adds else std)
        if isinstance(layer, nn.Linear) and layer.bias is not None:
            nn.init.zeros_(layer.bias)
