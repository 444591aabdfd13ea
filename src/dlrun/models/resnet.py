"""Residual network for small images (CIFAR): depth 20, 32, 44, 56 or 110."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from dlrun.contracts import DataSpec
from dlrun.errors import DlrunError
from dlrun.models import _layers, _members

# B batch, C channels, H height, W width, K classes


class PadShortcut(nn.Module):
    """Option A of He et al. 2016: every second pixel, new channels filled with zeros; no parameters."""

    def __init__(self, new_channels: int, stride: int) -> None:
        super().__init__()
        self.new_channels, self.stride = new_channels, stride

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BCHW = x_BCHW[:, :, :: self.stride, :: self.stride]
        return F.pad(x_BCHW, (0, 0, 0, 0, 0, self.new_channels))


class Block(nn.Module):
    """Two 3x3 convolutions, and a shortcut around them (None: the plain network of the paper's comparison)."""

    def __init__(
        self, before: int, after: int, stride: int, activation: str, norm: str, shortcut: nn.Module | None
    ) -> None:
        super().__init__()
        bias = norm == "none"
        self.conv1 = nn.Conv2d(before, after, 3, stride, padding=1, bias=bias)
        self.norm1 = _layers.norm_2d(norm, after)
        self.activation1 = _layers.activation(activation)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=bias)
        self.norm2 = _layers.norm_2d(norm, after)
        self.activation2 = _layers.activation(activation)
        self.shortcut = shortcut

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y_BCHW = self.activation1(self.norm1(self.conv1(x_BCHW)))
        y_BCHW = self.norm2(self.conv2(y_BCHW))
        if self.shortcut is not None:
            y_BCHW = y_BCHW + self.shortcut(x_BCHW)
        return self.activation2(y_BCHW)


class ResNet(nn.Module):
    """A stem, three stages of blocks, an average over the pixels, and a linear head."""

    def __init__(self, stem: nn.Sequential, stages: list[nn.Sequential], head: nn.Linear) -> None:
        super().__init__()
        self.stem = stem
        self.stages = nn.Sequential(*stages)
        self.head = head

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Images to logits [B, K]."""
        return self.head(self.stages(self.stem(x_BCHW)).mean((2, 3)))


def build(
    spec: DataSpec,
    *,
    depth: int = 20,
    width: int = 16,
    skip: bool = True,
    shortcut: Literal["pad", "projection"] = "pad",
    activation: Literal[
        "relu", "leaky_relu", "elu", "selu", "gelu", "silu", "mish", "softplus", "tanh", "sigmoid"
    ] = "relu",
    norm: Literal["batch", "group", "layer", "none"] = "batch",
    init: Literal["kaiming", "xavier", "orthogonal", "lecun", "default"] = "kaiming",
    zero_init_residual: bool = False,
    members: int = 1,
) -> nn.Module:
    """The residual network of He et al. 2016, "Deep Residual Learning for Image Recognition", section 4.2.

    Settings:
    depth: layers with weights, 6n + 2 with n blocks in each of the three stages: 20, 32, 44, 56, 110
    width: channels of the first stage (16 in the paper); the others have twice and four times as many
    skip: whether blocks have shortcuts; false gives the paper's plain network
    shortcut: where the shape changes: pad (option A, no parameters) or projection (option B, a 1x1 convolution)
    activation: after every convolution
    norm: normalisation after every convolution
    init: how weights start; default leaves them as torch made them
    zero_init_residual: start every block as its shortcut alone (Goyal et al. 2017, section 5.1)
    members: that share its weights, each with vectors of its own (a batch ensemble, Wen et al. 2020); 1 for none
    """
    channels, _, _ = _layers.image_shape(spec, "resnet")
    num_blocks = _num_blocks(depth)
    _layers.require(width >= 1, "width", width, "an integer of at least 1")
    if zero_init_residual and not skip:
        raise DlrunError("model.zero_init_residual: without skips every block would give zero", "model.skip=true")
    stem = nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1, bias=norm == "none"),
        _layers.norm_2d(norm, width),
        _layers.activation(activation),
    )
    stages = []
    for before, after in ((width, width), (width, 2 * width), (2 * width, 4 * width)):
        stages.append(_stage(before, after, num_blocks, activation, norm, shortcut if skip else "none"))
    model = ResNet(stem, stages, nn.Linear(4 * width, spec.num_outputs))
    _layers.initialise(model, init, activation)
    return _members.several(_zero_residuals(model) if zero_init_residual else model, members, spec)


def _num_blocks(depth: int) -> int:
    """Blocks a stage. Raises: DlrunError with the nearest depth that exists."""
    if depth < 8 or (depth - 2) % 6:
        nearest = 6 * max(1, round((depth - 2) / 6)) + 2
        raise DlrunError(f"model.depth: expected 6n + 2 with n of at least 1, got {depth}", f"model.depth={nearest}")
    return (depth - 2) // 6


def _stage(before: int, after: int, num_blocks: int, activation: str, norm: str, shortcut: str) -> nn.Sequential:
    """Blocks of one stage; the first one halves the image where the channels grow."""
    blocks = []
    for _ in range(num_blocks):
        stride = 1 if before == after else 2
        blocks.append(Block(before, after, stride, activation, norm, _shortcut(before, after, stride, norm, shortcut)))
        before = after
    return nn.Sequential(*blocks)


def _shortcut(before: int, after: int, stride: int, norm: str, name: str) -> nn.Module | None:
    if name == "none":
        return None
    if before == after:
        return nn.Identity()
    if name == "pad":
        return PadShortcut(after - before, stride)
    return nn.Sequential(
        nn.Conv2d(before, after, 1, stride, bias=norm == "none"),
        _layers.norm_2d(norm, after),
    )


def _zero_residuals(model: ResNet) -> ResNet:
    """Let the last layer of every block's branch give zero."""
    for block in model.modules():
        if isinstance(block, Block):
            last = block.conv2 if isinstance(block.norm2, nn.Identity) else block.norm2
            for parameter in last.parameters():
                nn.init.zeros_(parameter)
    return model
