"""A detector of torchvision: SSD, SSDlite, RetinaNet, FCOS or Faster R-CNN, untrained."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from torch import nn

from dlrun.contracts import DataSpec
from dlrun.errors import DlrunError, did_you_mean
from dlrun.models import _layers
from dlrun.models._torchvision_detector import Detector, why_not


class Kind(NamedTuple):
    """What sets a detector apart.

    backgrounds: classes before the first of the data.   own: the name of its only backbone, or empty.
    scores, most: what its class calls the settings score_threshold and max_detections.
    """

    backgrounds: int
    own: str = ""
    scores: str = "score_thresh"
    most: str = "detections_per_img"


_KINDS = {
    "ssd300": Kind(1, "vgg16"),
    "ssdlite320": Kind(1, "mobilenet_v3_large"),
    "retinanet": Kind(0),
    "fcos": Kind(0),
    "faster_rcnn": Kind(1, "", "box_score_thresh", "box_detections_per_img"),
}
_PUBLISHED_SIDES = (32, 64, 128, 256, 512)  # of anchors, for pictures of 800 pixels
_FCOS_STRIDES = (8, 16, 32, 64, 128)


def build(
    spec: DataSpec,
    *,
    detector: Literal["ssd300", "ssdlite320", "retinanet", "fcos", "faster_rcnn"],
    backbone: Literal["resnet18", "resnet34", "resnet50", "resnet101", "mobilenet_v3_small", "mobilenet_v3_large"]
    | None = None,
    norm: Literal["batch", "group", "frozen"] = "batch",
    anchor_sizes: tuple[int, ...] | None = None,
    max_detections: int = 100,
    score_threshold: float = 0.01,
    options: dict[str, Any] | None = None,
) -> nn.Module:
    """A detector with its first convolution and its classes made to fit the data, for images of the data's own size.

    Its tensors have the names they have in torchvision, so that published ones fit. They are not loaded here:
    transfer=finetune transfer.from=torchvision:fasterrcnn_resnet50_fpn does that.

    Settings:
    detector: the architecture; the numbers of ssd300 and ssdlite320 are the sizes of image they were published for
    backbone: what the feature pyramid stands on; null for resnet50; ssd300 and ssdlite320 have their own
    norm: of the backbone: batch; group, for small batches; frozen, for statistics that stay as transfer loads them
    anchor_sizes: sides in pixels, one a level from the finest up, of retinanet and faster_rcnn; null for 32 to 512
    max_detections: most boxes found in an image
    score_threshold: least score of a box, 0 to below 1; low, as average precision counts the unsure ones too
    options: further numbers of the detector's class in torchvision, e.g. {nms_thresh: 0.6}
    """
    shape, kind = _layers.image_shape(spec, detector), _KINDS[detector]
    num_classes = spec.size("box_classes") + kind.backgrounds
    _layers.require(max_detections >= 1, "max_detections", max_detections, "an integer of at least 1")
    _layers.require(0 <= score_threshold < 1, "score_threshold", score_threshold, "a number in [0, 1)")
    settings = {kind.scores: score_threshold, kind.most: max_detections}
    settings |= _checked(detector, options or {}, set(settings))
    if kind.own:
        for name, given, default in (("backbone", backbone, None), ("norm", norm, "batch")):
            if given not in (default, kind.own):
                raise DlrunError(f"model.{name}: {detector} is made of {kind.own}, as it is", f"leave out model.{name}")
        made = _ssd(detector, num_classes, shape, settings)
    else:
        made = _with_pyramid(detector, backbone or "resnet50", norm, num_classes, anchor_sizes, settings)
    if anchor_sizes is not None and detector not in ("retinanet", "faster_rcnn"):
        raise DlrunError(f"model.anchor_sizes: {detector} has none that could be set", "leave out model.anchor_sizes")
    _layers.fit_channels(made, shape[0])
    if reason := why_not(made, shape):
        _, height, width = shape
        raise DlrunError(
            f"model: {detector} does not work on images of {height}x{width}: {reason}", "data.image_size=320"
        )
    return Detector(made, kind.backgrounds, max_detections)


def _class(detector: str) -> Callable[..., nn.Module]:
    from torchvision.models import detection

    classes = {"retinanet": detection.RetinaNet, "fcos": detection.FCOS, "faster_rcnn": detection.FasterRCNN}
    return classes.get(detector, detection.ssd.SSD)


def _checked(detector: str, options: Mapping[str, Any], set_here: set[str]) -> dict[str, Any]:
    """The options, if the detector's class takes them: those of its arguments that are numbers by default."""
    set_here = set_here | {"min_size", "max_size"}  # of pictures: they have their size already
    arguments = inspect.signature(_class(detector)).parameters.values()
    known = {argument.name for argument in arguments if isinstance(argument.default, (int, float))} - set_here
    for name, value in options.items():
        if name in set_here:
            raise DlrunError(
                f"model.options.{name}: this is set elsewhere",
                "model.score_threshold, model.max_detections or data.image_size",
            )
        if name not in known:
            raise DlrunError(f"model.options: {detector} has no '{name}'", did_you_mean(name, known))
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        _layers.require(is_number, f"options.{name}", value, "a number")
    return dict(options)


