"""What one batch takes: the layers it passes, the bytes they keep for the backward pass."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from dlrun.assembly import Parts
from dlrun.contracts import Batch, Loss


@dataclass(frozen=True)
class Layer:
    """One module that computes. shape: of its (first) output, the batch included; empty where it gives no tensor."""

    name: str
    type: str
    shape: tuple[int, ...]
    parameters: int
    trained: int


@dataclass
class Forward:
    """One forward and backward pass. activation_bytes: kept for the backward, parameters and the batch not counted."""

    loss: float = 0.0
    activation_bytes: int = 0
    gradient_bytes: int = 0
    layers: list[Layer] = field(default_factory=list)


def forward(parts: Parts, batch: Batch) -> Forward:
    """One batch through the task's loss and back, outside torch.compile; gradients stay."""
    found = Forward()
    model = parts.trained
    model.train()
    kept: dict[int, int] = {}
    with _layers(model, found.layers), _kept(kept), parts.state.precision.autocast():
        loss: Loss = parts.task.loss(model, batch)
    outside = [*model.parameters(), *model.buffers(), *batch.values()]
    for tensor in outside:
        kept.pop(tensor.untyped_storage().data_ptr(), None)
    found.activation_bytes = sum(kept.values())
    parts.state.precision.backward(loss.sum / max(1, loss.count))
    found.loss = float(loss.sum.detach()) / max(1, loss.count)
    found.gradient_bytes = sum(size(p.grad) for p in model.parameters() if p.grad is not None)
    return found


@contextlib.contextmanager
def _layers(model: nn.Module, layers: list[Layer]) -> Iterator[None]:
    """Note every module with parameters of its own or without children, in the order of their first calls."""
    seen: set[str] = set()

    def watch(name: str):
        def hook(module: nn.Module, _args: object, output: object) -> None:
            if name in seen:
                return
            seen.add(name)
            first = output[0] if isinstance(output, (tuple, list)) and output else output
            own = list(module.parameters(recurse=False)) or list(module.parameters())
            shape = tuple(first.shape) if isinstance(first, Tensor) else ()
            trained = sum(p.numel() for p in own if p.requires_grad)
            layers.append(Layer(name or "model", type(module).__name__, shape, sum(p.numel() for p in own), trained))

        return hook

    handles = [module.register_forward_hook(watch(name)) for name, module in model.named_modules() if _computes(module)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _computes(module: nn.Module) -> bool:
    has_own = next(iter(module.parameters(recurse=False)), None) is not None
    is_leaf = next(iter(module.children()), None) is None
    return has_own or (is_leaf and not isinstance(module, nn.Identity))


@contextlib.contextmanager
def _kept(storages: dict[int, int]) -> Iterator[None]:
    """Note the storages of all tensors that autograd keeps: address -> bytes."""

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield


def size(tensor: Tensor) -> int:
    """Bytes of a tensor."""
    return tensor.numel() * tensor.element_size()
