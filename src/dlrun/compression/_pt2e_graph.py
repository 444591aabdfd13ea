"""A model as a graph that torch itself exported and torchao quantized (PT2E), compiled where there is a compiler."""

from __future__ import annotations

import contextlib
import logging
import shutil
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dlrun.compression._onnx_graph import required
from dlrun.contracts import CompressionTools, Exportable
from dlrun.errors import DlrunError

_QUANTIZER = "torchao.quantization.pt2e.quantizer.x86_inductor_quantizer"


class Pt2eGraph(nn.Module):
    """Tensors in, tensors out. compiled: whether inductor is to run it, where a C++ compiler is found."""

    trains = False
    hides = True

    def __init__(self, graph: Any, compiled: bool) -> None:
        super().__init__()
        self.graph = graph
        self._compiled = compiled and any(map(shutil.which, ("g++", "clang++")))
        self._fast: Any = None

    def forward(self, *inputs: Tensor) -> Any:
        if not self._compiled:
            return self.graph(*inputs)
        if self._fast is None:
            self._fast = torch.compile(self.graph, dynamic=False)
        import torch._inductor.config as inductor  # a second to import, and only compiling needs it

        with torch.no_grad(), inductor.patch(freezing=True):  # weights as constants: else nothing runs in int8
            return self._fast(*inputs)

    def train(self, mode: bool = True) -> Pt2eGraph:
        """An exported graph has one mode."""
        self.training = False
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_fast": None}


def require_extras() -> None:
    """Raises: DlrunError where torchao is missing."""
    required(_QUANTIZER)


def quantized(
    model: nn.Module, tools: CompressionTools, examples: int, compiled: bool
) -> tuple[Pt2eGraph, dict[str, Any]]:
    """The graph, calibrated, and what rebuilds it: shapes and kinds of its inputs, every scale and zero point."""
    names = tools.spec.inputs
    first = next(iter(tools.batches("train", 4)))
    inputs = [first[name].cpu() for name in names]
    graph = _prepared(model.cpu(), inputs)
    try:
        for batch in tools.batches("train", examples):
            graph(*[batch[name].cpu() for name in names])
    except (AssertionError, RuntimeError) as error:  # a guard of the export: only the number of examples may vary
        raise DlrunError(
            f"quantize_static: the graph that torch makes of {type(model).__name__} reads inputs of one size, and "
            "these have several",
            "compression.quantize_static.backend=onnxruntime, or compression=quantize_dynamic",
        ) from error
    graph = _converted(graph)
    facts = [{"shape": list(tensor.shape), "kind": str(tensor.dtype).removeprefix("torch.")} for tensor in inputs]
    plan = {"quantizer": "x86_inductor", "inputs": facts, "points": [list(args) for args in _points(graph)]}
    return Pt2eGraph(graph, compiled), plan


def rebuilt(model: nn.Module, plan: Any, compiled: bool) -> Pt2eGraph:
    """The same graph from the plan, made on zeros; its weights are loaded afterwards. Raises: DlrunError."""
    inputs = [torch.zeros(fact["shape"], dtype=getattr(torch, fact["kind"])) for fact in plan["inputs"]]
    graph = _prepared(model.cpu(), inputs)
    graph(*inputs)
    graph = _converted(graph)
    if len(list(_points(graph))) != len(plan["points"]):
        raise DlrunError("plan.json: this version of torch makes another graph of the model than the plan was made for")
    _set_points(graph, plan["points"])
    return Pt2eGraph(graph, compiled)


def _prepared(model: nn.Module, inputs: Sequence[Tensor]) -> Any:
    pt2e = required("torchao.quantization.pt2e.quantize_pt2e")
    quantizers = required(_QUANTIZER)
    form = model.exportable() if isinstance(model, Exportable) else model
    shapes = tuple({0: torch.export.Dim.AUTO} for _ in inputs)
    try:
        with _quiet():
            # The default, strict=False, gives partitions with two outputs where a module is used twice.
            program = torch.export.export(form.eval(), tuple(inputs), dynamic_shapes=(*shapes,), strict=True)
            quantizer = quantizers.X86InductorQuantizer()
            quantizer.set_global(quantizers.get_default_x86_inductor_quantization_config())
            return pt2e.prepare_pt2e(program.module(), quantizer)
    except Exception as error:  # what cannot be traced says so in many ways
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DlrunError(
            f"quantize_static: {type(model).__name__} cannot be written as one graph: {reason[:160]}",
            "compression.quantize_static.backend=onnxruntime, or compression=quantize_dynamic",
        ) from error


def _converted(graph: Any) -> Any:
    """int8 weights in, float weights out: those that no node reads would stay in the file."""
    with _quiet():
        graph = required("torchao.quantization.pt2e.quantize_pt2e").convert_pt2e(graph)
    read = {str(node.target) for node in graph.graph.nodes if node.op == "get_attr"}
    for name in [name for name, _ in (*graph.named_parameters(), *graph.named_buffers()) if name not in read]:
        path, _, attribute = name.rpartition(".")
        delattr(graph.get_submodule(path), attribute)
    return graph


def _points(graph: Any) -> Iterator[tuple[float, int]]:
    """Scale and zero point of each activation, in the order of the graph."""
    for node in graph.graph.nodes:
        if _has_point(node):
            yield float(node.args[1]), int(node.args[2])


def _has_point(node: Any) -> bool:
    return node.op == "call_function" and "quantize_per_tensor.default" in str(node.target)


def _set_points(graph: Any, points: Sequence[Sequence[float]]) -> None:
    nodes = [node for node in graph.graph.nodes if _has_point(node)]
    for node, (scale, zero) in zip(nodes, points, strict=True):
        node.args = (node.args[0], float(scale), int(zero), *node.args[3:])
    graph.recompile()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
