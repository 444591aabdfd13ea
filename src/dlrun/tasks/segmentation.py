"""One class for each pixel of a picture."""

# B batch, C classes, N examples of the outputs; H x W pixels of the picture

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from dlrun.contracts import IGNORED, Batch, DataSpec, Goal, Loss, Metric, Outputs, Row
from dlrun.errors import DlrunError
from dlrun.metrics.segmentation import Segmentation, resized
from dlrun.pictures import overlay, palette, png_bytes, side_by_side, to_pil
from dlrun.tasks import _class_weights
from dlrun.tasks._pixel_losses import ADDITIVE, LOSSES, Shaping

if TYPE_CHECKING:
    from PIL.Image import Image

_LOWEST = -1e4  # log-probability; below it 16 bits would soon hold minus infinity, which cannot be interpolated


def build(
    spec: DataSpec,
    *,
    loss: Literal["cross_entropy", "dice", "focal", "cross_entropy+dice", "focal+dice"] = "cross_entropy",
    class_weights: list | None = None,
    label_smoothing: float = 0.0,
    focal_gamma: float = 2.0,
    auxiliary_weight: float = 0.4,
) -> SegmentationTask:
    """A loss over the pixels of the data's masks; pixels that are ignored there are neither trained on nor scored.

    Settings:
        loss: cross_entropy (each pixel alone), dice (overlap of each class), focal (hard pixels weigh more), or a sum
        class_weights: a factor on the loss for each class, in the order of the labels; null for equal weights
        label_smoothing: share of a pixel's target spread over all classes, 0 to below 1; not for dice
        focal_gamma: of focal: how much less a pixel weighs that is right already; 0 gives cross-entropy
        auxiliary_weight: of the loss of further logits, where a model gives some while it trains
    """
    num_classes = spec.size("pixel_classes")
    if not 0 <= label_smoothing < 1:
        raise DlrunError(f"task.label_smoothing: {label_smoothing} is not in [0, 1)", "try task.label_smoothing=0.1")
    for name, value in (("focal_gamma", focal_gamma), ("auxiliary_weight", auxiliary_weight)):
        if not 0 <= value < math.inf:
            raise DlrunError(f"task.{name}: {value} is not a number of at least 0")
    weights_C = _class_weights.class_weights(class_weights, num_classes)
    shaping = Shaping(weights_C, label_smoothing, focal_gamma)
    return SegmentationTask(spec, num_classes, tuple(loss.split("+")), shaping, auxiliary_weight)


