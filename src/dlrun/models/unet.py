"""U-Net for a class a pixel: a way down that halves the image, a way up that doubles it, a bridge at every size."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlrun.contracts import DataSpec
from dlrun.models import _layers

# B batch, C channels, H height, W width, K classes


class Block(nn.Module):
    """Some 3x3 convolutions, each with norm and activation; residual: a shortcut around all of them."""

    def __init__(
        self, before: int, after: int, convolutions: int, norm: str, activation: str, residual: bool = False
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for index in range(convolutions):
            layers.append(nn.Conv2d(after if index else before, after, 3, padding=1, bias=norm == "none"))
            layers += [_layers.norm_2d(norm, after), _layers.activation(activation)]
        # The shortcut joins before the last activation (He et al. 2016).
        self.activation = layers.pop() if residual else nn.Identity()
        self.branch = nn.Sequential(*layers)
        self.shortcut = _shortcut(before, after, norm) if residual else None

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y_BCHW = self.branch(x_BCHW)
        if self.shortcut is not None:
            y_BCHW = y_BCHW + self.shortcut(x_BCHW)
        return self.activation(y_BCHW)


def _shortcut(before: int, after: int, norm: str) -> nn.Module:
    if before == after:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(before, after, 1, bias=norm == "none"), _layers.norm_2d(norm, after))


class Up(nn.Module):
    """Twice the size with other channels, joined to what the way down saw at that size, then convolutions."""

    def __init__(self, doubling: nn.Module, block: nn.Module) -> None:
        super().__init__()
        self.doubling, self.block = doubling, block

    def forward(self, x_BCHW: Tensor, seen_BCHW: Tensor) -> Tensor:
        # An odd size was rounded up on the way down; what is now too much lies at the right and the bottom.
        height, width = seen_BCHW.shape[-2:]
        return self.block(torch.cat([seen_BCHW, self.doubling(x_BCHW)[..., :height, :width]], dim=1))


class UNet(nn.Module):
    """A stem, levels down, levels up, and a linear head at every pixel.

    stride: how many times smaller the stem makes the image.
    """

    def __init__(
        self, stem: nn.Module, stride: int, down: list[Block], dropout: float, up: list[Up], head: nn.Conv2d
    ) -> None:
        super().__init__()
        self.stem = stem
        self.down = nn.ModuleList(down)
        self.halving = nn.MaxPool2d(2, ceil_mode=True)  # rounds up: no row or column of an odd size is lost
        self.dropout = nn.Dropout(dropout)
        self.up = nn.ModuleList(up)
        self.head = head
        # The head says as many numbers of a class as the stem put pixels into one (Shi et al. 2016, "Real-Time Single
        # Image and Video Super-Resolution Using an Efficient Sub-Pixel Convolutional Neural Network", eq. 4).
        self.spread = nn.PixelShuffle(stride)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Images to logits [B, K, H, W]."""
        height, width = x_BCHW.shape[-2:]
        x_BCHW = self.down[0](self.stem(x_BCHW))
        seen = []
        for level in self.down[1:]:
            seen.append(x_BCHW)
            x_BCHW = level(self.halving(x_BCHW))
        x_BCHW = self.dropout(x_BCHW)
        for level in self.up:
            x_BCHW = level(x_BCHW, seen.pop())
        return self.spread(self.head(x_BCHW))[..., :height, :width]


