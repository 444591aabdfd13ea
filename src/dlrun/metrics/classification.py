"""Metrics of one class an example, from log-probabilities: loss, accuracies, F1 and calibration."""

# N examples, C classes, M bins of confidence

from __future__ import annotations

import torch
from torch import Tensor

from dlrun.contracts import Outputs
from dlrun.errors import DlrunError
from dlrun.metrics.reduce import Sums


class Classification:
    """loss (mean negative log-likelihood), accuracy, and top<k>_accuracy where there are more than k classes.

    Reads the fields log_probabilities [N, C] and label [N]; outputs without labels count for nothing.
    """

    def __init__(self, num_classes: int, top_k: int = 1) -> None:
        self._top_k = top_k if 1 < top_k < num_classes else 1
        self._sums = Sums(4)  # examples, loss, right, right among the first k

    def update(self, outputs: Outputs) -> None:
        """Add a batch's sums."""
        if (given := _given(outputs)) is None:
            return
        log_probabilities_NC, labels_N = given
        own_N1 = log_probabilities_NC.gather(1, labels_N[:, None])
        # A tie counts for the class of the lower index, as argmax has it.
        better_N = (log_probabilities_NC > own_N1).sum(1)
        right_N = log_probabilities_NC.argmax(1) == labels_N
        among_N = (better_N < self._top_k) & ~own_N1[:, 0].isnan()
        sums = [torch.ones_like(own_N1).sum(), -own_N1.double().sum(), right_N.sum(), among_N.sum()]
        self._sums.add(torch.stack([value.double() for value in sums]))

    def state(self) -> list[Tensor]:
        """The sums, [4]."""
        return [self._sums.on_cpu()]

    def compute(self) -> dict[str, float]:
        """NaN where nothing was counted."""
        count, loss, right, among = self._sums.on_cpu().tolist()
        values = {"loss": _ratio(loss, count), "accuracy": _ratio(right, count)}
        return values if self._top_k == 1 else values | {f"top{self._top_k}_accuracy": _ratio(among, count)}


class PerClass:
    """macro_f1 and balanced_accuracy: means over classes, whatever their frequencies; of two classes f1 too, that of
    the second.

    A class without examples is left out of balanced_accuracy; one that is neither there nor predicted, of
    macro_f1. (scikit-learn has the same two rules.)
    """

    def __init__(self, num_classes: int) -> None:
        self._sums = Sums(3, num_classes)  # right, predicted, there

    def update(self, outputs: Outputs) -> None:
        """Add a batch's counts."""
        if (given := _given(outputs)) is None:
            return
        log_probabilities_NC, labels_N = given
        num_classes, predictions_N = log_probabilities_NC.shape[1], log_probabilities_NC.argmax(1)
        right_N = (predictions_N == labels_N).double()
        counts = [
            torch.zeros(num_classes, dtype=torch.float64, device=labels_N.device).index_add_(0, index_N, weight_N)
            for index_N, weight_N in (
                (labels_N, right_N),
                (predictions_N, torch.ones_like(right_N)),
                (labels_N, torch.ones_like(right_N)),
            )
        ]
        self._sums.add(torch.stack(counts))

    def state(self) -> list[Tensor]:
        """Counts by class, [3, C]."""
        return [self._sums.on_cpu()]

    def compute(self) -> dict[str, float]:
        """NaN where nothing was counted."""
        right_C, predicted_C, there_C = self._sums.on_cpu()
        recall_C = (right_C / there_C)[there_C > 0]
        f1_C = (2 * right_C / (predicted_C + there_C))[predicted_C + there_C > 0]
        values = {"macro_f1": f1_C.mean().item(), "balanced_accuracy": recall_C.mean().item()}
        if len(there_C) == 2:
            values["f1"] = (2 * right_C[1] / (predicted_C[1] + there_C[1])).item()
        return values


