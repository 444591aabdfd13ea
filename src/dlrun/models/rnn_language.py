"""Recurrent language model: Elman's, LSTM or GRU, one token after the other."""

from __future__ import annotations

import copy
from typing import Literal

import torch
from torch import Tensor, nn

from dlrun.contracts import DataSpec
from dlrun.errors import DlrunError
from dlrun.models import _layers, _recurrent, _text
from dlrun.models._recurrent import State

# B batch, T time, H units, V vocabulary


class RnnLanguage(nn.Module):
    """An embedding, recurrent layers, and a linear head over the vocabulary."""

    def __init__(self, tokens: nn.Embedding, recurrent: _recurrent.Recurrent, dropout: float, head: nn.Linear) -> None:
        super().__init__()
        self.tokens, self.recurrent = tokens, recurrent
        self.dropout = nn.Dropout(dropout)
        self.head = head
        self.on_kernels = True

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Logits [B, T, V] of the token after each place."""
        read = self.recurrent if self.on_kernels else self.recurrent.masked
        return self.head(self.dropout(read(self.dropout(self.tokens(tokens_BT)))[0]))

    def exportable(self) -> nn.Module:
        """The same weights in plain operations."""
        plain = copy.copy(self)
        plain.on_kernels = False
        return plain

    @torch.no_grad()
    def start(self, tokens_BT: Tensor, lengths_B: Tensor) -> tuple[Tensor, State]:
        """Read prompts, padded at the right. Returns the logits [B, V] of the token after each, and the state."""
        _, state = self.recurrent(self.tokens(tokens_BT), lengths_B)
        return self.head(state[0][:, -1]), state

    @torch.no_grad()
    def step(self, tokens_B: Tensor, state: State) -> tuple[Tensor, State]:
        """One more token a row: the logits [B, V] of the next, and the state. There is no window to be outgrown."""
        output_BH, state = self.recurrent.step(self.tokens(tokens_B), state)
        return self.head(output_BH), state


def build(
    spec: DataSpec,
    *,
    cell: Literal["lstm", "gru", "rnn"] = "lstm",
    width: int = 128,
    hidden: int = 256,
    layers: int = 1,
    tied: bool = False,
    dropout: float = 0.0,
    embedding_std: float = 0.1,
    init: Literal["default", "orthogonal"] = "orthogonal",
    forget_bias: float = 1.0,
) -> nn.Module:
    """p(x_t+1 | x_1 … x_t) = softmax(W h_t + b) with h_t = cell(e(x_t), h_t-1) and e an embedding (Mikolov et al. 2010,
    "Recurrent neural network based language model"; with LSTM, Zaremba et al. 2014, whose dropout is never on the way
    from h_t-1 to h_t). The cells' equations are in _recurrent.py.

    Each window of a text starts from an empty state in training; in generation the state goes on without end.

    Settings:
    cell: lstm, gru, or rnn for Elman's
    width: of the embeddings, at least 1
    hidden: units of each layer, at least 1
    layers: at least 1
    tied: the head's weights are those of the embedding (Press and Wolf 2017); needs hidden equal to width
    dropout: share of embeddings, of what passes between layers, and of outputs set to zero in training, in [0, 1)
    embedding_std: standard deviation of the first embeddings
    init: of recurrent weights: orthogonal, with uniform input weights, or as torch made them
    forget_bias: what an LSTM's forget gate begins with; above 0 it begins by remembering
    """
    vocabulary = spec.size("vocabulary")
    if spec.inputs != ("tokens",):
        raise DlrunError(f"rnn_language reads running text; the data set has {', '.join(spec.inputs)}", "model=lstm")
    _recurrent.check(hidden, layers, dropout)
    if tied and width != hidden:
        raise DlrunError(f"model.tied: embeddings are {width} wide and the head's inputs {hidden}", "model.tied=false")
    recurrent = _recurrent.Recurrent(cell, width, hidden, layers, False, dropout)
    _recurrent.initialise(recurrent, init, forget_bias)
    tokens = _text.embedding(vocabulary, width, embedding_std)
    model = RnnLanguage(tokens, recurrent, dropout, nn.Linear(hidden, vocabulary))
    _layers.initialise(model, "lecun", "tanh")
    if tied:
        model.head.weight = model.tokens.weight
    return model