class Bilinear(nn.Module):
    """Twice the size by interpolation, after a 1x1 convolution to other channels (which costs a quarter there)."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(before, after, 1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return F.interpolate(self.convolution(x_BCHW), scale_factor=2.0, mode="bilinear", align_corners=False)


def build(
    spec: DataSpec,
    *,
    width: int = 32,
    depth: int = 4,
    most_channels: int = 512,
    convolutions: int = 2,
    stem_stride: Literal[1, 2, 4] = 1,
    upsampling: Literal["bilinear", "transposed"] = "bilinear",
    residual: bool = False,
    dropout: float = 0.0,
    activation: Literal[
        "relu", "leaky_relu", "elu", "selu", "gelu", "silu", "mish", "softplus", "tanh", "sigmoid"
    ] = "relu",
    norm: Literal["batch", "group", "layer", "none"] = "batch",
    init: Literal["kaiming", "xavier", "orthogonal", "lecun", "default"] = "kaiming",
) -> nn.Module:
    """The U-Net of Ronneberger et al. 2015, with padded convolutions, for images of any size.

    The paper's own has width=64, depth=4, most_channels=1024, upsampling=transposed, norm=none, dropout=0.5.

    Settings:
    width: channels of the first level; every level below has twice as many, up to most_channels
    depth: how often the image is halved, at least 1
    most_channels: no level has more
    convolutions: of every level, on the way down and on the way up, at least 1
    stem_stride: 1 works at full size; 2 and 4 begin by making the image so many times smaller, which costs less by its
        square, and end with a head that says that square of pixels at once
    upsampling: how the image is doubled: bilinear (with a 1x1 convolution) or transposed (a learned 2x2 convolution)
    residual: add the input of every level's convolutions to their output
    dropout: share of the smallest level's features set to zero while training, in [0, 1)
    activation: after every 3x3 convolution
    norm: normalisation after every 3x3 convolution
    init: how weights start; default leaves them as torch made them
    """
    channels, _, _ = _layers.image_shape(spec, "unet")
    num_classes = spec.size("pixel_classes")
    _layers.require(width >= 1, "width", width, "an integer of at least 1")
    _layers.require(depth >= 1, "depth", depth, "an integer of at least 1")
    _layers.require(most_channels >= width, "most_channels", most_channels, f"at least the width, {width}")
    _layers.require(convolutions >= 1, "convolutions", convolutions, "an integer of at least 1")
    _layers.require(0 <= dropout < 1, "dropout", dropout, "a number in [0, 1)")
    sizes = [min(width * 2**level, most_channels) for level in range(depth + 1)]
    stem = _stem(channels, width, stem_stride, norm, activation)
    first = channels if stem_stride == 1 else width
    down = [
        Block(before, after, convolutions, norm, activation, residual)
        for before, after in zip([first, *sizes], sizes, strict=False)
    ]
    up = [
        Up(_doubling(upsampling, below, here), Block(2 * here, here, convolutions, norm, activation, residual))
        for below, here in zip(sizes[:0:-1], sizes[-2::-1], strict=True)
    ]
    head = nn.Conv2d(width, num_classes * stem_stride**2, 1)
    model = UNet(stem, stem_stride, down, dropout, up, head)
    _layers.initialise(model, init, activation)
    _even_out(head, num_classes)
    return model


def _even_out(head: nn.Conv2d, num_classes: int) -> None:
    """Let the head begin by saying the same of all pixels of a square, or combs would show along every border.

    Source: Aitken et al. 2017, "Checkerboard artifact free sub-pixel convolution", section 3 (ICNR).
    """
    with torch.no_grad():
        for tensor in (head.weight, head.bias):
            assert tensor is not None
            of_class = tensor.unflatten(0, (num_classes, -1))
            of_class.copy_(of_class[:, :1].expand_as(of_class).clone())


def _stem(channels: int, width: int, stride: int, norm: str, activation: str) -> nn.Module:
    """Convolutions of stride 2 until the image is so many times smaller; nothing for 1."""
    layers: list[nn.Module] = []
    while stride > 1:
        layers += [
            nn.Conv2d(channels, width, 3, 2, padding=1, bias=norm == "none"),
            _layers.norm_2d(norm, width),
            _layers.activation(activation),
        ]
        channels, stride = width, stride // 2
    return nn.Sequential(*layers)


def _doubling(name: str, before: int, after: int) -> nn.Module:
    return Bilinear(before, after) if name == "bilinear" else nn.ConvTranspose2d(before, after, 2, 2)