class Confusion:
    """No number, but a table: how often each class (row) was taken for each (column)."""

    def __init__(self, num_classes: int) -> None:
        self._sums = Sums(num_classes, num_classes)

    def update(self, outputs: Outputs) -> None:
        """Add a batch's counts."""
        if (given := _given(outputs)) is not None:
            log_probabilities_NC, labels_N = given
            self._sums.add(confusion_matrix(log_probabilities_NC.argmax(1), labels_N, log_probabilities_NC.shape[1]))

    def state(self) -> list[Tensor]:
        """Counts, [C, C]."""
        return [self._sums.on_cpu()]

    def compute(self) -> dict[str, float]:
        """Nothing: see `tables`."""
        return {}

    def tables(self) -> dict[str, list]:
        """{"confusion": counts [C][C]}."""
        return {"confusion": self._sums.on_cpu().long().tolist()}


class Calibration:
    """ece: `expected_calibration_error` of the stated probabilities."""

    def __init__(self, num_bins: int = 15) -> None:
        self._num_bins = num_bins
        self._sums = Sums(3, num_bins)  # examples, confidence, right

    def update(self, outputs: Outputs) -> None:
        """Add a batch's sums by bin."""
        if (given := _given(outputs)) is not None:
            log_probabilities_NC, labels_N = given
            self._sums.add(_bins(log_probabilities_NC.exp(), labels_N, self._num_bins))

    def state(self) -> list[Tensor]:
        """Sums by bin, [3, M]."""
        return [self._sums.on_cpu()]

    def compute(self) -> dict[str, float]:
        """NaN where nothing was counted."""
        return {"ece": _gap(self._sums.on_cpu())}


def expected_calibration_error(probabilities_BC: Tensor, labels_B: Tensor, num_bins: int = 15) -> float:
    """Mean gap between confidence and accuracy, in [0, 1]; 0 is perfectly calibrated.

    probabilities_BC: rows sum to 1. labels_B: class indices.
    Bins have equal width over confidence; empty bins weigh nothing.
    Raises: DlrunError if the two lengths differ or a row does not sum to 1 within 1e-3.
    Source: Guo et al. 2017, "On Calibration of Modern Neural Networks", eq. 5.
    """
    if len(probabilities_BC) != len(labels_B):
        raise DlrunError(f"calibration: {len(probabilities_BC)} rows of probabilities, {len(labels_B)} labels")
    off_B = (probabilities_BC.sum(1) - 1).abs()
    if (off_B > 1e-3).any():
        row = int(off_B.argmax())
        raise DlrunError(f"calibration: the probabilities of row {row} sum to {float(probabilities_BC[row].sum()):.4g}")
    return _gap(_bins(probabilities_BC, labels_B, num_bins).cpu())


def _bins(probabilities_NC: Tensor, labels_N: Tensor, num_bins: int) -> Tensor:
    """[3, M] float64: examples, summed confidence and right answers by bin of confidence, ]lower, upper]."""
    confidence_N, predictions_N = probabilities_NC.double().max(1)
    bin_N = (confidence_N * num_bins).ceil().long().sub(1).clamp(0, num_bins - 1)
    values = torch.stack([torch.ones_like(confidence_N), confidence_N, (predictions_N == labels_N).double()])
    return torch.zeros(3, num_bins, dtype=torch.float64, device=values.device).index_add_(1, bin_N, values)


def _gap(sums_3M: Tensor) -> float:
    count_M, confidence_M, right_M = sums_3M
    return _ratio((confidence_M - right_M).abs().sum().item(), count_M.sum().item())


def confusion_matrix(predictions_N: Tensor, labels_N: Tensor, num_classes: int) -> Tensor:
    """[C, C] float64 counts: the row is the true class, the column the predicted one."""
    cells_N = labels_N * num_classes + predictions_N
    return torch.bincount(cells_N, minlength=num_classes**2).reshape(num_classes, num_classes).double()


def _given(outputs: Outputs) -> tuple[Tensor, Tensor] | None:
    """log_probabilities [N, C] and label [N], or None where the labels are unknown."""
    labels_N = outputs.fields.get("label")
    return None if labels_N is None else (outputs.fields["log_probabilities"], labels_N)


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")
