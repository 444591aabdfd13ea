"""Recurrent network for sequences with a label: Elman's, LSTM or GRU, one- or bidirectional, one layer or several."""

from __future__ import annotations

import copy
from typing import Literal

from torch import Tensor, nn

from dlrun.contracts import DataSpec
from dlrun.models import _layers, _recurrent, _text

# B batch, T time, H units, K classes


class Rnn(nn.Module):
    """An embedding (none where the data are numbers), recurrent layers, their outputs pooled, and a linear head."""

    def __init__(
        self, tokens: nn.Module, recurrent: _recurrent.Recurrent, pooling: str, dropout: float, head: nn.Linear
    ) -> None:
        super().__init__()
        self.tokens, self.recurrent = tokens, recurrent
        self.pooling, self.packed = pooling, True
        self.dropout = nn.Dropout(dropout)
        self.head = head

    def forward(self, inputs: Tensor, lengths_B: Tensor) -> Tensor:
        """Logits [B, K]. inputs: int64 [B, T], or float [B, T, features]."""
        read = self.recurrent if self.packed else self.recurrent.masked
        outputs_BTO, state = read(self.dropout(self.tokens(inputs)), lengths_B)
        if self.pooling == "last":
            pooled = state[0][:, -self.recurrent.directions :].flatten(1)
        else:
            pooled = _text.pooled(outputs_BTO, _text.is_token(inputs, lengths_B), self.pooling)
        return self.head(self.dropout(pooled))

    def exportable(self) -> nn.Module:
        """The same weights without packing."""
        masked = copy.copy(self)
        masked.packed = False
        return masked


def build(
    spec: DataSpec,
    *,
    cell: Literal["lstm", "gru", "rnn"] = "lstm",
    width: int = 128,
    hidden: int = 128,
    layers: int = 1,
    bidirectional: bool = True,
    pooling: Literal["last", "mean", "max"] = "max",
    dropout: float = 0.2,
    embedding_std: float = 0.1,
    init: Literal["default", "orthogonal"] = "orthogonal",
    forget_bias: float = 1.0,
) -> nn.Module:
    """A state h_t is carried along the sequence x_1 … x_n, once from each end where bidirectional:
        h_t = cell(x_t, h_t-1);   logits = W pool(h_1 … h_n) + b
    with the cells tanh(W x + U h + b) of Elman 1990, LSTM of Hochreiter and Schmidhuber 1997, GRU of Cho et al. 2014
    (their equations are in _recurrent.py). Both directions side by side: Schuster and Paliwal 1997; their maximum over
    time: Conneau et al. 2017, "InferSent", section 3.2.

    Settings:
    cell: lstm, gru, or rnn for Elman's
    width: of the embeddings, at least 1; not used where the data are numbers
    hidden: units of each layer in each direction, at least 1
    layers: at least 1
    bidirectional: whether each layer reads from both ends
    pooling: the state at the end of each direction, or the mean or the maximum of all outputs
    dropout: share of inputs, of what passes between layers, and of pooled features set to zero in training, in [0, 1)
    embedding_std: standard deviation of the first embeddings
    init: of recurrent weights: orthogonal, with uniform input weights, or as torch made them
    forget_bias: what an LSTM's forget gate begins with; above 0 it begins by remembering
    """
    _recurrent.check(hidden, layers, dropout)
    if "features" in spec.sizes and "vocabulary" not in spec.sizes:
        tokens, inputs = nn.Identity(), spec.size("features")
    else:
        tokens, inputs = _text.embedding(spec.size("vocabulary"), width, embedding_std), width
    recurrent = _recurrent.Recurrent(cell, inputs, hidden, layers, bidirectional, dropout)
    _recurrent.initialise(recurrent, init, forget_bias)
    head = nn.Linear(hidden * recurrent.directions, spec.num_outputs)
    return _layers.initialise(Rnn(tokens, recurrent, pooling, dropout, head), "lecun", "tanh")
