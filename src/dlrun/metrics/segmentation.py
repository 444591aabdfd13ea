"""Metrics of one class a pixel, from log-probabilities: intersection over union, accuracies and loss."""

# N examples, C classes, h x w pixels of the log-probabilities, H x W pixels of the mask

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, interpolate

from dlrun.contracts import IGNORED, Outputs
from dlrun.errors import DlrunError, Exit
from dlrun.metrics.by_class import line_by_class
from dlrun.metrics.reduce import Sums

_VALUES = 256  # of a pixel of a mask


class Segmentation:
    """mean_iou, pixel_accuracy, mean_class_accuracy, and loss (mean negative log-likelihood of a pixel).

    Counted are the pixels of all masks together, at the masks' own size, except those that are IGNORED in the mask:
    they are in no sum, whatever was predicted there. Predictions are brought to that size as log-probabilities
    (`resized`), and the class of a pixel is the likeliest one.

    The intersection over union of a class is the pixels that are of it and were taken for it, over the pixels that are
    of it or were taken for it, over the whole split (not a mean over pictures). mean_iou is the mean over the classes
    that occur in the truth or in the predictions; mean_class_accuracy, of the share found of each class, over those
    that occur in the truth. (scikit-learn: jaccard_score and balanced_accuracy_score.)

    Reads the fields log_probabilities [N, C, h, w] and mask [N, H, W]; outputs without masks count for nothing.
    labels: the classes' names.   ignored: the values of masks that do not count. Both are for the lines in `tables`.
    """

    def __init__(self, num_classes: int, labels: Sequence[str] = (), ignored: Sequence[int] = ()) -> None:
        self._num_classes = num_classes
        self._labels, self._ignored = labels, ignored
        self._sizes: dict[tuple[int, ...], None] = {}  # height and width of masks, in the order they came
        self._counts = Sums(num_classes, num_classes)  # pixels; the row is the true class, the column the predicted one
        self._loss = Sums(1)

    def update(self, outputs: Outputs) -> None:
        """Add a batch's counts, picture by picture, so that only one of them is held at the masks' size.

        Raises: DlrunError (code DATA) for a mask that holds a class the data does not have.
        """
        masks_NHW = outputs.fields.get("mask")
        for index in range(0 if masks_NHW is None else len(masks_NHW)):
            mask_HW = masks_NHW[index]  # type: ignore[index]
            self._sizes[tuple(mask_HW.shape)] = None
            log_probabilities_CHW = resized(outputs.fields["log_probabilities"][index], mask_HW.shape)
            self._counts.add(self._confusion(log_probabilities_CHW, mask_HW))
            # Between two pixels probabilities no longer sum to 1; cross_entropy makes them, again.
            loss = cross_entropy(
                log_probabilities_CHW[None], mask_HW[None].long(), ignore_index=IGNORED, reduction="sum"
            )
            self._loss.add(loss.double()[None])

    def _confusion(self, log_probabilities_CHW: Tensor, mask_HW: Tensor) -> Tensor:
        """[C, C] float64 counts of one picture."""
        size = self._num_classes
        cells = mask_HW.reshape(-1).long() * size + log_probabilities_CHW.argmax(0).reshape(-1)
        counts_VC = torch.bincount(cells, minlength=_VALUES * size).reshape(_VALUES, size)
        unknown = counts_VC[size:IGNORED].sum(1).nonzero()
        if len(unknown):
            raise DlrunError(
                f"a mask holds class {size + int(unknown[0])}; the data has {size} classes, 0 to {size - 1}",
                f"{IGNORED} marks pixels that are not scored",
                Exit.DATA,
            )
        return counts_VC[:size].double()

    def state(self) -> list[Tensor]:
        """Counts [C, C], and the summed loss [1]."""
        return [self._counts.on_cpu(), self._loss.on_cpu()]

    def compute(self) -> dict[str, float]:
        """NaN where nothing was counted."""
        counts_CC, loss = self._counts.on_cpu(), self._loss.on_cpu()[0]
        right_C, there_C = counts_CC.diagonal(), counts_CC.sum(1)
        iou_C = intersection_over_union(counts_CC)
        values = {
            "mean_iou": iou_C[~iou_C.isnan()].mean(),
            "pixel_accuracy": right_C.sum() / counts_CC.sum(),
            "mean_class_accuracy": (right_C / there_C)[there_C > 0].mean(),
            "loss": loss / counts_CC.sum(),
        }
        return {name: value.item() for name, value in values.items()}

    def tables(self) -> dict[str, list]:
        """{"confusion": pixels [C][C], "iou": of each class [C], None for one that is neither there nor predicted, and
        where there were masks "signatures": what was counted, and a line of the values by class}."""
        counts_CC = self._counts.on_cpu()
        iou = [None if value != value else value for value in intersection_over_union(counts_CC).tolist()]
        return {"confusion": counts_CC.long().tolist(), "iou": iou} | self._signatures(iou)

    def _signatures(self, iou: list[float | None]) -> dict[str, list[str]]:
        if not self._sizes:
            return {}
        counted = sum(value is not None for value in iou)
        classes = f"{counted} classes" if counted == len(iou) else f"{counted} of {len(iou)} classes"
        sizes = " and ".join(f"{width} x {height}" for height, width in self._sizes)
        ignored = f", ignoring {', '.join(map(str, self._ignored))}" if self._ignored else ""
        return {"signatures": [f"mean IoU over {classes} at {sizes}{ignored}", line_by_class("iou", iou, self._labels)]}


def intersection_over_union(counts_CC: Tensor) -> Tensor:
    """[C] float64 of each class, from pixels by true class (row) and predicted class (column); NaN for 0 / 0."""
    both_C = counts_CC.diagonal()
    return both_C / (counts_CC.sum(0) + counts_CC.sum(1) - both_C)


def resized(scores_Chw: Tensor, size: Sequence[int]) -> Tensor:
    """[C, *size] float32: scores of one picture's classes at another size (height, width), bilinear between pixels.

    Of logits and of log-probabilities it gives the same classes: at every pixel they differ by one number for all.
    """
    scores_Chw = scores_Chw.float()
    if scores_Chw.shape[1:] == tuple(size):
        return scores_Chw
    return interpolate(scores_Chw[None], size=tuple(size), mode="bilinear", align_corners=False)[0]
