"""Area under the ROC curve: how well probabilities rank examples, whatever threshold is put on them."""

# N examples, C classes

from __future__ import annotations

import math

import torch
from torch import Tensor

from dlrun.contracts import Outputs


class Auroc:
    """auroc: of two classes, the chance that an example of the second is given a higher probability of it than one of
    the first; of more, the mean of that over classes, each against all others. A tie counts one half.

    Reads log_probabilities [N, C] and label [N]; outputs without labels count for nothing. A class without examples,
    or without others, is left out. Needs every example at once: see contracts.Gathered.
    """

    def __init__(self, num_classes: int) -> None:
        self._num_classes = num_classes
        self._parts: list[Tensor] = []

    def update(self, outputs: Outputs) -> None:
        """Keep a batch's labels and log-probabilities."""
        if "label" in outputs.fields:
            labels_N1 = outputs.fields["label"][:, None].double()
            self._parts.append(torch.cat([labels_N1, outputs.fields["log_probabilities"].double()], 1).cpu())

    def state(self) -> list[Tensor]:
        """Nothing that could be summed."""
        return []

    def rows(self) -> Tensor:
        """Labels and log-probabilities, float64 [N, 1 + C]."""
        return torch.cat([torch.zeros(0, 1 + self._num_classes, dtype=torch.float64), *self._parts])

    def receive(self, rows: Tensor) -> None:
        """The rows of all ranks."""
        self._parts = [rows]

    def compute(self) -> dict[str, float]:
        """NaN where no class can be told from others."""
        rows = self.rows()
        classes = [1] if self._num_classes == 2 else range(self._num_classes)
        values = [area_under_roc(rows[:, 1 + index], rows[:, 0] == index) for index in classes]
        known = [value for value in values if not math.isnan(value)]
        return {"auroc": sum(known) / len(known) if known else math.nan}


def area_under_roc(scores_N: Tensor, is_positive_N: Tensor) -> float:
    """In [0, 1]; NaN unless there are both kinds. From the ranks of the scores, equal ones sharing their mean rank
    (Mann and Whitney 1947)."""
    num_positive = int(is_positive_N.sum())
    num_negative = len(scores_N) - num_positive
    if not num_positive or not num_negative:
        return math.nan
    _, place_N, count_U = scores_N.unique(return_inverse=True, return_counts=True)
    last_U = count_U.cumsum(0).double()
    rank_N = (last_U - (count_U - 1) / 2)[place_N]
    above = rank_N[is_positive_N].sum().item() - num_positive * (num_positive + 1) / 2
    return above / (num_positive * num_negative)
