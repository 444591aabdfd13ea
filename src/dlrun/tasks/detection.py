"""Boxes around the objects of a picture, each with a class and a score.

What a detector is, for this task and for whoever writes a model for it:

- in training `model(image, boxes, box_labels)` gives its losses by name, each a mean (a scalar tensor). image is
  [B, C, H, W], boxes [B, K, 4] are left, top, right, bottom in pixels of image, box_labels [B, K] are -1 where there is
  no box, or none to train on (a crowd). All of it goes through `forward`, as DistributedDataParallel wants it.
- in eval mode `model(image)` gives (boxes [B, D, 4] in pixels of image, scores [B, D] in 0..1, labels [B, D] int64),
  the surest first; D is the most that it may find, and what is left over has label -1, score 0 and a box of zeros.
- `exportable()` gives a module from image to tensors, up to where detections are chosen (peaks, suppression).
"""

# B batch, K true boxes and D detections of an example, N examples of the outputs; H x W pixels of the image

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from dlrun.contracts import Batch, DataSpec, Goal, Loss, Metric, Outputs, Row
from dlrun.errors import DlrunError, did_you_mean
from dlrun.metrics.detection import AveragePrecision, require_coco_eval

if TYPE_CHECKING:
    from PIL.Image import Image


def build(
    spec: DataSpec,
    *,
    goal: Literal["ap50", "ap"] = "ap50",
    loss_weights: dict[str, float] | None = None,
    score_threshold: float = 0.3,
) -> DetectionTask:
    """The detector's own losses, added up; COCO's average precision as the metric.

    Settings:
        goal: ap50 (boxes that overlap the truth by half count) or ap (COCO's mean over ten overlaps from 0.5 to 0.95)
        loss_weights: a factor for each of the model's losses by name, e.g. {offset: 0.5}; 1 for those left out
        score_threshold: least score of a box that is listed or drawn, 0 to 1; metrics and predictions.json take all
    """
    num_classes = spec.size("box_classes")
    if not 0 <= score_threshold <= 1:
        raise DlrunError(f"task.score_threshold: {score_threshold} is not in [0, 1]", "try task.score_threshold=0.3")
    for name, weight in (loss_weights or {}).items():
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 <= weight < math.inf:
            raise DlrunError(f"task.loss_weights.{name}: {weight} is not a number of at least 0")
    require_coco_eval()  # now, not after the first epoch
    return DetectionTask(spec, num_classes, loss_weights or {}, score_threshold, Goal(goal, "max"))


