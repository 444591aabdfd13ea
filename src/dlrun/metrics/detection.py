"""Metrics of boxes: COCO's average precision and recall, counted by faster-coco-eval."""

# N examples, D detections of an example, K true boxes of one, C classes, R rows

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dlrun.contracts import Outputs
from dlrun.errors import DlrunError
from dlrun.metrics.by_class import line_by_class

_COLUMNS = 9  # example, is it a truth?, class, score, left, top, width, height, is it a crowd?
_AREAS = ("all", "small", "medium", "large")  # below 32 x 32 pixels, below 96 x 96, and above


def require_coco_eval() -> None:
    """Raises: DlrunError with the line that installs what this file needs, where it is missing."""
    if importlib.util.find_spec("faster_coco_eval") is None:
        raise DlrunError("the metrics of boxes need faster-coco-eval", 'pip install "dlrun[detection]"')


class AveragePrecision:
    """ap (mean over overlaps 0.5, 0.55 … 0.95), ap50, ap75, ar100, and ap_small, ap_medium, ap_large.

    Means over classes of the area under precision over recall; a class without true boxes is left out, and ap_small …
    where no true box is of that size. ar100 is the share of true boxes found with at most 100 detections of a class in
    an example. Sizes are areas of boxes in the pixels they are given in. A detection inside a crowd counts for nothing.

    Reads boxes [N, D, 4] (left, top, right, bottom), scores [N, D] and labels [N, D] (-1 after the last), and
    true_boxes [N, K, 4], true_labels [N, K] (-1 after the last) and perhaps true_crowd [N, K]; outputs without truth
    count for nothing. Needs every example at once: see contracts.Gathered. labels: the classes' names.
    """

    def __init__(self, num_classes: int, labels: Sequence[str] = ()) -> None:
        self._num_classes, self._labels = num_classes, labels
        self._parts: list[Tensor] = []
        self._evaluated: dict[str, np.ndarray] | None = None

    def update(self, outputs: Outputs) -> None:
        """Keep a batch's boxes."""
        fields = outputs.fields
        if "true_labels" not in fields:
            return
        ids_N = outputs.ids
        crowd_NK = fields.get("true_crowd", torch.zeros_like(fields["true_labels"]))
        said = _rows(
            ids_N, False, fields["labels"], fields["scores"], fields["boxes"], torch.zeros_like(fields["labels"])
        )
        truth = _rows(ids_N, True, fields["true_labels"], torch.zeros_like(crowd_NK), fields["true_boxes"], crowd_NK)
        self._parts += [said, truth]
        self._evaluated = None

    def state(self) -> list[Tensor]:
        """Nothing that could be summed."""
        return []

    def rows(self) -> Tensor:
        """Detections and true boxes, float64 [R, 9]."""
        return torch.cat([torch.zeros(0, _COLUMNS, dtype=torch.float64), *self._parts])

    def receive(self, rows: Tensor) -> None:
        """The rows of all ranks, in any order."""
        self._parts, self._evaluated = [rows], None

    def compute(self) -> dict[str, float]:
        """NaN where there was no true box."""
        precision_TRCAM, recall_TCAM = self._result()["precision"], self._result()["recall"]
        values = {
            "ap": _mean(precision_TRCAM[..., 0, -1]),
            "ap50": _mean(precision_TRCAM[0, ..., 0, -1]),
            "ap75": _mean(precision_TRCAM[5, ..., 0, -1]),
            "ar100": _mean(recall_TCAM[..., 0, -1]),
        }
        for index, area in enumerate(_AREAS[1:], start=1):
            value = _mean(precision_TRCAM[..., index, -1])
            if value == value:
                values[f"ap_{area}"] = value
        return values

    def tables(self) -> dict[str, list]:
        """{"ap_by_class": [C], "ap50_by_class": [C], "ap75_by_class": [C]}, None for a class without true boxes, and
        where there is one that has some "signatures": what was counted, and a line of the values by class."""
        precision_TRC = self._result()["precision"][..., 0, -1]
        each = {"ap": precision_TRC, "ap50": precision_TRC[:1], "ap75": precision_TRC[5:6]}
        found = {name: _by_class(precision) for name, precision in each.items()}
        return {f"{name}_by_class": values for name, values in found.items()} | self._signatures(found)

    def _signatures(self, found: Mapping[str, list[float | None]]) -> dict[str, list[str]]:
        counted, classes = sum(value is not None for value in found["ap"]), self._num_classes
        if not counted:
            return {}
        over = f"{counted} classes" if counted == classes else f"{counted} of {classes} classes"
        said = f"AP over {over} (COCO's: at overlaps 0.5 to 0.95, at most 100 detections of a class in a picture)"
        return {"signatures": [said, *(line_by_class(name, values, self._labels) for name, values in found.items())]}

    def _result(self) -> dict[str, np.ndarray]:
        """precision [T, R, C, A, M] and recall [T, C, A, M] over overlaps, recalls, classes, areas and most detections;
        -1 where there is nothing."""
        if self._evaluated is None:
            rows = self.rows().numpy()
            # Equal scores are ranked by their order: sorted, it does not depend on which rank saw what.
            self._evaluated = _evaluate(rows[np.lexsort(rows.T[::-1])], self._num_classes)
        return self._evaluated


