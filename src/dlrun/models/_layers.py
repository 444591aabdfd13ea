"""What the own models share: activations, normalisation and initialisation by name, and checks of settings."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from torch import Tensor, nn

from dlrun.contracts import DataSpec
from dlrun.errors import DlrunError, did_you_mean

_T = TypeVar("_T")
_SQRT_2 = math.sqrt(2.0)
# Name -> (layer, gain). The gain keeps the variance of a layer's output near 1 (He et al. 2015, eq. 10, for relu;
# Klambauer et al. 2017 ask for 1 with selu); the smooth cousins of relu borrow its gain.
_ACTIVATIONS: dict[str, tuple[Callable[[], nn.Module], float]] = {
    "relu": (nn.ReLU, _SQRT_2),
    "leaky_relu": (nn.LeakyReLU, nn.init.calculate_gain("leaky_relu", 0.01)),
    "elu": (nn.ELU, _SQRT_2),
    "selu": (nn.SELU, 1.0),
    "gelu": (nn.GELU, _SQRT_2),
    "silu": (nn.SiLU, _SQRT_2),
    "mish": (nn.Mish, _SQRT_2),
    "softplus": (nn.Softplus, 1.0),
    "tanh": (nn.Tanh, 5.0 / 3.0),
    "sigmoid": (nn.Sigmoid, 1.0),
}
_GROUPS = 8  # of group normalisation: at the 16 to 64 channels of the small models each group has 2 to 8


def activation(name: str) -> nn.Module:
    """A fresh layer; never in place, so that hooks on its input see what came in."""
    return _known("activation", name, _ACTIVATIONS)[0]()


def gain(name: str) -> float:
    """The factor on a layer's initial weights that suits the activation after it."""
    return _known("activation", name, _ACTIVATIONS)[1]


def norm_1d(name: str, width: int) -> nn.Module:
    """Normalisation of [B, width]: "batch", "layer" or "none"."""
    makers = {"batch": nn.BatchNorm1d, "layer": nn.LayerNorm, "none": nn.Identity}
    return _known("norm", name, makers)(width)


def norm_2d(name: str, channels: int) -> nn.Module:
    """Normalisation of [B, channels, H, W]: "batch", "group", "layer" (over channels and pixels) or "none"."""
    makers = {
        "batch": nn.BatchNorm2d,
        "group": lambda size: nn.GroupNorm(math.gcd(_GROUPS, size), size),
        "layer": lambda size: nn.GroupNorm(1, size),
        "none": nn.Identity,
    }
    return _known("norm", name, makers)(channels)


def initialise(model: nn.Module, name: str, activation_name: str) -> nn.Module:
    """Set the weights of all linear and convolution layers in place, and their biases to zero.

    name: "kaiming" (normal, variance gain^2 / fan_in; He et al. 2015), "xavier" (uniform, variance
    2 / (fan_in + fan_out); Glorot and Bengio 2010, eq. 16), "orthogonal" (Saxe et al. 2014), "lecun" (normal,
    variance 1 / fan_in), or "default" (as torch made them).
    The layer named `head` has no activation after it, so its gain is 1.
    """
    if name == "default":
        return model
    fill = _known("init", name, _INITIALISERS)
    for path, layer in model.named_modules():
        if isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d):
            fill(layer.weight, 1.0 if path == "head" else gain(activation_name))
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return model


def _normal_fan_in(weight: Tensor, gain_: float) -> None:
    fan_in = weight[0].numel()
    nn.init.normal_(weight, std=gain_ / math.sqrt(fan_in))


_INITIALISERS: dict[str, Callable[[Tensor, float], object]] = {
    "kaiming": _normal_fan_in,
    "xavier": lambda weight, gain_: nn.init.xavier_uniform_(weight),
    "orthogonal": lambda weight, gain_: nn.init.orthogonal_(weight, gain_),
    "lecun": lambda weight, gain_: _normal_fan_in(weight, 1.0),
}


def image_shape(spec: DataSpec, model: str) -> tuple[int, int, int]:
    """(channels, height, width) of the only input. Raises: DlrunError if it is no image."""
    shape = spec.input_shape
    if len(shape) != 3:
        given = "x".join(map(str, shape)) or "a single number"
        raise DlrunError(
            f"model: {model} needs images (channels x height x width); '{spec.inputs[0]}' is {given}",
            "model=mlp takes any shape",
        )
    channels, height, width = shape
    return channels, height, width


def fit_channels(model: nn.Module, channels: int) -> None:
    """Replace the first convolution, in place, where the images have another number of channels than 3."""
    name, first = next((name, module) for name, module in model.named_modules() if isinstance(module, nn.Conv2d))
    if first.in_channels == channels:
        return
    size: Any = first.kernel_size
    stride: Any = first.stride
    padding: Any = first.padding
    fitted = nn.Conv2d(channels, first.out_channels, size, stride, padding, bias=first.bias is not None)
    nn.init.kaiming_normal_(fitted.weight, mode="fan_out", nonlinearity="relu")
    parent, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(parent), attribute, fitted)


def require(condition: bool, setting: str, given: object, expected: str) -> None:
    """Raise DlrunError naming the setting unless the condition holds."""
    if not condition:
        raise DlrunError(f"model.{setting}: expected {expected}, got {given}")


def positive_integers(setting: str, values: Sequence[int]) -> tuple[int, ...]:
    """The values as a tuple. Raises: DlrunError unless all are integers of at least 1."""
    fine = all(isinstance(value, int) and not isinstance(value, bool) and value >= 1 for value in values)
    require(fine, setting, list(values), "a list of integers of at least 1")
    return tuple(values)


def _known(setting: str, name: str, table: Mapping[str, _T]) -> _T:
    if name not in table:
        raise DlrunError(f"model.{setting}: unknown '{name}'", did_you_mean(name, table))
    return table[name]
