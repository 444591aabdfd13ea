"""A detector of torchvision behind the contract of the detection task: batches in, losses or padded tensors out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

# B batch, K boxes, D detections, A anchors of all levels; H x W pixels of the image


_SAID = ("cls_logits", "bbox_regression", "bbox_ctrness")  # by a head of one stage


class Detector(nn.Module):
    """The parts of a detector under the names they have in torchvision, so that published weights fit them.

    backgrounds: how many of the detector's classes come before the first of the data.
    """

    def __init__(self, detector: nn.Module, backgrounds: int, max_detections: int) -> None:
        super().__init__()
        detector.transform = AsGiven()
        for name, part in detector.named_children():
            self.add_module(name, part)
        # In a tuple torch does not see it as a part, under which all names would begin.
        self._detector = (detector,)
        self.backgrounds, self.max_detections = backgrounds, max_detections
        for part in (self.get_submodule("backbone"), *_heads(self)):
            part.register_forward_hook(_widened)

    def train(self, mode: bool = True) -> Detector:
        self._detector[0].training = mode  # its parts are ours, and are told by us
        return super().train(mode)

    def forward(
        self, image: Tensor, boxes: Tensor | None = None, box_labels: Tensor | None = None
    ) -> dict[str, Tensor] | tuple[Tensor, Tensor, Tensor]:
        """In training torchvision's losses by their names there; else boxes [B, D, 4], scores [B, D] and labels
        [B, D]. Boxes of zero size are none. See tasks/detection.py."""
        detector = self._detector[0]
        if not self.training:
            return self._padded(detector(image), image)
        assert boxes is not None and box_labels is not None, "a detector trains on boxes and their labels"
        is_there_BK = (box_labels >= 0) & (boxes[..., 2:] > boxes[..., :2]).all(-1)
        targets = [
            {"boxes": boxes_K4[is_there_K].float(), "labels": labels_K[is_there_K] + self.backgrounds}
            for boxes_K4, labels_K, is_there_K in zip(boxes, box_labels, is_there_BK, strict=True)
        ]
        return detector(image, targets)

    def _padded(self, found: Sequence[dict[str, Tensor]], image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        size, most = len(found), self.max_detections
        boxes_BD4, scores_BD = image.new_zeros(size, most, 4), image.new_zeros(size, most)
        labels_BD = torch.full((size, most), -1, device=image.device)
        for index, said in enumerate(found):
            count = len(said["labels"])
            boxes_BD4[index, :count], scores_BD[index, :count] = said["boxes"], said["scores"]
            labels_BD[index, :count] = said["labels"] - self.backgrounds
        return boxes_BD4, scores_BD, labels_BD

    def exportable(self) -> nn.Module:
        """Images to what comes before suppression, with this model's own weights: class logits [B, A, C'], box
        regressions [B, A, 4] and for FCOS centerness [B, A, 1].

        Of Faster R-CNN that is its first stage: lists, over levels, of objectness [B, anchors, h, w], of regressions
        [B, 4 anchors, h, w] and of features [B, 256, h, w]; the second stage looks at boxes that suppression chooses.
        """
        return _BeforeSuppression(self)


class _BeforeSuppression(nn.Module):
    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, image: Tensor) -> tuple[Any, ...]:
        features = list(self.detector.get_submodule("backbone")(image).values())
        said = _heads(self.detector)[0](features)
        if isinstance(said, dict):
            return tuple(said[name] for name in _SAID if name in said)
        return (*said, features)

    def finish(self, said: tuple[Any, ...], image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See contracts.Unfinished: the detector on what was said, in place of what its own first part would say.

        Anchors are laid out by the features, so of one-stage detectors the backbone is run here too.
        """
        detector = self.detector
        replaced = {_heads(detector)[0]: dict(zip(_SAID, said, strict=False))}
        if len(said) == 3 and isinstance(said[2], list):  # of two stages
            levels = {str(index): level for index, level in enumerate(said[2])}
            replaced = {_heads(detector)[0]: tuple(said[:2]), detector.get_submodule("backbone"): levels}
        hooks = [
            module.register_forward_hook(lambda _module, _given, _own, told=told: told)
            for module, told in replaced.items()
        ]
        try:
            return detector(image)
        finally:
            for hook in hooks:
                hook.remove()


def _heads(detector: nn.Module) -> list[nn.Module]:
    """What reads features: the head, or those of the two stages."""
    names = [name for name, _ in detector.named_modules()]
    if "rpn" in names:
        return [detector.get_submodule("rpn.head"), detector.get_submodule("roi_heads.box_predictor")]
    return [detector.get_submodule("head")]


def _widened(_module: nn.Module, _given: Any, said: Any) -> Any:
    """Under autocast these are 16 bits wide: too few for losses, and for anchors, which take the features' type."""
    if isinstance(said, Tensor):
        return said.to(torch.promote_types(said.dtype, torch.float32))
    if isinstance(said, dict):
        return type(said)((name, _widened(_module, _given, value)) for name, value in said.items())
    return type(said)(_widened(_module, _given, value) for value in said)


class AsGiven(nn.Module):
    """In place of torchvision's transform, which scales and normalises pictures: here that is done already."""

    def forward(self, image: Tensor, targets: Any = None) -> tuple[Any, Any]:
        from torchvision.models.detection.image_list import ImageList

        height, width = image.shape[-2:]
        return ImageList(image, [(height, width)] * len(image)), targets

    def postprocess(self, found: Any, *_sizes: Any) -> Any:
        """Boxes are in pixels of the image already."""
        return found


def why_not(detector: nn.Module, shape: tuple[int, int, int]) -> str:
    """Why images of this shape do not get through the backbone; empty if they do. Nothing is computed."""
    backbone = detector.get_submodule("backbone")
    tensors = {**dict(backbone.named_parameters()), **dict(backbone.named_buffers())}
    shapes = {name: tensor.to("meta") for name, tensor in tensors.items()}
    training = backbone.training
    backbone.eval()
    try:
        with torch.no_grad():
            torch.func.functional_call(backbone, shapes, torch.empty(1, *shape, device="meta"))
    except RuntimeError as error:
        return str(error).splitlines()[0]
    finally:
        backbone.train(training)
    return ""
