"""Recurrent network for series: LSTM, GRU or Elman's, over a window, to forecasts or to a class."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from dlrun.contracts import DataSpec
from dlrun.models import _recurrent, _series

# B windows, W rows, C columns, L layers x directions, U units


class SeriesRnn(nn.Module):
    """Recurrent layers over the rows; the state that the last one ends in goes to the head."""

    def __init__(self, recurrent: _recurrent.Recurrent, head: _series.Head) -> None:
        super().__init__()
        self.recurrent, self.head = recurrent, head

    def forward(self, series_BWC: Tensor) -> Tensor:
        """Forecasts [B, H, T], or logits [B, K]."""
        _, state = self.recurrent(series_BWC)
        return self.head(state[0][:, -self.recurrent.directions :].flatten(1), series_BWC)


def build(
    spec: DataSpec,
    *,
    cell: Literal["lstm", "gru", "rnn"] = "gru",
    hidden: int = 64,
    layers: int = 1,
    bidirectional: bool = False,
    dropout: float = 0.0,
) -> nn.Module:
    """The cells are those of model=rnn. All of a window is known, so it may be read from both ends.

    Settings:
    cell: lstm, gru, or rnn for Elman's
    hidden: units of each layer in each direction, at least 1
    layers: at least 1
    bidirectional: whether each layer reads from both ends
    dropout: share of what passes between layers and of the last state set to zero while training, in [0, 1)
    """
    columns = _series.num_columns(spec, "series_rnn")
    _recurrent.check(hidden, layers, dropout)
    recurrent = _recurrent.Recurrent(cell, columns, hidden, layers, bidirectional, dropout)
    _recurrent.initialise(recurrent, "orthogonal")
    return SeriesRnn(recurrent, _series.Head(spec, recurrent.directions * hidden, dropout))