# ---------------------------------------------------------------- making one


def _ssd(detector: str, num_classes: int, shape: tuple[int, int, int], settings: dict[str, Any]) -> nn.Module:
    from torchvision.models import detection

    makers = {"ssd300": detection.ssd300_vgg16, "ssdlite320": detection.ssdlite320_mobilenet_v3_large}
    made = makers[detector](weights=None, weights_backbone=None, progress=False, num_classes=num_classes, **settings)
    if shape[1:] != (300, 300):
        made.anchor_generator.steps = None  # they are pixels between anchors for 300 x 300; without, levels are filled
    return made


def _with_pyramid(
    detector: str, backbone: str, norm: str, num_classes: int, sides: Sequence[int] | None, settings: dict[str, Any]
) -> nn.Module:
    from torchvision.models.detection.anchor_utils import AnchorGenerator

    sizes = _anchors(detector, backbone, sides)
    ratios = ((1.0,) if detector == "fcos" else (0.5, 1.0, 2.0),) * len(sizes)
    name = "rpn_anchor_generator" if detector == "faster_rcnn" else "anchor_generator"
    body = _pyramid(detector, backbone, norm)
    return _class(detector)(body, num_classes, **{name: AnchorGenerator(sizes, ratios)}, **settings)


def _anchors(detector: str, backbone: str, sides: Sequence[int] | None) -> tuple[tuple[int, ...], ...]:
    """The sides of the anchors at each level of the pyramid."""
    if detector == "fcos":
        return tuple((stride,) for stride in _FCOS_STRIDES)
    is_shallow = detector == "faster_rcnn" and backbone.startswith("mobilenet")
    if is_shallow and sides is None:
        return (_PUBLISHED_SIDES,) * 3
    given = _layers.positive_integers("anchor_sizes", sides or _PUBLISHED_SIDES)
    levels = 3 if is_shallow else 5
    _layers.require(len(given) == levels, "anchor_sizes", list(given), f"{levels} numbers, one for each level")
    if detector == "faster_rcnn":
        return tuple((side,) for side in given)
    # Three sizes an octave: Lin et al. 2017, "Focal Loss for Dense Object Detection", section 4.
    return tuple((side, int(side * 2 ** (1 / 3)), int(side * 2 ** (2 / 3))) for side in given)


def _pyramid(detector: str, backbone: str, norm: str) -> nn.Module:
    """The backbone under a feature pyramid, as torchvision publishes them for this detector.

    Strides are 8 to 128; for Faster R-CNN 4 to 64, and with MobileNet 32 to 64.
    """
    from torchvision.models.detection.backbone_utils import mobilenet_backbone, resnet_fpn_backbone
    from torchvision.ops.feature_pyramid_network import LastLevelP6P7
    from torchvision.ops.misc import FrozenBatchNorm2d

    norms = {"batch": nn.BatchNorm2d, "frozen": FrozenBatchNorm2d, "group": functools.partial(_layers.norm_2d, "group")}
    common: dict[str, Any] = {"backbone_name": backbone, "weights": None, "norm_layer": norms[norm]}
    is_resnet = backbone.startswith("resnet")
    if detector != "faster_rcnn":
        common |= {"returned_layers": [2, 3, 4] if is_resnet else [2, 3, 5], "extra_blocks": LastLevelP6P7(256, 256)}
    if is_resnet:
        return resnet_fpn_backbone(**common, trainable_layers=5)
    return mobilenet_backbone(**common, fpn=True, trainable_layers=6)
