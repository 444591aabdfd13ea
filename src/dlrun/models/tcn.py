"""Temporal convolutional network: dilated convolutions that look back only, for series."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from dlrun.contracts import DataSpec
from dlrun.models import _layers, _series

# B windows, W rows, C columns, D channels


class Block(nn.Module):
    """Two causal convolutions of one dilation, each with relu and dropout, beside the way past them."""

    def __init__(self, before: int, after: int, kernel: int, dilation: int, dropout: float) -> None:
        super().__init__()
        self.reach = (kernel - 1) * dilation
        self.first = nn.Conv1d(before, after, kernel, dilation=dilation)
        self.second = nn.Conv1d(after, after, kernel, dilation=dilation)
        self.past = nn.Conv1d(before, after, 1) if before != after else nn.Identity()
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BDW: Tensor) -> Tensor:
        y_BDW = x_BDW
        for convolution in (self.first, self.second):
            y_BDW = self.dropout(convolution(F.pad(y_BDW, (self.reach, 0))).relu())
        return (y_BDW + self.past(x_BDW)).relu()


class Tcn(nn.Module):
    """Blocks, each with twice the dilation of the one before it; what the last row sees goes to the head."""

    def __init__(self, blocks: list[Block], head: _series.Head) -> None:
        super().__init__()
        self.blocks, self.head = nn.Sequential(*blocks), head

    def forward(self, series_BWC: Tensor) -> Tensor:
        """Forecasts [B, H, T], or logits [B, K]."""
        return self.head(self.blocks(series_BWC.transpose(1, 2))[..., -1], series_BWC)


def build(
    spec: DataSpec, *, channels: tuple[int, ...] = (32, 32, 32, 32), kernel: int = 3, dropout: float = 0.1
) -> nn.Module:
    """The network of Bai et al. 2018, "An Empirical Evaluation of Generic Convolutional and Recurrent Networks for
    Sequence Modeling", section 3, without weight normalisation. With L blocks and kernel k the last row sees
    1 + 2 (k - 1)(2^L - 1) rows.

    Settings:
    channels: of each block, one number a block
    kernel: rows that a convolution sees, at least 2
    dropout: share of what each convolution gives and of the last features set to zero while training, in [0, 1)
    """
    columns = _series.num_columns(spec, "tcn")
    sizes = _layers.positive_integers("channels", channels)
    _layers.require(bool(sizes), "channels", list(sizes), "at least one block")
    _layers.require(kernel >= 2, "kernel", kernel, "an integer of at least 2")
    pairs = zip((columns, *sizes), sizes, strict=False)
    blocks = [Block(before, after, kernel, 2**index, dropout) for index, (before, after) in enumerate(pairs)]
    return _layers.initialise(Tcn(blocks, _series.Head(spec, sizes[-1], dropout)), "default", "relu")
