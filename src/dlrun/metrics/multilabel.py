"""Metrics of several labels an example: F1, exact match, average precision."""

# N examples, C classes

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from dlrun.contracts import Outputs
from dlrun.metrics.reduce import Sums


class MultiLabel:
    """loss (mean cross-entropy over examples and classes), micro_f1 (over all decisions), macro_f1 (mean over classes)
    and exact_match (share of examples with no decision wrong).

    Reads logits [N, C] and labels [N, C] bool; outputs without labels count for nothing. A class that is neither
    there nor predicted is left out of macro_f1, as in metrics.classification.
    """

    def __init__(self, num_classes: int, threshold: float = 0.5) -> None:
        self._threshold = math.log(threshold / (1 - threshold))  # of logits
        self._sums = Sums(3)  # examples, loss, exact
        self._counts = Sums(3, num_classes)  # right, predicted, there

    def update(self, outputs: Outputs) -> None:
        """Add a batch's sums."""
        if "labels" not in outputs.fields:
            return
        logits_NC, labels_NC = outputs.fields["logits"].double(), outputs.fields["labels"]
        said_NC = logits_NC >= self._threshold
        loss_N = binary_cross_entropy_with_logits(logits_NC, labels_NC.double(), reduction="none").mean(1)
        exact_N = (said_NC == labels_NC).all(1)
        self._sums.add(torch.stack([torch.ones_like(loss_N).sum(), loss_N.sum(), exact_N.double().sum()]))
        self._counts.add(torch.stack([part.double().sum(0) for part in (said_NC & labels_NC, said_NC, labels_NC)]))

    def state(self) -> list[Tensor]:
        """The sums [3], and counts by class [3, C]."""
        return [self._sums.on_cpu(), self._counts.on_cpu()]

    def compute(self) -> dict[str, float]:
        """NaN where nothing was counted."""
        (count, loss, exact), counts_3C = self._sums.on_cpu(), self._counts.on_cpu()
        right_C, decided_C = counts_3C[0], counts_3C[1] + counts_3C[2]
        values = {
            "loss": loss / count,
            "micro_f1": 2 * right_C.sum() / decided_C.sum(),
            "macro_f1": (2 * right_C / decided_C)[decided_C > 0].mean(),
            "exact_match": exact / count,
        }
        return {name: value.item() for name, value in values.items()}


class AveragePrecisionOfClasses:
    """mean_average_precision: the mean over classes of sum_k (R_k - R_(k-1)) P_k, with precision and recall at each
    distinct score; a class without examples is left out (as scikit-learn's average_precision_score has it).

    Needs every example at once: see contracts.Gathered.
    """

    def __init__(self, num_classes: int) -> None:
        self._num_classes = num_classes
        self._parts: list[Tensor] = []

    def update(self, outputs: Outputs) -> None:
        """Keep a batch's logits and labels."""
        if "labels" in outputs.fields:
            parts = [outputs.fields["logits"].double(), outputs.fields["labels"].double()]
            self._parts.append(torch.cat(parts, 1).cpu())

    def state(self) -> list[Tensor]:
        """Nothing that could be summed."""
        return []

    def rows(self) -> Tensor:
        """Logits and labels, float64 [N, 2 C]."""
        return torch.cat([torch.zeros(0, 2 * self._num_classes, dtype=torch.float64), *self._parts])

    def receive(self, rows: Tensor) -> None:
        """The rows of all ranks."""
        self._parts = [rows]

    def compute(self) -> dict[str, float]:
        """NaN where no class has an example."""
        logits_NC, labels_NC = self.rows().split(self._num_classes, 1)
        values = [
            average_precision(logits_N, labels_N)
            for logits_N, labels_N in zip(logits_NC.T, labels_NC.T, strict=True)
            if labels_N.any()
        ]
        return {"mean_average_precision": sum(values) / len(values) if values else math.nan}


def average_precision(scores_N: Tensor, labels_N: Tensor) -> float:
    """Area under precision over recall, in [0, 1]. labels_N: 0 or 1, at least one of them 1."""
    scores_N, order_N = scores_N.sort(descending=True)
    right_N = labels_N[order_N].cumsum(0)
    is_last_N = torch.cat([scores_N[1:] != scores_N[:-1], torch.ones(1, dtype=torch.bool)])  # of equal scores
    right_K = right_N[is_last_N]
    precision_K = right_K / (is_last_N.nonzero()[:, 0] + 1)
    gained_K = right_K.diff(prepend=right_K.new_zeros(1)) / right_K[-1]
    return (gained_K * precision_K).sum().item()
