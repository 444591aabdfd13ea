"""`dlrun export` of compressed models: what a format has no word for is refused, all else is what the model is."""

from __future__ import annotations

import importlib
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.unit.fake_compression import TEXTS, Tools, texts_net

from dlrun import _exporting_weights as weights
from dlrun.errors import DlrunError

UNTRAINED = {"finetune": None}


def exported(method: str, **settings: Any) -> Any:
    """A small BERT after one method, as the exporter is given it."""
    tools = Tools(TEXTS)
    room = importlib.import_module(f"dlrun.compression.{method}")
    model, _ = room.build(TEXTS, **settings).compress(texts_net("transformers"), tools)
    inputs = SimpleNamespace(prepare=lambda batch: batch)
    return SimpleNamespace(model=model, spec=TEXTS, inputs=inputs, rows=lambda count: next(tools.batches("", count)))


def test_a_graph_that_torch_quantized_is_no_onnx_file():
    from torch import nn

    from dlrun import exporting
    from dlrun.compression._pt2e_graph import Pt2eGraph

    source: Any = SimpleNamespace(model=Pt2eGraph(nn.Identity(), False))
    with pytest.raises(DlrunError, match="as ONNX its outputs differ") as raised:
        exporting.traced(source, "onnx")
    assert raised.value.code == 2 and "backend=onnxruntime" in str(raised.value.hint)


# ---------------------------------------------------------------- transformers


@pytest.mark.parametrize(
    ("method", "settings"),
    [("low_rank", UNTRAINED | {"rank": 0.5}), ("drop_heads", UNTRAINED | {"share": 0.5}),
     ("prune_channels", UNTRAINED | {"macs": 0.8}), ("quantize_dynamic", {})],
)  # fmt: skip
def test_a_shape_that_transformers_has_no_class_for_is_no_folder_of_it(tmp_path, method, settings):
    if method == "prune_channels":
        pytest.importorskip("torch_pruning", reason="the extra 'compress' is not installed")
    with pytest.raises(DlrunError, match="compressed into a shape that transformers has no class for") as raised:
        weights.write_transformers(exported(method, **settings), tmp_path)
    assert raised.value.code == 2 and "--format onnx" in str(raised.value.hint) and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("method", "settings"),
    [("cluster", {}), ("quantize_weights", {"format": "int4"}), ("drop_layers", UNTRAINED | {"share": 0.5})],
)
def test_what_is_compressed_goes_out_as_floats_that_transformers_loads_whole(tmp_path, method, settings):
    import transformers

    source = exported(method, **settings)
    facts = weights.write_transformers(source, tmp_path)
    read: Any = transformers.BertModel.from_pretrained(tmp_path, add_pooling_layer=False, output_loading_info=True)
    _, found = read
    assert not any(found[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    again, batch = weights.read_transformers(source, tmp_path, facts), source.rows(4)
    inputs = [batch[name] for name in TEXTS.inputs]
    with torch.no_grad():
        assert torch.equal(again(*inputs), source.model(*inputs))
