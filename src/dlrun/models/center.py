"""Small detector that trains on a CPU: objects are the peaks of a heatmap, one map for each class (CenterNet)."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from dlrun.contracts import DataSpec
from dlrun.models import _layers, _peaks
from dlrun.models.resnet import Block

# B batch, C classes, K boxes, D detections; H x W cells of the map

_RARE = 0.1  # every cell's first probability of being a middle (Lin et al. 2017, "Focal Loss", section 3.3)
_LARGEST = 8.0  # logarithm of a side in cells, above which nothing is decoded: 3,000 cells


class Maps(NamedTuple):
    """What the network says of every cell, before peaks are looked for.

    logits: [B, C, H, W], of the middle of an object being here.   sizes: [B, 2, H, W], logarithms of width and height
    in cells.   offsets: [B, 2, H, W], where in the cell the middle is, x and y from 0 to 1.
    """

    logits: Tensor
    sizes: Tensor
    offsets: Tensor


class Pyramid(nn.Module):
    """Residual stages, each of half the side of the one before, and a light way back up through the last few of them.

    laterals: one for each of those last stages, to the width of the way up.   merges: one fewer, the deepest first.
    """

    def __init__(
        self, stem: nn.Module, stages: list[nn.Module], laterals: list[nn.Module], merges: list[nn.Module]
    ) -> None:
        super().__init__()
        self.stem = stem
        self.stages = nn.ModuleList(stages)
        self.laterals = nn.ModuleList(laterals)
        self.merges = nn.ModuleList(merges)

    def forward(self, image_BCHW: Tensor) -> Tensor:
        level, levels = self.stem(image_BCHW), []
        for stage in self.stages:
            level = stage(level)
            levels.append(level)
        sides = [lateral(level) for lateral, level in zip(self.laterals, levels[-len(self.laterals) :], strict=True)]
        way_up = sides.pop()
        for merge, side in zip(self.merges, reversed(sides), strict=True):
            way_up = merge(side + interpolate(way_up, size=side.shape[-2:]))
        return way_up


class Center(nn.Module):
    """A pyramid, a head for the heatmap, and one for the boxes around its peaks."""

    def __init__(self, body: nn.Module, head: nn.Module, box_head: nn.Module, stride: int, max_detections: int) -> None:
        super().__init__()
        self.body = body
        self.head = head
        self.box_head = box_head
        self.stride, self.max_detections = stride, max_detections

    def forward(
        self, image: Tensor, boxes: Tensor | None = None, box_labels: Tensor | None = None
    ) -> dict[str, Tensor] | tuple[Tensor, Tensor, Tensor]:
        """In training the losses `heatmap`, `size` and `offset`, means over boxes; else the detections: boxes
        [B, D, 4] in pixels, scores [B, D] and labels [B, D]. See tasks/detection.py."""
        maps = self.maps(image)
        if not self.training:
            return self.detections(maps, image.shape[-2], image.shape[-1])
        assert boxes is not None and box_labels is not None, "a detector trains on boxes and their labels"
        return self.losses(maps, boxes, box_labels)

    def maps(self, image: Tensor) -> Maps:
        """Images to what is said of every cell."""
        features = self.body(image)
        sizes, offsets = self.box_head(features).chunk(2, dim=1)
        return Maps(self.head(features), sizes, offsets)

    def losses(self, maps: Maps, boxes_BK4: Tensor, labels_BK: Tensor) -> dict[str, Tensor]:
        """The heatmap's focal loss, and absolute errors of sizes (of their logarithms) and offsets at the true middles.

        Boxes of zero size are none. Source: Zhou et al. 2019, "Objects as Points", eq. 1 to 3; there sizes are in
        pixels and their loss weighs 0.1. Logarithms let small and large objects count alike.
        """
        _, num_classes, height, width = maps.logits.shape
        found = _peaks.centers(boxes_BK4, labels_BK, self.stride, height, width)
        num_boxes = found.there.sum().clamp(min=1)
        target_BCHW = _peaks.heatmap(found, num_classes, height, width)
        sizes_BK2 = _peaks.at_cells(maps.sizes, found.cell)
        offsets_BK2 = _peaks.at_cells(maps.offsets, found.cell)
        size_error = (sizes_BK2 - found.size.clamp(min=1e-3).log()).abs().sum(-1)
        offset_error = (offsets_BK2 - (found.middle - _corner(found.cell, width))).abs().sum(-1)
        return {
            "heatmap": _peaks.focal_loss(maps.logits, target_BCHW, num_boxes),
            "size": (size_error * found.there).sum() / num_boxes,
            "offset": (offset_error * found.there).sum() / num_boxes,
        }

    def detections(self, maps: Maps, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
        """The boxes around the highest peaks, within an image of height x width pixels; their scores and labels."""
        found = _peaks.peaks(maps.logits, self.max_detections)
        middle_BD2 = _corner(found.cell, maps.logits.shape[-1]) + _peaks.at_cells(maps.offsets, found.cell)
        half_BD2 = _peaks.at_cells(maps.sizes, found.cell).clamp(max=_LARGEST).exp() / 2
        boxes_BD4 = torch.cat([middle_BD2 - half_BD2, middle_BD2 + half_BD2], -1) * self.stride
        limits = torch.tensor([width, height, width, height], device=boxes_BD4.device)
        is_there = (found.label >= 0)[..., None]
        return boxes_BD4.clamp(min=0).minimum(limits) * is_there, found.score, found.label

    def exportable(self) -> nn.Module:
        """Images to `Maps`, with this model's own weights: what comes before peaks are looked for."""
        return _ToMaps(self)


