"""Recurrent encoder and decoder with attention (Bahdanau's or Luong's), for translation and its like."""

from __future__ import annotations

import copy
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from dlrun.contracts import DataSpec
from dlrun.errors import DlrunError
from dlrun.models import _attention, _layers, _recurrent, _text
from dlrun.models._attention import Memory
from dlrun.models._recurrent import Recurrent

# B batch, S places of the source, T of the target, E width of embeddings, H units, M memory, R readout, V vocabulary


class Encoder(nn.Module):
    """Embeddings, recurrent layers, and the state the decoder begins with: tanh(W last) for each of its layers."""

    def __init__(self, tokens: nn.Embedding, recurrent: Recurrent, hidden: int, dropout: float) -> None:
        super().__init__()
        self.tokens, self.recurrent = tokens, recurrent
        self.dropout = nn.Dropout(dropout)
        parts = 2 if recurrent.kind == "lstm" else 1
        self.bridges = nn.ModuleList(nn.Linear(recurrent.outputs, hidden) for _ in range(parts))

    def forward(self, source_BS: Tensor, lengths_B: Tensor, packed: bool) -> tuple[Tensor, _recurrent.State]:
        """Memory [B, S, M], and the decoder's first state [B, L, H]."""
        read = self.recurrent if packed else self.recurrent.masked
        memory_BSM, last = read(self.dropout(self.tokens(source_BS)), lengths_B)
        shape = (source_BS.shape[0], self.recurrent.layers, -1)  # the directions of a layer side by side
        first = [bridge(part.reshape(shape)).tanh() for bridge, part in zip(self.bridges, last, strict=True)]
        return self.dropout(memory_BSM), tuple(first)


class State(NamedTuple):
    """What was read and said. hidden: [B, L, H] each.   fed: [B, R], the last readout, which Luong's decoder reads."""

    memory: Memory
    hidden: _recurrent.State
    fed: Tensor


class Decoder(nn.Module):
    """Cells one above the other, attention, and a readout: tanh of a linear layer. See `build` for the equations."""

    def __init__(
        self,
        cells: list[_recurrent.Cell],
        attention: _attention.Bahdanau | _attention.Luong,
        readout: nn.Linear,
        feeds: bool,
        dropout: float,
    ) -> None:
        super().__init__()
        self.cells = nn.ModuleList(cells)
        self.attention, self.readout, self.feeds = attention, readout, feeds
        self.dropout = nn.Dropout(dropout)

    def forward(self, y_BE: Tensor, state: State) -> tuple[Tensor, State]:
        """The readout [B, R] after one token, and the state."""
        if self.feeds:
            hidden = self.climb(torch.cat([y_BE, state.fed], dim=1), state.hidden)
            context_BM = self.attention(hidden[0][:, -1], state.memory)
            seen = [hidden[0][:, -1], context_BM]
        else:
            context_BM = self.attention(state.hidden[0][:, -1], state.memory)
            hidden = self.climb(torch.cat([y_BE, context_BM], dim=1), state.hidden)
            seen = [hidden[0][:, -1], context_BM, y_BE]
        readout_BR = self.readout(torch.cat(seen, dim=1)).tanh()
        return readout_BR, State(state.memory, hidden, readout_BR)

    def climb(self, x: Tensor, hidden: _recurrent.State) -> _recurrent.State:
        """The cells' states [B, L, H] after an input to the lowest."""
        after = []
        for layer, cell in enumerate(self.cells):
            after.append(cell(self.dropout(x) if layer else x, tuple(part[:, layer] for part in hidden)))
            x = after[-1][0]
        return tuple(torch.stack(part, dim=1) for part in zip(*after, strict=True))