@dataclass(eq=False)
class DetectionTask:
    """See `build`."""

    spec: DataSpec
    num_classes: int
    loss_weights: dict[str, float]
    score_threshold: float
    goal: Goal

    hub_kind = "object-detection"
    additive = False  # detectors average over the boxes (or anchors) of a batch, not over its pictures

    def count(self, batch: Batch) -> int:
        """Pictures in this batch."""
        return len(batch["id"])

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        """The weighted sum of the model's losses, times the pictures.

        Raises: DlrunError for a model that gives no losses, or a weight of a loss that it does not have.
        """
        labels_BK = batch["box_labels"]
        if "box_crowd" in batch:
            labels_BK = labels_BK.masked_fill(batch["box_crowd"], -1)
        losses = model(batch[self.spec.inputs[0]], batch["boxes"], labels_BK)
        if not isinstance(losses, dict):
            raise DlrunError(
                f"task: the model gives a {type(losses).__name__} while it trains; detection needs losses by name",
                "choose a model for detection: dlrun list model",
            )
        for name in self.loss_weights:
            if name not in losses:
                raise DlrunError(f"task.loss_weights: the model has no loss '{name}'", did_you_mean(name, losses))
        weighted = [self.loss_weights.get(name, 1.0) * value for name, value in losses.items()]
        count = self.count(batch)
        return Loss(torch.stack(weighted).sum() * count, count)

    def outputs(self, model: nn.Module, batch: Batch) -> Outputs:
        """Fields boxes [B, D, 4] float32, scores [B, D] float32, labels [B, D] int64; where they are known
        true_boxes [B, K, 4], true_labels [B, K] (-1 after the last), true_crowd [B, K] and size [B, 2].

        Boxes are in pixels of the picture as it was given, as far as `size` tells how large it was.
        """
        image = batch[self.spec.inputs[0]]
        boxes_BD4, scores_BD, labels_BD = self._detections(model(image), batch)
        scale_B14 = _scale(image, batch.get("size"))
        fields = {"boxes": boxes_BD4.float() * scale_B14, "scores": scores_BD.float(), "labels": labels_BD}
        if self.spec.target in batch:
            fields |= self._truth(batch, scale_B14)
        if "size" in batch:
            fields["size"] = batch["size"]
        return Outputs(batch["id"], fields)

    def _detections(self, given: Any, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        shapes = [list(part.shape) for part in given if isinstance(part, Tensor)] if isinstance(given, tuple) else []
        size = self.count(batch)
        most = shapes[0][1] if shapes and len(shapes[0]) == 3 else 0
        if shapes != [[size, most, 4], [size, most], [size, most]]:
            raise DlrunError(
                f"task: the model gives {shapes or type(given).__name__} for {size} examples;"
                f" detection needs boxes [{size}, D, 4], scores [{size}, D] and labels [{size}, D]",
                "choose a model for detection: dlrun list model",
            )
        return given

    def _truth(self, batch: Batch, scale_B14: Tensor) -> dict[str, Tensor]:
        """The true boxes, in as many places as the fullest example of the data needs, so that batches can be joined."""
        labels_BK = batch["box_labels"]
        crowd_BK = batch.get("box_crowd", torch.zeros_like(labels_BK, dtype=torch.bool))
        more = max(0, self.spec.sizes.get("boxes", 0) - labels_BK.shape[1])
        return {
            "true_boxes": pad(batch["boxes"].float() * scale_B14, (0, 0, 0, more)),
            "true_labels": pad(labels_BK, (0, more), value=-1),
            "true_crowd": pad(crowd_BK, (0, more)),
        }

    def metrics(self) -> list[Metric]:
        """ap, ap50, ap75, ar100, and ap_small, ap_medium, ap_large where the truth has such."""
        return [AveragePrecision(self.num_classes, self.spec.labels)]

    def rows(self, outputs: Outputs) -> list[Row]:
        """{"id", "objects": [{"label", "score", "box": [left, top, width, height]}], "truth" where it is known}.

        Objects from the surest down to the score threshold; of the truth a crowd is marked by "crowd": True.
        """
        rows: list[Row] = []
        for index, example in enumerate(outputs.ids.tolist()):
            row: Row = {"id": example, "objects": self._objects(outputs, index, self.score_threshold)}
            if "true_labels" in outputs.fields:
                row["truth"] = self._true_objects(outputs, index)
            rows.append(row)
        return rows

    def _objects(self, outputs: Outputs, index: int, least: float) -> list[Row]:
        names = ("labels", "scores", "boxes")
        labels, scores, boxes = (outputs.fields[name][index].tolist() for name in names)
        return [
            {"label": self._name(label), "score": score, "box": _left_top_width_height(box)}
            for label, score, box in zip(labels, scores, boxes, strict=True)
            if label >= 0 and score >= least
        ]

    def _true_objects(self, outputs: Outputs, index: int) -> list[Row]:
        names = ("true_labels", "true_crowd", "true_boxes")
        labels, crowds, boxes = (outputs.fields[name][index].tolist() for name in names)
        return [
            {"label": self._name(label), "box": _left_top_width_height(box)} | ({"crowd": True} if is_crowd else {})
            for label, is_crowd, box in zip(labels, crowds, boxes, strict=True)
            if label >= 0
        ]

    def _name(self, index: int) -> str:
        return self.spec.labels[index] if self.spec.labels else str(index)

    # ---------------------------------------------------------------- what a person looks at

    def pictures(self, batch: Batch, outputs: Outputs) -> list[Any]:
        """An image an example: the true boxes where they are known, and beside them those found."""
        from dlrun import pictures

        drawn = []
        for index, image_CHW in enumerate(batch[self.spec.inputs[0]]):
            picture = pictures.to_pil(image_CHW)
            panes = [self._drawn(picture, outputs, index)]
            if "true_labels" in outputs.fields:
                panes.insert(0, self._drawn(picture, outputs, index, truth=True))
            drawn.append(pictures.side_by_side(panes))
        return drawn

    def _drawn(self, picture: Image, outputs: Outputs, index: int, truth: bool = False) -> Image:
        """A picture of any size with the boxes found in it, down to the score threshold, or with the true ones."""
        from dlrun import pictures

        fields = outputs.fields
        boxes_D4, labels_D = (fields[f"true_{name}" if truth else name][index].cpu() for name in ("boxes", "labels"))
        shown_D = labels_D >= 0 if truth else (labels_D >= 0) & (fields["scores"][index].cpu() >= self.score_threshold)
        labels = labels_D[shown_D].tolist()
        texts = [self._name(label) for label in labels]
        if not truth:
            scores = fields["scores"][index].cpu()[shown_D].tolist()
            texts = [f"{text} {score:.2f}" for text, score in zip(texts, scores, strict=True)]
        colours = pictures.palette(self.num_classes)
        boxes = boxes_D4[shown_D] / _factors(fields, index, picture.width, picture.height)
        return pictures.draw_boxes(picture, boxes, texts, [colours[label] for label in labels])

    def files(self, names: Sequence[str], batch: Batch, outputs: Outputs) -> Iterator[tuple[str, bytes]]:
        """NAME.png: the picture, as large as it was given, with the boxes found down to the score threshold."""
        from dlrun import pictures

        for index, name in enumerate(names):
            picture = pictures.to_pil(batch[self.spec.inputs[0]][index])
            if "size" in outputs.fields:
                height, width = outputs.fields["size"][index].tolist()
                picture = picture.resize((width, height))
            yield f"{name}.png", pictures.png_bytes(self._drawn(picture, outputs, index))

    def index(self, names: Sequence[str], pictures: Sequence[str], outputs: Outputs) -> tuple[str, Any]:
        """predictions.json: every detection as a COCO file has annotations, each with its score; images are numbered
        by their ids, classes from 1."""
        ids = outputs.ids.tolist()
        images = [{"id": example, "file_name": name} for example, name in zip(ids, pictures, strict=True)]
        for image, size in zip(
            images, outputs.fields["size"].tolist() if "size" in outputs.fields else (), strict=False
        ):
            image |= dict(zip(("height", "width"), size, strict=True))
        categories = [{"id": index + 1, "name": self._name(index)} for index in range(self.num_classes)]
        found = [said for index, example in enumerate(ids) for said in self._annotations(outputs, index, example)]
        return "predictions.json", {"images": images, "categories": categories, "annotations": found}

    def _annotations(self, outputs: Outputs, index: int, example: int) -> list[Row]:
        """Of one picture. Numbers are those of the places that a model has for detections: no two are the same."""
        labels, scores, boxes = (outputs.fields[name][index].tolist() for name in ("labels", "scores", "boxes"))
        found = []
        for place, (label, score, corners) in enumerate(zip(labels, scores, boxes, strict=True), start=1):
            if label >= 0:
                box = _left_top_width_height(corners)
                said = {"id": example * len(labels) + place, "image_id": example, "category_id": label + 1, "bbox": box}
                found.append(said | {"area": round(box[2] * box[3], 2), "iscrowd": 0, "score": score})
        return found


def _scale(image_BCHW: Tensor, size_B2: Tensor | None) -> Tensor:
    """[B or 1, 1, 4]: what pixels of the image are multiplied by to be pixels of the picture as it was given."""
    if size_B2 is None:
        return torch.ones(1, 1, 4, device=image_BCHW.device)
    height, width = image_BCHW.shape[-2:]
    down_B, across_B = size_B2.float().unbind(1)
    return torch.stack([across_B / width, down_B / height] * 2, -1)[:, None]


def _factors(fields: dict[str, Tensor], index: int, width: int, height: int) -> Tensor:
    """[4]: what pixels of the picture as it was given are divided by to be pixels of one of width x height."""
    if "size" not in fields:
        return torch.ones(4)
    given_height, given_width = fields["size"][index].tolist()
    return torch.tensor([given_width / width, given_height / height] * 2)


def _left_top_width_height(box: Sequence[float]) -> list[float]:
    """As COCO writes a box, to a hundredth of a pixel."""
    left, top, right, bottom = box
    return [round(value, 2) for value in (left, top, right - left, bottom - top)]
