"""Any number of classes for each example."""

# B batch, C classes, N examples of the outputs

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from dlrun.contracts import Batch, DataSpec, Goal, Loss, Metric, Outputs, Row
from dlrun.errors import DlrunError
from dlrun.metrics.multilabel import AveragePrecisionOfClasses, MultiLabel


def build(spec: DataSpec, *, threshold: float = 0.5, top_k: int = 5) -> MultiLabelTask:
    """Binary cross-entropy for each class by itself.

    Settings:
        threshold: probability from which a class is said to be there, in (0, 1)
        top_k: classes whose probabilities are shown for a prediction, at least 1
    """
    if not 0 < threshold < 1:
        raise DlrunError(f"task.threshold: {threshold} is not between 0 and 1", "try task.threshold=0.5")
    if top_k < 1:
        raise DlrunError(f"task.top_k: {top_k} is not at least 1", "try task.top_k=5")
    return MultiLabelTask(spec, spec.size("labels"), threshold, top_k)


@dataclass(eq=False)
class MultiLabelTask:
    """See `build`. Models map the inputs to logits [B, C]; the target's field is [B, C] of zeros and ones."""

    spec: DataSpec
    num_classes: int
    threshold: float
    top_k: int

    goal = Goal("micro_f1", "max")
    additive = True
    hub_kind = "{}-classification"

    def count(self, batch: Batch) -> int:
        """Examples in this batch."""
        return len(batch["id"])

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        """Cross-entropy, mean over classes and summed over examples, in float32 (float64 for a float64 model)."""
        logits_BC = self._table(model(*[batch[name] for name in self.spec.inputs]), batch, "the model")
        logits_BC = logits_BC.to(torch.promote_types(logits_BC.dtype, torch.float32))
        truth_BC = self._table(batch[self.spec.target], batch, "the data").to(logits_BC.dtype)
        total = binary_cross_entropy_with_logits(logits_BC, truth_BC, reduction="sum")
        return Loss(total / self.num_classes, self.count(batch))

    def _table(self, values: Tensor, batch: Batch, giver: str) -> Tensor:
        expected = (len(batch["id"]), self.num_classes)
        if values.shape != expected:
            raise DlrunError(
                f"task: {giver} gives {list(values.shape)} for {expected[0]} examples;"
                f" several labels an example need {list(expected)}",
                "data with one label an example: task=classification" if giver == "the data" else "dlrun list model",
            )
        return values

    def outputs(self, model: nn.Module, batch: Batch) -> Outputs:
        """Fields logits [B, C] float32, and labels [B, C] bool where they are known."""
        fields = {"logits": self._table(model(*[batch[name] for name in self.spec.inputs]), batch, "the model").float()}
        if self.spec.target in batch:
            fields["labels"] = self._table(batch[self.spec.target], batch, "the data") > 0.5
        return Outputs(batch["id"], fields)

    def metrics(self) -> list[Metric]:
        """loss, micro_f1, macro_f1, exact_match and mean_average_precision."""
        return [MultiLabel(self.num_classes, self.threshold), AveragePrecisionOfClasses(self.num_classes)]

    def rows(self, outputs: Outputs) -> list[Row]:
        """{"id", "labels": those above the threshold, "truth" where known, "probabilities" of the likeliest}."""
        probabilities_NC = outputs.fields["logits"].sigmoid()
        best_NK, classes_NK = probabilities_NC.topk(min(self.top_k, self.num_classes))
        found: list[Row] = []
        for index, example in enumerate(outputs.ids.tolist()):
            row: Row = {"id": example, "labels": self._names(probabilities_NC[index] >= self.threshold)}
            if "labels" in outputs.fields:
                row["truth"] = self._names(outputs.fields["labels"][index])
            pairs = zip(classes_NK[index].tolist(), best_NK[index].tolist(), strict=True)
            row["probabilities"] = {self._name(number): value for number, value in pairs}
            found.append(row)
        return found

    def _names(self, is_there_C: Tensor) -> list[str]:
        return [self._name(number) for number in is_there_C.nonzero()[:, 0].tolist()]

    def _name(self, index: int) -> str:
        return self.spec.labels[index] if self.spec.labels else str(index)