class Seq2SeqRnn(nn.Module):
    """An encoder, a decoder that looks at what it read, and a linear head over the target's vocabulary."""

    def __init__(self, encoder: Encoder, tokens: nn.Embedding, decoder: Decoder, dropout: float, head: nn.Linear):
        super().__init__()
        self.encoder, self.tokens, self.decoder = encoder, tokens, decoder
        self.dropout = nn.Dropout(dropout)
        self.head = head
        self.packed = True

    def forward(self, source_BS: Tensor, source_lengths_B: Tensor, tokens_BT: Tensor) -> Tensor:
        """Logits [B, T, V] of the token after each of the target's."""
        state = self.read(source_BS, source_lengths_B)
        y_BTE = self.dropout(self.tokens(tokens_BT))
        if torch.compiler.is_exporting():
            return self.head(self._said_at_any_length(y_BTE, state))
        readouts = []
        for y_BE in y_BTE.unbind(1):
            readout_BR, state = self.decoder(y_BE, state)
            readouts.append(readout_BR)
        return self.head(self.dropout(torch.stack(readouts, dim=1)))

    def _said_at_any_length(self, y_BTE: Tensor, state: State) -> Tensor:
        """The readouts [B, T, R] by a loop that a graph holds as a loop."""

        def say(before: tuple[Tensor, ...], y_BE: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
            readout_BR, after = self.decoder(y_BE, State(state.memory, before[:-1], before[-1]))
            return (*after.hidden, after.fed), readout_BR.clone()  # what is said may not be the state itself

        _, readouts_TBR = _recurrent.over_time(say, (*state.hidden, state.fed), y_BTE.transpose(0, 1))
        return readouts_TBR.transpose(0, 1)

    def read(self, source_BS: Tensor, source_lengths_B: Tensor) -> State:
        """The state before anything is said."""
        states_BSM, hidden = self.encoder(source_BS, source_lengths_B, self.packed)
        memory = self.decoder.attention.remember(states_BSM, _text.is_token(source_BS, source_lengths_B))
        return State(memory, hidden, states_BSM.new_zeros(source_BS.shape[0], self.head.in_features))

    def exportable(self) -> nn.Module:
        """The same weights without packing."""
        masked = copy.copy(self)
        masked.packed = False
        return masked

    @torch.no_grad()
    def start(self, source_BS: Tensor, source_lengths_B: Tensor, tokens_B: Tensor) -> tuple[Tensor, State]:
        """Read sources. Returns the logits [B, V] after the first token of each target, and the state."""
        return self.step(tokens_B, self.read(source_BS, source_lengths_B))

    @torch.no_grad()
    def step(self, tokens_B: Tensor, state: State) -> tuple[Tensor, State]:
        """One more token a row: the logits [B, V] of the next, and the state."""
        readout_BR, state = self.decoder(self.tokens(tokens_B), state)
        return self.head(readout_BR), state


def build(
    spec: DataSpec,
    *,
    attention: Literal["bahdanau", "luong"] = "bahdanau",
    cell: Literal["gru", "lstm", "rnn"] = "gru",
    width: int = 256,
    hidden: int = 256,
    layers: int = 1,
    bidirectional: bool = True,
    tied: bool = True,
    dropout: float = 0.3,
    embedding_std: float = 0.1,
    init: Literal["default", "orthogonal"] = "orthogonal",
    forget_bias: float = 1.0,
) -> nn.Module:
    """An encoder reads the source into a memory m_1 … m_S; a decoder says the target, token y_t after token.

    Bahdanau et al. 2015 look before the step, from the state s_t-1, and read what they saw:
        c_t = attention(s_t-1, m);   s_t = cell([y_t; c_t], s_t-1);   r_t = tanh(W [s_t; c_t; y_t])
    Luong et al. 2015 look after it, and feed what they said back ("input feeding", section 3.3):
        s_t = cell([y_t; r_t-1], s_t-1);   c_t = attention(s_t, m);   r_t = tanh(W [s_t; c_t])
    Then logits = V r_t. In place of Bahdanau's maxout layer there is a tanh. The attentions are in _attention.py, the
    cells in _recurrent.py; with several layers the attention asks with the highest one's state.

    Settings:
    attention: bahdanau (additive, before the step) or luong (a product, after it)
    cell: of encoder and decoder: gru, lstm, or rnn for Elman's
    width: of the embeddings and of the readout, at least 1
    hidden: units of each layer, in each direction of the encoder, at least 1
    layers: of encoder and decoder, at least 1
    bidirectional: whether the encoder reads from both ends
    tied: the head's weights are those of the target's embedding (Press and Wolf 2017)
    dropout: share of embeddings, memory, what passes between layers, and readouts set to zero in training, in [0, 1)
    embedding_std: standard deviation of the first embeddings
    init: of recurrent weights: orthogonal, with uniform input weights, or as torch made them
    forget_bias: what an LSTM's forget gate begins with; above 0 it begins by remembering
    """
    _recurrent.check(hidden, layers, dropout)
    if "source" not in spec.inputs:
        raise DlrunError(
            f"model: seq2seq_rnn needs a source; this data has {', '.join(spec.inputs)}", "data=translation"
        )
    source = _text.embedding(spec.size("vocabulary"), width, embedding_std)
    target = _text.embedding(spec.size("target_vocabulary"), width, embedding_std)
    recurrent = Recurrent(cell, width, hidden, layers, bidirectional, dropout)
    memory = recurrent.outputs
    feeds = attention == "luong"
    looks = _attention.Luong(hidden, memory) if feeds else _attention.Bahdanau(hidden, memory, hidden)
    first = width + (width if feeds else memory)
    cells = [_recurrent.Cell(cell, hidden if layer else first, hidden) for layer in range(layers)]
    readout = nn.Linear(hidden + memory + (0 if feeds else width), width)
    decoder = Decoder(cells, looks, readout, feeds, dropout)
    encoder = Encoder(source, recurrent, hidden, dropout)
    model = Seq2SeqRnn(encoder, target, decoder, dropout, nn.Linear(width, target.num_embeddings))
    _layers.initialise(model, "xavier", "tanh")
    _recurrent.initialise(model, init, forget_bias)
    if tied:
        model.head.weight = model.tokens.weight
    return model