def _rows(ids_N: Tensor, is_truth: bool, labels: Tensor, scores: Tensor, boxes: Tensor, crowd: Tensor) -> Tensor:
    """[R, 9] of the boxes that are there."""
    example = ids_N[:, None].expand_as(labels)
    low, high = boxes[..., :2].double(), boxes[..., 2:].double()
    kind = torch.full_like(labels, is_truth)
    columns = [column.double() for column in (example, kind, labels, scores)]
    table = torch.cat([torch.stack(columns, -1), low, high - low, crowd[..., None].double()], -1)
    return table[labels >= 0].cpu()


def _evaluate(rows_R9: np.ndarray, num_classes: int) -> dict[str, np.ndarray]:
    require_coco_eval()
    from faster_coco_eval import COCO, COCOeval_faster

    is_truth_R = rows_R9[:, 1] == 1
    categories = [{"id": index + 1, "name": str(index)} for index in range(num_classes)]  # COCO counts from 1
    images = [{"id": int(example)} for example in np.unique(rows_R9[:, 0])]
    truth = [_truth(row) | {"id": number} for number, row in enumerate(rows_R9[is_truth_R].tolist(), start=1)]
    coco = COCO({"images": images, "categories": categories, "annotations": truth}, print_function=_silent)
    said = [_annotation(row) | {"score": row[3]} for row in rows_R9[~is_truth_R].tolist()]
    run = COCOeval_faster(coco, coco.loadRes(said), iouType="bbox", print_function=_silent)
    run.evaluate()
    run.accumulate()
    return {name: np.asarray(run.eval[name]) for name in ("precision", "recall")}


def _annotation(row: Sequence[float]) -> dict[str, Any]:
    example, _, label, _, left, top, width, height, _ = row
    return {"image_id": int(example), "category_id": int(label) + 1, "bbox": [left, top, width, height]}


def _truth(row: Sequence[float]) -> dict[str, Any]:
    *_, width, height, is_crowd = row
    return _annotation(row) | {"area": width * height, "iscrowd": int(is_crowd)}


def _silent(*_: object) -> None:
    return None


def _by_class(precision_TRC: np.ndarray) -> list[float | None]:
    """[C] means over overlaps and recalls."""
    each = [_mean(precision_TRC[..., index]) for index in range(precision_TRC.shape[-1])]
    return [None if value != value else value for value in each]


def _mean(values: np.ndarray) -> float:
    """The mean of what is there (not -1); NaN of nothing."""
    known = values[values > -1]
    return float(known.mean()) if known.size else float("nan")