@dataclass(eq=False)
class SegmentationTask:
    """See `build`. Models map a picture to logits [B, C, h, w], of its own size or smaller, which are brought to the
    picture's size here; while they train they may give a tuple of such, of which the first is the answer.

    Training sees masks at the picture's size (the nearest pixel of a larger one); metrics score at the masks' own.
    """

    spec: DataSpec
    num_classes: int
    kinds: tuple[str, ...]
    shaping: Shaping
    auxiliary_weight: float

    goal = Goal("mean_iou", "max")
    hub_kind = "image-segmentation"

    @property
    def additive(self) -> bool:
        """Whether the loss is a sum over pictures; dice is not."""
        return set(self.kinds) <= ADDITIVE

    def count(self, batch: Batch) -> int:
        """Pictures in this batch: the loss is a mean over pixels, summed over pictures."""
        return len(batch["id"])

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        """The chosen losses, in float32 (float64 for a float64 model); see `_pixel_losses`."""
        logits_BCHW, *further = self._logits(model, batch)
        mask_BHW = nearest(batch[self.spec.target], logits_BCHW.shape[-2:])
        total = self._loss(logits_BCHW, mask_BHW)
        for auxiliary_BCHW in further:
            total = total + self.auxiliary_weight * self._loss(auxiliary_BCHW, mask_BHW)
        return Loss(total, self.count(batch))

    def _loss(self, logits_BCHW: Tensor, mask_BHW: Tensor) -> Tensor:
        return torch.stack([LOSSES[name](logits_BCHW, mask_BHW, self.shaping) for name in self.kinds]).sum()

    def _logits(self, model: nn.Module, batch: Batch) -> list[Tensor]:
        """[B, C, H, W] of the answer, and of what else the model gave, at the picture's size."""
        given = model(*[batch[name] for name in self.spec.inputs])
        size = batch[self.spec.inputs[0]].shape[-2:]
        return [self._at(size, logits, batch) for logits in (given if isinstance(given, tuple) else (given,))]

    def _at(self, size: torch.Size, logits_BChw: Tensor, batch: Batch) -> Tensor:
        if logits_BChw.dim() != 4 or logits_BChw.shape[:2] != (self.count(batch), self.num_classes):
            raise DlrunError(
                f"task: the model gives {list(logits_BChw.shape)} for {self.count(batch)} examples;"
                f" segmentation needs [{self.count(batch)}, {self.num_classes}, height, width]",
                "choose a model for segmentation: dlrun list model",
            )
        # Under autocast the logits are 16 bits wide, too few for a sum of exponentials.
        logits_BChw = logits_BChw.to(torch.promote_types(logits_BChw.dtype, torch.float32))
        if logits_BChw.shape[-2:] == size:
            return logits_BChw
        return interpolate(logits_BChw, size=size, mode="bilinear", align_corners=False)

    def outputs(self, model: nn.Module, batch: Batch) -> Outputs:
        """Fields log_probabilities [B, C, H, W] float16 at the picture's size, and where they are known mask
        [B, …] uint8 at its own and size [B, 2], of the picture as it was given."""
        logits_BCHW = self._logits(model, batch)[0]
        fields = {"log_probabilities": logits_BCHW.log_softmax(1).clamp(min=_LOWEST).half()}
        if self.spec.target in batch:
            fields["mask"] = batch[self.spec.target]
        if "size" in batch:
            fields["size"] = batch["size"]
        return Outputs(batch["id"], fields)

    def metrics(self) -> list[Metric]:
        """mean_iou, pixel_accuracy, mean_class_accuracy and loss."""
        return [Segmentation(self.num_classes, self.spec.labels, self.spec.assets.get("ignored", ()))]

    def rows(self, outputs: Outputs) -> list[Row]:
        """{"id", "classes": {label: share of the pixels}, where the truth is known "truth": the same of it and
        "pixel_accuracy"}; the commonest class first, none without pixels."""
        rows: list[Row] = []
        for index, example in enumerate(outputs.ids.tolist()):
            predicted_HW = outputs.fields["log_probabilities"][index].argmax(0)
            row: Row = {"id": example, "classes": self._shares(predicted_HW)}
            if "mask" in outputs.fields:
                truth_HW = nearest(outputs.fields["mask"][index][None], predicted_HW.shape)[0]
                counted_HW = truth_HW != IGNORED
                row["truth"] = self._shares(truth_HW[counted_HW])
                if row["truth"]:
                    row["pixel_accuracy"] = (truth_HW == predicted_HW)[counted_HW].double().mean().item()
            rows.append(row)
        return rows

    def _shares(self, classes: Tensor) -> dict[str, float]:
        counts = torch.bincount(classes.reshape(-1).long(), minlength=self.num_classes)
        found = sorted(enumerate(counts.tolist()), key=lambda pair: -pair[1])
        return {self._name(index): count / classes.numel() for index, count in found if count}

    def _name(self, index: int) -> str:
        return self.spec.labels[index] if self.spec.labels else str(index)

    # ---------------------------------------------------------------- what a person looks at

    def pictures(self, batch: Batch, outputs: Outputs) -> list[Any]:
        """An image an example: the picture, the truth over it where it is known, and the prediction over it."""
        drawn = []
        for index, image_CHW in enumerate(batch[self.spec.inputs[0]]):
            masks_HW = [self._predicted(outputs, index, image_CHW.shape[-2:])]
            if self.spec.target in batch:
                masks_HW.insert(0, batch[self.spec.target][index])
            picture = to_pil(image_CHW)
            over = [overlay(picture, mask_HW, self.num_classes) for mask_HW in masks_HW]
            drawn.append(side_by_side([picture, *over]))
        return drawn

    def _predicted(self, outputs: Outputs, index: int, size: Sequence[int]) -> Tensor:
        """uint8 [*size] on the CPU: the likeliest class of every pixel."""
        log_probabilities_CHW = outputs.fields["log_probabilities"][index]
        return resized(log_probabilities_CHW, size).argmax(0).to(torch.uint8).cpu()

    def files(self, names: Sequence[str], batch: Batch, outputs: Outputs) -> Iterator[tuple[str, bytes]]:
        """NAME.mask.png, whose pixels are class indices shown in colours, and NAME.overlay.png, these over the
        picture; both of the size the picture was given in (a tiny one's overlay is enlarged)."""
        for index, name in enumerate(names):
            image_CHW = batch[self.spec.inputs[0]][index]
            height, width = batch["size"][index].tolist() if "size" in batch else image_CHW.shape[-2:]
            mask_HW = self._predicted(outputs, index, (height, width))
            yield f"{name}.mask.png", png_bytes(_indexed(mask_HW, self.num_classes))
            picture = to_pil(image_CHW).resize((width, height))
            yield f"{name}.overlay.png", png_bytes(overlay(picture, mask_HW, self.num_classes))

    def index(self, names: Sequence[str], pictures: Sequence[str], outputs: Outputs) -> tuple[str, Any]:
        """predictions.json: the classes in order of their index, and of each picture its mask's file and shares."""
        predictions = [
            {"name": name, "mask": f"{name}.mask.png"} | {key: value for key, value in row.items() if key != "id"}
            for name, row in zip(names, self.rows(outputs), strict=True)
        ]
        classes = [self._name(index) for index in range(self.num_classes)]
        return "predictions.json", {"classes": classes, "predictions": predictions}


def nearest(mask_BHW: Tensor, size: Sequence[int]) -> Tensor:
    """uint8 [B, *size]: masks at another size (height, width), each pixel the nearest one."""
    if mask_BHW.shape[1:] == tuple(size):
        return mask_BHW
    return interpolate(mask_BHW[:, None], size=tuple(size), mode="nearest-exact")[:, 0]


def _indexed(mask_HW: Tensor, num_classes: int) -> Image:
    """A picture whose pixels are the classes themselves, shown in the colours of its palette."""
    from PIL import Image

    height, width = mask_HW.shape
    image = Image.frombytes("P", (width, height), mask_HW.numpy().tobytes())
    image.putpalette([value for colour in palette(num_classes) for value in colour])
    return image
