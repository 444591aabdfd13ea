"""Recurrent layers (Elman, LSTM, GRU) in three equal forms: packed, masked without packing, and a step at a time."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from dlrun.models import _layers, _text

# B batch, T time, I inputs, H units, G gates x H, L layers x directions, O outputs (H, or 2 H of both directions)

# The state of a cell: (h,) or of an LSTM (h, c), each [B, H]; of a stack of layers each [B, L, H].
State = tuple[Tensor, ...]


def elman(input_BG: Tensor, recurrent_BG: Tensor, state: State) -> State:
    """h' = tanh(W x + b + U h + b'). Source: Elman 1990, "Finding Structure in Time".

    input_BG, recurrent_BG: W x + b and U h + b', here and in the other cells.
    """
    return ((input_BG + recurrent_BG).tanh(),)


def lstm(input_BG: Tensor, recurrent_BG: Tensor, state: State) -> State:
    """Long short-term memory: the sum of both inputs holds i, f, g, o, in this order.

        c' = sigmoid(f) c + sigmoid(i) tanh(g);   h' = sigmoid(o) tanh(c')
    Source: Hochreiter and Schmidhuber 1997, with the forget gate of Gers et al. 2000.
    """
    i, f, g, o = (input_BG + recurrent_BG).chunk(4, dim=1)
    c = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def gru(input_BG: Tensor, recurrent_BG: Tensor, state: State) -> State:
    """Gated recurrent unit: each input holds its share of r, z, n, in this order.

        r = sigmoid(r_x + r_h);   z = sigmoid(z_x + z_h);   n = tanh(n_x + r n_h);   h' = (1 - z) n + z h
    Source: Cho et al. 2014, section 2.3, with the reset gate after the product as in torch and cuDNN.
    """
    r_x, z_x, n_x = input_BG.chunk(3, dim=1)
    r_h, z_h, n_h = recurrent_BG.chunk(3, dim=1)
    z = (z_x + z_h).sigmoid()
    n = (n_x + (r_x + r_h).sigmoid() * n_h).tanh()
    return ((1 - z) * n + z * state[0],)


CELLS: dict[str, Callable[[Tensor, Tensor, State], State]] = {"rnn": elman, "lstm": lstm, "gru": gru}
GATES = {"rnn": 1, "lstm": 4, "gru": 3}
_KERNELS: dict[str, Callable[..., nn.RNNBase]] = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}


def nothing(kind: str, like: Tensor, *shape: int) -> State:
    """The state before anything was read, of this shape."""
    return tuple(like.new_zeros(shape) for _ in range(2 if kind == "lstm" else 1))


class Cell(nn.Module):
    """One step of one layer; weights as in torch's cells: [G, I], [G, H] and two biases."""

    def __init__(self, kind: str, inputs: int, width: int) -> None:
        super().__init__()
        self.kind = kind
        size = GATES[kind] * width
        self.weight_ih = nn.Parameter(torch.empty(size, inputs))
        self.weight_hh = nn.Parameter(torch.empty(size, width))
        self.bias_ih = nn.Parameter(torch.empty(size))
        self.bias_hh = nn.Parameter(torch.empty(size))
        for weight in self.parameters():
            nn.init.uniform_(weight, -1 / math.sqrt(width), 1 / math.sqrt(width))

    def forward(self, x_BI: Tensor, state: State) -> State:
        input_BG = F.linear(x_BI, self.weight_ih, self.bias_ih)
        return CELLS[self.kind](input_BG, F.linear(state[0], self.weight_hh, self.bias_hh), state)


class Recurrent(nn.Module):
    """A stack of recurrent layers, each one- or bidirectional, with dropout between them.

    `forward` runs on torch's kernels; `masked` and `step` are the equations above on the same weights.
    """

    def __init__(self, kind: str, inputs: int, width: int, layers: int, bidirectional: bool, dropout: float) -> None:
        super().__init__()
        self.kind, self.width, self.layers = kind, width, layers
        self.directions = 2 if bidirectional else 1
        self.outputs = self.directions * width
        between = dropout if layers > 1 else 0.0
        self.kernel = _KERNELS[kind](
            inputs, width, layers, batch_first=True, bidirectional=bidirectional, dropout=between
        )

    def forward(self, x_BTI: Tensor, lengths_B: Tensor | None = None) -> tuple[Tensor, State]:
        """Outputs [B, T, O] of the last layer, 0 after a row's end, and the state [B, L, H] each layer ends in.

        Packed: padding is neither read nor paid for, but lengths go to the CPU (None: every row has T).
        """
        if lengths_B is None:
            y_BTO, last = self.kernel(x_BTI)
        else:
            lengths = lengths_B.clamp(min=1).cpu()
            packed, last = self.kernel(pack_padded_sequence(x_BTI, lengths, batch_first=True, enforce_sorted=False))
            y_BTO, _ = pad_packed_sequence(packed, batch_first=True, total_length=x_BTI.shape[1])
        return y_BTO, tuple(part.transpose(0, 1) for part in (last if isinstance(last, tuple) else (last,)))

    def masked(self, x_BTI: Tensor, lengths_B: Tensor | None = None) -> tuple[Tensor, State]:
        """As `forward`, in plain operations without packing: at padding, states stay as they are."""
        is_token_BT = None if lengths_B is None else _text.is_token(x_BTI, lengths_B)
        y_BTO, last = x_BTI, []
        for layer in range(self.layers):
            if layer:
                y_BTO = F.dropout(y_BTO, self.kernel.dropout, self.training)
            ways = [self._way(y_BTO, is_token_BT, layer, reverse) for reverse in range(self.directions)]
            y_BTO = torch.cat([outputs for outputs, _ in ways], dim=2)
            last += [state for _, state in ways]
        return y_BTO, tuple(torch.stack(part, dim=1) for part in zip(*last, strict=True))

    def _way(self, x_BTI: Tensor, is_token_BT: Tensor | None, layer: int, reverse: int) -> tuple[Tensor, State]:
        """One layer in one direction: outputs [B, T, H], and the state it ends in."""
        weight_ih, weight_hh, bias_ih, bias_hh = self.weights(layer, reverse)
        inputs_BTG = F.linear(x_BTI, weight_ih, bias_ih)  # all times at once; only U h has to wait for its turn
        state = nothing(self.kind, x_BTI, x_BTI.shape[0], self.width)
        if torch.compiler.is_exporting():
            return self._way_of_any_length(inputs_BTG, state, is_token_BT, weight_hh, bias_hh, reverse)
        outputs: dict[int, Tensor] = {}
        times = range(x_BTI.shape[1])
        for time in reversed(times) if reverse else times:
            later = CELLS[self.kind](inputs_BTG[:, time], F.linear(state[0], weight_hh, bias_hh), state)
            outputs[time] = later[0]
            if is_token_BT is not None:
                there_B1 = is_token_BT[:, time, None]
                outputs[time] = torch.where(there_B1, later[0], 0.0)
                later = tuple(torch.where(there_B1, new, old) for new, old in zip(later, state, strict=True))
            state = later
        return torch.stack([outputs[time] for time in times], dim=1), state

    def _way_of_any_length(
        self,
        inputs_BTG: Tensor,
        state: State,
        is_token_BT: Tensor | None,
        weight_hh: Tensor,
        bias_hh: Tensor,
        reverse: int,
    ) -> tuple[Tensor, State]:
        """The loop of `_way` as one operation, so that a graph holds for every number of times."""
        if is_token_BT is None:
            is_token_BT = inputs_BTG.new_ones(inputs_BTG.shape[:2], dtype=torch.bool)

        def read(state: State, given: tuple[Tensor, Tensor]) -> tuple[State, Tensor]:
            input_BG, there_B1 = given
            later = CELLS[self.kind](input_BG, F.linear(state[0], weight_hh, bias_hh), state)
            kept = tuple(torch.where(there_B1, new, old) for new, old in zip(later, state, strict=True))
            return kept, torch.where(there_B1, later[0], 0.0)

        state, outputs_TBH = over_time(
            read, state, (inputs_BTG.transpose(0, 1), is_token_BT.transpose(0, 1)[..., None]), bool(reverse)
        )
        return outputs_TBH.transpose(0, 1), state

    def step(self, x_BI: Tensor, state: State) -> tuple[Tensor, State]:
        """One more time of a one-directional stack in evaluation: output [B, H], and the state [B, L, H] after it."""
        after = []
        for layer in range(self.layers):
            weight_ih, weight_hh, bias_ih, bias_hh = self.weights(layer, 0)
            before = tuple(part[:, layer] for part in state)
            inputs_BG, recurrent_BG = F.linear(x_BI, weight_ih, bias_ih), F.linear(before[0], weight_hh, bias_hh)
            after.append(CELLS[self.kind](inputs_BG, recurrent_BG, before))
            x_BI = after[-1][0]
        return x_BI, tuple(torch.stack(part, dim=1) for part in zip(*after, strict=True))

    def weights(self, layer: int, reverse: int) -> list[Tensor]:
        """weight_ih, weight_hh, bias_ih, bias_hh of a layer in a direction."""
        end = f"_l{layer}{'_reverse' if reverse else ''}"
        return [getattr(self.kernel, name + end) for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]


def over_time(
    step: Callable[[Any, Any], tuple[Any, Tensor]], state: Any, given: Any, reverse: bool = False
) -> tuple[Any, Tensor]:
    """A loop over the first dimension of the tensors given, which a graph holds as a loop (ONNX: Scan).

    step(state, given at one time) -> (state, output). Returns the last state, and the outputs [T, …] in order of time.
    """
    from torch._higher_order_ops.scan import scan  # not yet among torch's public names

    return scan(step, state, given, reverse=reverse)


def initialise(model: nn.Module, init: str, forget_bias: float = 1.0) -> None:
    """How the recurrent weights of a model start.

    init: "default" (uniform in 1 / sqrt(H), as torch made them), or "orthogonal": U of each gate orthogonal (Saxe et
    al. 2014), W of each gate uniform (Glorot and Bengio 2010), biases zero.
    forget_bias: what an LSTM's forget gate begins with (Jozefowicz et al. 2015 recommend 1).
    """
    for layer in model.modules():
        if not isinstance(layer, Cell | nn.RNNBase):
            continue
        kind = layer.kind if isinstance(layer, Cell) else _KINDS[layer.mode]
        for name, weight in layer.named_parameters():
            gates = weight.detach().chunk(GATES[kind])
            if init == "orthogonal":
                fill = _FILLS[name.removesuffix("_reverse").rpartition("_l")[0] or name]
                for gate in gates:
                    fill(gate)
            if kind == "lstm" and name.startswith("bias"):  # two biases are added up
                gates[1].fill_(forget_bias if name.startswith("bias_ih") else 0.0)


_KINDS = {"RNN_TANH": "rnn", "LSTM": "lstm", "GRU": "gru"}
_FILLS: dict[str, Callable[[Tensor], Tensor]] = {
    "weight_ih": nn.init.xavier_uniform_,
    "weight_hh": nn.init.orthogonal_,
    "bias_ih": nn.init.zeros_,
    "bias_hh": nn.init.zeros_,
}


def check(hidden: int, layers: int, dropout: float) -> None:
    """Raises: DlrunError for sizes that are none."""
    _layers.require(hidden >= 1, "hidden", hidden, "an integer of at least 1")
    _layers.require(layers >= 1, "layers", layers, "an integer of at least 1")
    _layers.require(0 <= dropout < 1, "dropout", dropout, "a number in [0, 1)")
