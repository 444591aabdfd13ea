"""A model that is a finished ONNX file already (int8, of `dlrun compress`): its bytes go out, by the data's names."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch.utils import _pytree as trees

from dlrun.compression._onnx_graph import OnnxGraph, required
from dlrun.exporting import Source, TensorFact, Traced, any_length, output_names


def traced(source: Source, model: OnnxGraph) -> Traced:
    """What the file takes and gives; preprocessing is outside of it."""
    graph = _file(model).graph
    prepared = source.inputs.prepare(dict(source.rows(3)))
    example = {f"input_{index}": prepared[name] for index, name in enumerate(source.spec.inputs)}
    names = {f"input_{index}": name for index, name in enumerate(source.spec.inputs)}
    lengths = any_length({name: prepared[name] for name in source.spec.inputs})
    free = {names[value.name]: lengths[names[value.name]] for value in graph.input
            if names[value.name] in lengths and not _dims(value)[1].dim_value}  # fmt: skip
    sizes: dict[str, str] = {}
    inputs = []
    for value in graph.input:
        own = "length" if len(free) == 1 else f"{names[value.name]}_length"
        for dim, name in zip(_dims(value), ("batch", own), strict=False):
            sizes.setdefault(dim.dim_param, name)
        inputs.append(_fact(value, names[value.name], str(example[value.name].dtype), sizes))
    said = model(*[prepared[name] for name in source.spec.inputs])
    called = output_names(said, source.spec)
    outputs = [_fact(value, name, str(said.dtype), sizes) for value, name in zip(graph.output, called, strict=True)]
    return Traced(None, source, model, tuple(inputs), tuple(outputs), False, free, trees.tree_structure(said))


def write(traced: Traced, path: Path, labels: Sequence[str]) -> dict[str, Any]:
    """The file, with names and sizes as every export has them. Returns {"opset": …}."""
    assert isinstance(traced.form, OnnxGraph)
    onnx, file = required("onnx"), _file(traced.form)
    names: dict[str, str] = {}
    for values, facts in ((file.graph.input, traced.inputs), (file.graph.output, traced.outputs)):
        for value, fact in zip(values, facts, strict=True):
            names[value.name] = fact.name
            for dim, size in zip(_dims(value), fact.shape, strict=True):
                if isinstance(size, str):
                    dim.dim_param = size
    _rename(file.graph, names)
    file.producer_name = "dlrun"
    if labels:
        onnx.helper.set_model_props(file, {"labels": json.dumps(list(labels), ensure_ascii=False)})
    path.write_bytes(file.SerializeToString())
    return {"opset": next(int(opset.version) for opset in file.opset_import if not opset.domain)}


def _file(model: OnnxGraph) -> Any:
    content: Any = model.graph
    return required("onnx").load_from_string(content.cpu().numpy().tobytes())


def _dims(value: Any) -> Any:
    return value.type.tensor_type.shape.dim


def _fact(value: Any, name: str, kind: str, sizes: Mapping[str, str]) -> TensorFact:
    shape = (dim.dim_value or sizes.get(dim.dim_param, dim.dim_param) for dim in _dims(value))
    return TensorFact(name, kind.removeprefix("torch."), tuple(shape))


def _rename(graph: Any, names: Mapping[str, str]) -> None:
    """Other names for what goes in and comes out, wherever it is read. What has such a name already gets another."""
    taken = {name: f"{name}_inside" for name in names.values() if name not in names}

    def new(name: str) -> str:
        return names.get(name, taken.get(name, name))

    for part in _graphs(graph):
        for value in (*part.input, *part.output, *part.initializer):
            value.name = new(value.name)
        for node in part.node:
            for values in (node.input, node.output):
                values[:] = [new(name) for name in values]


def _graphs(graph: Any) -> Iterator[Any]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _graphs(attribute.g)
