"""Models as ONNX graphs that ONNX Runtime runs: names, loops, lengths, and what is said where one cannot be written."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.unit.fake_compression import PAIRS, TEXTS, WINDOWS, Tools, pairs_net, rows, said, texts_net, windows_net
from torch import nn
from torch.nn.utils import parametrize

from dlrun.compression import (
    _exporter,
    _onnx_graph,
    _quantized,
    cluster,
    quantize_dynamic,
    quantize_static,
    quantize_weights,
)
from dlrun.contracts import DataSpec
from dlrun.errors import DlrunError
from dlrun.models import rnn

onnx = pytest.importorskip("onnx", reason="the extra 'compress' is not installed")


def test_names_that_the_body_of_a_node_reads_are_kept():
    make, kind = onnx.helper, onnx.TensorProto.FLOAT
    result = make.make_tensor_value_info("body_out", kind, [2])
    body = make.make_graph([make.make_node("Add", ["doubled", "x"], ["body_out"])], "body", [], [result])
    nodes = [
        make.make_node("Add", ["x", "x"], ["doubled"]),
        make.make_node("Mul", ["x", "weight"], ["unused"]),
        make.make_node("If", ["yes"], ["y"], then_branch=body, else_branch=body),
    ]
    graph = make.make_graph(
        nodes, "whole", [make.make_tensor_value_info("x", kind, [2])], [make.make_tensor_value_info("y", kind, [2])],
        [make.make_tensor("yes", onnx.TensorProto.BOOL, [], [True]), make.make_tensor("weight", kind, [2], [1.0, 1.0])],
    )  # fmt: skip
    _onnx_graph._shorten(graph)
    onnx.checker.check_model(make.make_model(graph, opset_imports=[make.make_opsetid("", 18)]))
    assert graph.node[0].output[0] == "doubled" and graph.initializer[1].name in "01"


def test_why_an_exporter_refuses_is_one_line_without_colours():
    error = RuntimeError("\x1b[96mThis is step 1/3\x1b[0m of exporting. Next steps:\nmore")
    assert _exporter.reason(error) == "This is step 1/3 of exporting."
    assert _exporter.reason(KeyError()) == "KeyError"


def test_an_exporters_cause_is_told_and_not_how_far_it_came():
    errors = pytest.importorskip("torch.onnx").errors
    outer = errors.OnnxExporterError("\x1b[96mstep 3/3\x1b[0m Next steps:")
    outer.__cause__ = ValueError("no operator 'x'\n  at line 3")
    assert _exporter.reason(outer) == "no operator 'x'"


@pytest.mark.slow
def test_the_loops_of_a_recurrent_model_run_in_int8():
    model = texts_net("rnn")
    small, plan = quantize_dynamic.build(TEXTS, backend="onnxruntime").compress(copy.deepcopy(model), Tools(TEXTS))
    wanted = said(model, TEXTS)
    assert (said(small, TEXTS) - wanted).norm() < 0.1 * wanted.norm() and "graph_bytes" in plan
    content: Any = small.graph
    graph = onnx.load_from_string(content.numpy().tobytes()).graph
    assert not [tensor.name for tensor in every_tensor(graph) if tensor.data_type == onnx.TensorProto.FLOAT
                and len(tensor.dims) == 2 and min(tensor.dims) >= 16]  # fmt: skip


@pytest.mark.slow
def test_a_static_graph_of_a_recurrent_model_runs_and_says_what_stays_float():
    model = texts_net("rnn")
    small, plan = quantize_static.build(TEXTS, examples=16).compress(copy.deepcopy(model), Tools(TEXTS))
    wanted = said(model, TEXTS)
    assert (said(small, TEXTS) - wanted).norm() < 0.2 * wanted.norm()
    assert "recurrent layers (recurrent.kernel) stay float32" in plan["report"]["note"]
    assert "compression=quantize_dynamic" in plan["report"]["note"]


def test_what_says_texts_says_that_its_graph_does_not_or_is_refused_where_texts_are_scored():
    spoken = _onnx_graph.spoken(windows_net(), Tools(WINDOWS), "quantize_static")
    assert spoken["generation"].startswith("none: the graph predicts the token")
    assert _onnx_graph.spoken(texts_net("rnn"), Tools(TEXTS), "quantize_static") == {}
    scored = SimpleNamespace(task=SimpleNamespace(generates=False))
    with pytest.raises(DlrunError, match="Transformer as one graph does not generate") as refused:
        _onnx_graph.spoken(pairs_net(), scored, "quantize_static")  # type: ignore[arg-type]
    assert refused.value.code == 2


def test_weights_written_out_are_those_of_the_model_which_stays_as_it_is():
    for build in (cluster.build(TEXTS), quantize_weights.build(TEXTS, format="int4")):
        model, _ = build.compress(texts_net("rnn"), Tools(TEXTS))
        plain = _quantized.written_out(model)
        assert torch.equal(said(plain, TEXTS), said(model, TEXTS))
        assert not any(parametrize.is_parametrized(layer) for layer in plain.modules())
        assert any(parametrize.is_parametrized(layer) for layer in model.modules())
        assert _quantized.written_out(plain) is plain


@pytest.mark.slow
def test_a_source_and_its_translation_have_lengths_of_their_own():
    small = _onnx_graph.as_module(_onnx_graph.plain(pairs_net(), Tools(PAIRS)))
    batch = rows(PAIRS)
    given = [batch["source"][:3, :7], batch["source_lengths"][:3].clamp(max=7), batch["tokens"][:3, :4]]
    torch.testing.assert_close(small(*given), pairs_net()(*given), atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_sound_may_be_longer_than_the_example_that_the_graph_was_written_with():
    spec = DataSpec(("spectrogram", "frames"), "label", {"classes": 3, "features": 8, "length": 12},
                    {"spectrogram": (12, 8), "frames": ()})  # fmt: skip
    batch = {"spectrogram": torch.randn(4, 12, 8), "frames": torch.tensor([12, 7, 3, 9])}
    model = rnn.build(spec, width=8, hidden=8, dropout=0.0).eval()
    tools: Any = SimpleNamespace(spec=spec, batches=lambda *_: iter([batch]))
    small = _onnx_graph.as_module(_onnx_graph.plain(copy.deepcopy(model), tools))
    given = torch.randn(2, 17, 8), torch.tensor([17, 5])
    torch.testing.assert_close(small(*given), model(*given), atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_a_model_that_is_no_graph_is_refused_without_the_exporters_own_advice():
    class Moody(nn.Module):
        def forward(self, tokens, lengths):
            return tokens if tokens.sum() > 0 else -tokens

    with pytest.raises(DlrunError, match="Moody cannot be written as one graph") as refused:
        _onnx_graph.plain(Moody(), Tools(TEXTS))
    assert "\x1b" not in str(refused.value) and "Next steps" not in str(refused.value)


def every_tensor(graph):
    """Constants of a graph and of the graphs in it."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from every_tensor(attribute.g)
