"""Weights kept as small integers with scales (or in 16 bits), written out once for layers that compute in floats."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from dlrun.compression import _codebooks

# O rows of a weight (its outputs), I the rest, G groups of a row, R rows of an input

_HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def scales(weight: Tensor, top: int) -> Tensor:
    """The scale of each row, so that its largest value becomes `top`; 1 for rows of zeros. Shape [O, 1, …]."""
    largest_O = weight.detach().abs().flatten(1).amax(1)
    scale_O = torch.where(largest_O > 0, largest_O / top, torch.ones_like(largest_O))
    return scale_O.view(-1, *[1] * (weight.dim() - 1))


def rounded(weight: Tensor, scale: Tensor, top: int) -> Tensor:
    """int8 weight / scale, from -top to top."""
    return (weight.detach() / scale).round().clamp(-top, top).to(torch.int8)


class Kept(nn.Module):
    """A weight as it is kept (a parametrization of torch's): int8 with a scale a row, int4 with a scale for so many
    values of a row and two values a byte, or 16 bits. Written out in float32 once while nothing changes."""

    trains = False

    def __init__(self, weight: Tensor, form: str, group: int) -> None:
        super().__init__()
        columns = weight.shape.numel() // weight.shape[0]
        # No group is longer than a row: what is padded would be kept, too.
        self.form, self.shape, self.group = form, weight.shape, min(group, columns + columns % 2)
        scale, self._start = _kept(weight, form, self.group)
        self.register_buffer("scale", scale)
        self._written: tuple[tuple, Tensor] | None = None

    def right_inverse(self, weight: Tensor) -> tuple[Tensor]:
        """What is stored in place of the weight; asked once."""
        return (self._start,)

    def forward(self, stored: Tensor) -> Tensor:
        scale: Any = self.scale
        if torch.compiler.is_compiling():
            return self._write(stored)
        parts = (stored,) if scale is None else (stored, scale)
        state = tuple((tensor.data_ptr(), tensor._version, tensor.device) for tensor in parts)
        if self._written is None or self._written[0] != state:
            self._written = state, self._write(stored).detach()
        return self._written[1]

    def _write(self, stored: Tensor) -> Tensor:
        scale: Any = self.scale
        if self.form in _HALVES:
            return stored.float()
        if self.form == "int8":
            return stored.float() * scale
        rows, columns = self.shape[0], self.shape.numel() // self.shape[0]
        codes = _codebooks.unpacked(stored, 4, scale.numel() * self.group).view(*scale.shape[:2], self.group)
        values_OI = ((codes - 8).float() * scale).flatten(1)[:, :columns]
        return values_OI.reshape(rows, *self.shape[1:])


def _kept(weight: Tensor, form: str, group: int) -> tuple[Tensor | None, Tensor]:
    weight = weight.detach().float()
    if form in _HALVES:
        return None, weight.to(_HALVES[form])
    if form == "int8":
        scale = scales(weight, 127)
        return scale, rounded(weight, scale, 127)
    flat_OI = weight.flatten(1)
    flat_OI = nn.functional.pad(flat_OI, (0, -flat_OI.shape[1] % group))
    groups = flat_OI.view(len(flat_OI), -1, group)
    scale_OG1 = scales(groups.reshape(-1, group), 7).view(*groups.shape[:2], 1)
    codes = (rounded(groups, scale_OG1, 7).short() + 8).to(torch.uint8)
    return scale_OG1, _codebooks.packed(codes, 4)


def keep(model: nn.Module, name: str, form: str, group: int) -> None:
    """Keep the weight of this name in such a form, in place."""
    path, _, attribute = name.rpartition(".")
    layer = model.get_submodule(path)
    weight = layer._parameters.pop(attribute)
    assert weight is not None
    layer.register_buffer(attribute, weight.detach().float())  # a parameter could not be of integers
    parametrize.register_parametrization(layer, attribute, Kept(weight, form, group))
    if isinstance(layer, nn.RNNBase) and not layer._forward_pre_hooks:
        layer.register_forward_pre_hook(_codebooks._gather)
        layer.register_forward_hook(_codebooks._let_go)


def written_out(model: nn.Module) -> nn.Module:
    """The model with plain weights in place of those that are kept otherwise or have codebooks: a copy, if it has such.

    torch's own `remove_parametrizations` would change the class that a layer shares with its copy.
    """
    if not any(isinstance(part, Kept | _codebooks.Book) for part in model.modules()):
        return model
    model = copy.deepcopy(model)
    for layer in model.modules():
        kept = dict(getattr(layer, "parametrizations", {}).items())
        if kept and all(isinstance(part, Kept | _codebooks.Book) for parts in kept.values() for part in parts):
            weights = {name: getattr(layer, name).detach() for name in kept}
            layer.__class__ = type(layer).__bases__[0]
            del layer._modules["parametrizations"]
            for name, weight in weights.items():
                layer.register_buffer(name, weight)
    return model


def copies(model: nn.Module) -> list[Tensor]:
    """The weights in float32 that a model holds beside those that are kept otherwise."""
    kept = [part for part in model.modules() if isinstance(part, Kept | _codebooks.Book)]
    return [part._written[1] for part in kept if part._written is not None]


class Int8Linear(nn.Module):
    """A linear layer on int8 numbers: weights with a scale a row, inputs rounded at each call with a scale a row
    (a token), so that what is said of an example depends on no other one.

    Source: Yao et al. 2022, "ZeroQuant", section 4.1, for a scale a token.
    """

    trains = False

    def __init__(self, outputs: int, inputs: int, bias: Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = outputs, inputs
        self.weight_int8: Tensor
        self.scale: Tensor
        self.register_buffer("weight_int8", torch.zeros(outputs, inputs, dtype=torch.int8))
        self.register_buffer("scale", torch.ones(outputs))
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone(), requires_grad=False)

    @staticmethod
    def of(weight_OI: Tensor, bias: Tensor | None) -> Int8Linear:
        """From the weight of a linear layer."""
        layer = Int8Linear(weight_OI.shape[0], weight_OI.shape[1], bias).to(weight_OI.device)
        scale = scales(weight_OI, 127)
        layer.weight_int8 = rounded(weight_OI, scale, 127)
        layer.scale = scale.flatten()
        return layer

    @property
    def weight(self) -> Tensor:
        """The weight as floats [O, I], for what reads it past the layer."""
        return self.weight_int8.float() * self.scale[:, None]

    def forward(self, inputs: Tensor) -> Tensor:
        rows_RI = inputs.reshape(-1, self.in_features).float()
        scale_R1 = rows_RI.abs().amax(1, keepdim=True).clamp(min=1e-30) / 127
        codes_RI = (rows_RI * scale_R1.reciprocal()).round()
        said_RO = self._product(codes_RI) * self.scale * scale_R1
        if self.bias is not None:
            said_RO = said_RO + self.bias
        return said_RO.view(*inputs.shape[:-1], self.out_features).to(inputs.dtype)

    def _product(self, codes_RI: Tensor) -> Tensor:
        """Sums of products of integers, as floats; integer kernels are the processor's."""
        weight_IO = self.weight_int8.t()
        if codes_RI.device.type == "cpu" and not torch.compiler.is_exporting():
            return torch._int_mm(codes_RI.to(torch.int8), weight_IO).float()
        return codes_RI @ weight_IO.float()