class _ToMaps(nn.Module):
    def __init__(self, detector: Center) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, image: Tensor) -> Maps:
        return self.detector.maps(image)

    def finish(self, said: Maps, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See contracts.Unfinished: the peaks of the maps."""
        return self.detector.detections(Maps(*said), image.shape[-2], image.shape[-1])


def _corner(cell: Tensor, width: int) -> Tensor:
    """[..., 2]: column and row of cells of a map this wide."""
    return torch.stack([cell % width, cell // width], -1)


def build(
    spec: DataSpec,
    *,
    width: int = 32,
    depth: int = 2,
    stride: Literal[4, 8, 16] = 4,
    norm: Literal["batch", "group", "layer", "none"] = "batch",
    activation: Literal[
        "relu", "leaky_relu", "elu", "selu", "gelu", "silu", "mish", "softplus", "tanh", "sigmoid"
    ] = "relu",
    max_detections: int = 100,
) -> nn.Module:
    """A small anchor-free detector after Zhou et al. 2019, "Objects as Points".

    Four residual stages (He et al. 2016) and a way back up (Lin et al. 2017, "Feature Pyramid Networks") give a map
    with one cell for every stride x stride pixels; heads of two convolutions read it.

    Settings:
    width: channels of the first stage; the next have 2, 4 and 8 times as many, the map twice as many
    depth: residual blocks of each of the four stages, at least 1
    stride: pixels of the image, in both directions, that share a cell; small objects need 4
    norm: normalisation after every convolution but the last ones; group where batches are below 8
    activation: after every convolution but the last ones
    max_detections: most boxes found in an image
    """
    channels, _, _ = _layers.image_shape(spec, "center")
    num_classes = spec.size("box_classes")
    for setting, value in (("width", width), ("depth", depth), ("max_detections", max_detections)):
        _layers.require(value >= 1, setting, value, "an integer of at least 1")

    def convolution(before: int, after: int, stride: int = 1) -> nn.Module:
        layer = nn.Conv2d(before, after, 3, stride, padding=1, bias=norm == "none")
        return nn.Sequential(layer, _layers.norm_2d(norm, after), _layers.activation(activation))

    widths = [width, 2 * width, 4 * width, 8 * width]
    stages = [
        _stage(before, after, depth, activation, norm) for before, after in zip([width, *widths], widths, strict=False)
    ]
    used = widths[int(math.log2(stride)) - 2 :]  # the first stage has a stride of 4
    laterals: list[nn.Module] = [nn.Conv2d(each, 2 * width, 1) for each in used]
    merges = [convolution(2 * width, 2 * width) for _ in used[1:]]
    head = nn.Sequential(convolution(2 * width, 2 * width), nn.Conv2d(2 * width, num_classes, 1))
    box_head = nn.Sequential(convolution(2 * width, 2 * width), nn.Conv2d(2 * width, 4, 1))
    body = Pyramid(convolution(channels, width, stride=2), stages, laterals, merges)
    model = Center(body, head, box_head, stride, max_detections)
    _layers.initialise(model, "kaiming", activation)
    _begin(head, [-math.log((1 - _RARE) / _RARE)] * num_classes)
    _begin(box_head, [math.log(4.0)] * 2 + [0.5] * 2)  # boxes of 4 x 4 cells, in the middle of their cell
    return model


def _stage(before: int, after: int, depth: int, activation: str, norm: str) -> nn.Module:
    """Blocks of one stage; the first one halves the image."""
    projection = nn.Conv2d(before, after, 1, stride=2, bias=norm == "none")
    shortcut = nn.Sequential(projection, _layers.norm_2d(norm, after))
    rest = [Block(after, after, 1, activation, norm, nn.Identity()) for _ in range(depth - 1)]
    return nn.Sequential(Block(before, after, 2, activation, norm, shortcut), *rest)


def _begin(head: nn.Sequential, values: list[float]) -> None:
    """Let the last layer of a head begin near these values, whatever it is given."""
    last = head[-1]
    assert isinstance(last, nn.Conv2d) and last.bias is not None
    nn.init.normal_(last.weight, std=0.01)
    with torch.no_grad():
        last.bias.copy_(torch.tensor(values))
