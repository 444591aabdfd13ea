"""Recurrent layers and attention of a recurrent decoder: against torch's with the same weights, and written out."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from dlrun.contracts import DataSpec
from dlrun.models import _attention, _recurrent, rnn, seq2seq_rnn

CELLS = ["rnn", "lstm", "gru"]


def assert_close(left: Tensor, right: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(left, right, rtol=tolerance, atol=tolerance)


# ---------------------------------------------------------------- recurrent


@pytest.mark.parametrize("kind", CELLS)
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("layers", [1, 2])
def test_the_written_out_cells_equal_torchs_packed_layers_with_the_weights_copied(kind, bidirectional, layers):
    torch.manual_seed(0)
    theirs = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}[kind](
        5, 4, layers, batch_first=True, bidirectional=bidirectional
    )
    own = _recurrent.Recurrent(kind, 5, 4, layers, bidirectional, 0.0)
    own.kernel.load_state_dict(theirs.state_dict())
    x, lengths = torch.randn(3, 7, 5), torch.tensor([4, 7, 1])
    outputs, last = theirs(pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False))
    outputs, _ = pad_packed_sequence(outputs, batch_first=True)
    last = [part.transpose(0, 1) for part in (last if isinstance(last, tuple) else (last,))]
    for form in (own, own.masked):
        y, state = form(x, lengths)
        assert_close(y, outputs)
        for mine, other in zip(state, last, strict=True):
            assert_close(mine, other)


@pytest.mark.parametrize("kind", CELLS)
def test_the_masked_form_has_the_packed_forms_gradients(kind):
    torch.manual_seed(0)
    own = _recurrent.Recurrent(kind, 3, 4, 2, True, 0.0)
    x, lengths = torch.randn(3, 6, 3), torch.tensor([6, 2, 4])
    gradients = []
    for form in (own, own.masked):
        y, state = form(x, lengths)
        gradients.append(torch.autograd.grad(y.square().sum() + state[0].sum(), list(own.parameters())))
    for packed, masked in zip(*gradients, strict=True):
        assert_close(masked, packed, 1e-4)


@pytest.mark.parametrize("kind", CELLS)
def test_a_cell_equals_torchs_cell_with_the_weights_copied(kind):
    torch.manual_seed(0)
    theirs = {"rnn": nn.RNNCell, "lstm": nn.LSTMCell, "gru": nn.GRUCell}[kind](5, 4)
    own = _recurrent.Cell(kind, 5, 4)
    own.load_state_dict(theirs.state_dict())
    x, state = torch.randn(3, 5), tuple(torch.randn(3, 4) for _ in range(2 if kind == "lstm" else 1))
    expected = theirs(x, state if kind == "lstm" else state[0])
    for mine, other in zip(own(x, state), expected if kind == "lstm" else (expected,), strict=True):
        assert_close(mine, other)


@pytest.mark.parametrize("kind", CELLS)
def test_steps_equal_the_whole_sequence(kind):
    torch.manual_seed(0)
    own = _recurrent.Recurrent(kind, 5, 4, 2, False, 0.0).eval()
    x = torch.randn(3, 6, 5)
    outputs, last = own(x)
    state = _recurrent.nothing(kind, x, 3, 2, 4)
    for time in range(6):
        y, state = own.step(x[:, time], state)
        assert_close(y, outputs[:, time])
    for mine, other in zip(state, last, strict=True):
        assert_close(mine, other)


@pytest.mark.parametrize("kind", CELLS)
def test_orthogonal_weights_are_orthogonal_gate_by_gate_and_an_lstm_begins_by_remembering(kind):
    own = _recurrent.Recurrent(kind, 3, 4, 2, True, 0.0)
    _recurrent.initialise(own, "orthogonal", forget_bias=2.0)
    for layer in range(2):
        for reverse in range(2):
            _, weight, first, second = own.weights(layer, reverse)
            for gate in weight.chunk(_recurrent.GATES[kind]):
                assert_close(gate @ gate.T, torch.eye(4))
            gates = (first + second).view(-1, 4)
            forget = torch.zeros_like(gates)
            if kind == "lstm":
                forget[1] = 2.0
            assert torch.equal(gates, forget)


def test_a_recurrent_classifier_reads_numbers_where_the_data_has_features():
    spec = DataSpec(("series", "lengths"), "label", {"features": 5, "classes": 3}, {"series": (9, 5), "lengths": ()})
    model = rnn.build(spec, hidden=4).eval()
    series, lengths = torch.randn(2, 9, 5), torch.tensor([9, 4])
    assert_close(model(series, lengths)[1], model(series[1:, :4], lengths[1:])[0])


# ---------------------------------------------------------------- attention of a recurrent decoder


def test_bahdanaus_attention_equals_its_formula():
    torch.manual_seed(0)
    looks = _attention.Bahdanau(query=4, memory=6, width=5)
    states, query = torch.randn(2, 3, 6), torch.randn(2, 4)
    memory = looks.remember(states, torch.tensor([[True, True, True], [True, True, False]]))
    for row, length in enumerate((3, 2)):
        keys, asked = looks.keys, looks.query.weight @ query[row]
        scores = [
            (looks.score.weight[0] @ torch.tanh(asked + keys.weight @ states[row, s] + keys.bias)).item()
            for s in range(length)
        ]
        total = sum(map(math.exp, scores))
        expected = sum(math.exp(score) / total * states[row, s] for s, score in enumerate(scores))
        assert_close(looks(query, memory)[row], expected)


def test_luongs_attention_equals_its_formula():
    torch.manual_seed(0)
    looks = _attention.Luong(query=4, memory=6)
    states, query = torch.randn(2, 3, 6), torch.randn(2, 4)
    memory = looks.remember(states, torch.tensor([[True, True, True], [True, True, False]]))
    for row, length in enumerate((3, 2)):
        scores = [(query[row] @ looks.keys.weight @ states[row, s]).item() for s in range(length)]
        total = sum(map(math.exp, scores))
        expected = sum(math.exp(score) / total * states[row, s] for s, score in enumerate(scores))
        assert_close(looks(query, memory)[row], expected)


@pytest.mark.parametrize("attention", ["bahdanau", "luong"])
def test_the_decoder_equals_its_equations_with_torchs_cell(attention):
    torch.manual_seed(0)
    sizes = {"vocabulary": 9, "target_vocabulary": 8, "length": 4, "target_length": 3}
    spec = DataSpec(("source", "source_lengths", "tokens"), "targets", sizes, {})
    model = seq2seq_rnn.build(spec, attention=attention, width=5, hidden=4).eval()
    source, lengths, tokens = torch.randint(9, (2, 4)), torch.tensor([4, 2]), torch.randint(8, (2, 3))
    encoder, decoder, cell = model.encoder, model.decoder, nn.GRUCell(10 if attention == "luong" else 5 + 8, 4)
    cell.load_state_dict(decoder.cells[0].state_dict())
    packed = pack_padded_sequence(encoder.tokens(source), lengths, batch_first=True, enforce_sorted=False)
    states, last = encoder.recurrent.kernel(packed)
    states, _ = pad_packed_sequence(states, batch_first=True)
    s = encoder.bridges[0](torch.cat([last[0], last[1]], 1)).tanh()
    memory = decoder.attention.remember(states, torch.arange(4) < lengths[:, None])
    readout, logits = torch.zeros(2, 5), []
    for y in model.tokens(tokens).unbind(1):
        if attention == "luong":
            s = cell(torch.cat([y, readout], 1), s)
            seen = [s, decoder.attention(s, memory)]
        else:
            context = decoder.attention(s, memory)
            s = cell(torch.cat([y, context], 1), s)
            seen = [s, context, y]
        readout = decoder.readout(torch.cat(seen, 1)).tanh()
        logits.append(model.head(readout))
    assert_close(model(source, lengths, tokens), torch.stack(logits, 1))
