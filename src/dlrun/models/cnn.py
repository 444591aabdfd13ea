"""Small convolutional network: a few stages that halve the image, then a linear head."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from dlrun.contracts import DataSpec
from dlrun.models import _layers, _members

# B batch, C channels, H height, W width, D features, K classes


class Cnn(nn.Module):
    """Stages of convolutions, a readout that flattens, and a linear head."""

    def __init__(self, stages: list[nn.Sequential], readout: nn.Sequential, head: nn.Linear) -> None:
        super().__init__()
        self.stages = nn.Sequential(*stages)
        self.readout = readout
        self.head = head

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Images to logits [B, K]."""
        return self.head(self.readout(self.stages(x_BCHW)))


def build(
    spec: DataSpec,
    *,
    channels: tuple[int, ...] = (32, 64, 128),
    convolutions: int = 2,
    kernel: int = 3,
    pooling: Literal["max", "average"] = "max",
    readout: Literal["flatten", "average"] = "flatten",
    head_width: int = 0,
    dropout: float = 0.2,
    activation: Literal[
        "relu", "leaky_relu", "elu", "selu", "gelu", "silu", "mish", "softplus", "tanh", "sigmoid"
    ] = "relu",
    norm: Literal["batch", "group", "layer", "none"] = "batch",
    init: Literal["kaiming", "xavier", "orthogonal", "lecun", "default"] = "kaiming",
    members: int = 1,
) -> nn.Module:
    """A small convolutional network for images of any size.

    Settings:
    channels: width of each stage, one number a stage; every stage halves the image while it can
    convolutions: convolutions in each stage, at least 1
    kernel: side of the convolutions in pixels, odd
    pooling: how a stage halves the image
    readout: flatten keeps where a feature was seen; average forgets it, and suits large images
    head_width: units of a hidden layer before the head; 0 for none
    dropout: share of features set to zero before the head (and before the hidden layer) while training, in [0, 1)
    activation: after every convolution and hidden layer
    norm: normalisation before every activation of a convolution
    init: how weights start; default leaves them as torch made them
    members: that share its weights, each with vectors of its own (a batch ensemble, Wen et al. 2020); 1 for none
    """
    shape = _layers.image_shape(spec, "cnn")
    sizes = _layers.positive_integers("channels", channels)
    _layers.require(bool(sizes), "channels", list(sizes), "at least one stage")
    _layers.require(convolutions >= 1, "convolutions", convolutions, "an integer of at least 1")
    _layers.require(kernel >= 1 and kernel % 2 == 1, "kernel", kernel, "an odd number of pixels")
    _layers.require(head_width >= 0, "head_width", head_width, "an integer of at least 0")
    _layers.require(0 <= dropout < 1, "dropout", dropout, "a number in [0, 1)")
    stages, (num_channels, height, width) = _stages(shape, sizes, convolutions, kernel, pooling, norm, activation)
    num_features = num_channels if readout == "average" else num_channels * height * width
    flat = _readout(readout, num_features, head_width, dropout, activation)
    head = nn.Linear(head_width or num_features, spec.num_outputs)
    return _members.several(_layers.initialise(Cnn(stages, flat, head), init, activation), members, spec)


def _stages(
    shape: tuple[int, int, int],
    sizes: tuple[int, ...],
    convolutions: int,
    kernel: int,
    pooling: str,
    norm: str,
    activation: str,
) -> tuple[list[nn.Sequential], tuple[int, int, int]]:
    """The stages, and the shape (C, H, W) that comes out of the last."""
    before, height, width = shape
    stages = []
    for after in sizes:
        halve = min(height, width) >= 4  # to 2x2 at the least, so that batch norm can do with a batch of one
        stages.append(_stage(before, after, convolutions, kernel, pooling if halve else "none", norm, activation))
        before, height, width = (after, height // 2, width // 2) if halve else (after, height, width)
    return stages, (before, height, width)


def _stage(
    before: int, after: int, convolutions: int, kernel: int, pooling: str, norm: str, activation: str
) -> nn.Sequential:
    """Convolutions of one stage. The image is halved right after the first one: all that follows, norm and
    activation included, then costs a quarter (measured on 2 CPU cores: half the time of a training step)."""
    poolings = {"max": nn.MaxPool2d, "average": nn.AvgPool2d}
    layers: list[nn.Module] = []
    for index in range(convolutions):
        # A normalisation subtracts the mean, and a bias with it.
        layers.append(nn.Conv2d(before, after, kernel, padding=kernel // 2, bias=norm == "none"))
        if index == 0 and pooling in poolings:
            layers.append(poolings[pooling](2))
        layers += [_layers.norm_2d(norm, after), _layers.activation(activation)]
        before = after
    return nn.Sequential(*layers)


def _readout(readout: str, num_features: int, head_width: int, dropout: float, activation: str) -> nn.Sequential:
    """[B, C, H, W] to [B, D]."""
    layers: list[nn.Module] = [nn.AdaptiveAvgPool2d(1)] if readout == "average" else []
    layers += [nn.Flatten(), nn.Dropout(dropout)]
    if head_width:
        layers += [nn.Linear(num_features, head_width), _layers.activation(activation), nn.Dropout(dropout)]
    return nn.Sequential(*layers)
