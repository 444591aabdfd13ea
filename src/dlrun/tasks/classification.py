"""One class for each example."""

# B batch, C classes, N examples of the outputs

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from dlrun.contracts import Batch, DataSpec, Goal, Loss, Metric, Outputs, Row
from dlrun.errors import DlrunError
from dlrun.metrics.auroc import Auroc
from dlrun.metrics.classification import Calibration, Classification, Confusion, PerClass
from dlrun.tasks import _class_weights


def build(
    spec: DataSpec, *, label_smoothing: float = 0.0, top_k: int = 5, class_weights: list | None = None
) -> ClassificationTask:
    """Cross-entropy over the classes of the data.

    Settings:
        label_smoothing: share of the target spread over all classes, 0 to below 1
        top_k: classes shown for a prediction, and the k of top-k accuracy, at least 1
        class_weights: a factor on the loss for each class, in the order of the labels; null for equal weights
    """
    num_classes = spec.size("classes")
    if not 0 <= label_smoothing < 1:
        raise DlrunError(f"task.label_smoothing: {label_smoothing} is not in [0, 1)", "try task.label_smoothing=0.1")
    if top_k < 1:
        raise DlrunError(f"task.top_k: {top_k} is not at least 1", "try task.top_k=5")
    weights_C = _class_weights.class_weights(class_weights, num_classes)
    return ClassificationTask(spec, num_classes, label_smoothing, top_k, weights_C)


_MOST_RANKED = 20  # classes; beyond it every example's probabilities take too much memory to keep
_MOST_IN_A_TABLE = 200  # classes; beyond it nobody reads a confusion matrix


@dataclass(eq=False)
class ClassificationTask:
    """See `build`. Models map the inputs to logits [B, C].

    Where a batch holds mix_label [B] and mix [B], the loss is mix times that of the own label plus the rest
    times that of mix_label (Zhang et al. 2018, "mixup", section 2; Yun et al. 2019, "CutMix", eq. 1).
    """

    spec: DataSpec
    num_classes: int
    label_smoothing: float
    top_k: int
    weights_C: Tensor | None

    goal = Goal("accuracy", "max")
    additive = True
    hub_kind = "{}-classification"

    def count(self, batch: Batch) -> int:
        """Examples in this batch."""
        return len(batch["id"])

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        """Cross-entropy summed over examples, in float32 (float64 for a float64 model).

        With class weights each example's loss is multiplied by its class's weight; the count stays that of
        the examples, so weights of mean 1 over the data keep the loss's scale.
        """
        logits_BC = self._logits(model, batch)
        loss_B = self._loss(logits_BC, batch[self.spec.target])
        if "mix" in batch:
            mix_B = batch["mix"].to(loss_B.dtype)
            loss_B = mix_B * loss_B + (1 - mix_B) * self._loss(logits_BC, batch["mix_label"])
        return Loss(loss_B.sum(), self.count(batch))

    def _loss(self, logits_BC: Tensor, labels_B: Tensor) -> Tensor:
        weights_C = None if self.weights_C is None else self.weights_C.to(logits_BC)
        return cross_entropy(logits_BC, labels_B, weights_C, reduction="none", label_smoothing=self.label_smoothing)

    def _logits(self, model: nn.Module, batch: Batch) -> Tensor:
        logits_BC = model(*[batch[name] for name in self.spec.inputs])
        if logits_BC.shape != (self.count(batch), self.num_classes):
            raise DlrunError(
                f"task: the model gives {list(logits_BC.shape)} for {self.count(batch)} examples;"
                f" classification needs [{self.count(batch)}, {self.num_classes}]",
                "choose a model for classification: dlrun list model",
            )
        # Under autocast the logits are 16 bits wide, too few for a sum of exponentials.
        return logits_BC.to(torch.promote_types(logits_BC.dtype, torch.float32))

    def outputs(self, model: nn.Module, batch: Batch) -> Outputs:
        """Fields log_probabilities [B, C] float32, and label [B] int64 where it is known."""
        log_probabilities_BC = self._logits(model, batch).log_softmax(1).float()
        known = {"label": batch[self.spec.target]} if self.spec.target in batch else {}
        return Outputs(batch["id"], {"log_probabilities": log_probabilities_BC} | known)

    def metrics(self) -> list[Metric]:
        """loss, accuracy, top-k accuracy, macro F1, balanced accuracy, calibration error, and the area under the ROC
        curve where there are few classes."""
        found: list[Metric] = [Classification(self.num_classes, self.top_k), PerClass(self.num_classes), Calibration()]
        found += [Auroc(self.num_classes)] if self.num_classes <= _MOST_RANKED else []
        return [*found, Confusion(self.num_classes)] if self.num_classes <= _MOST_IN_A_TABLE else found

    def rows(self, outputs: Outputs) -> list[Row]:
        """{"id", "label", "probability", "truth" where known, "probabilities": {label: probability} of the top k}."""
        best_NK, classes_NK = outputs.fields["log_probabilities"].exp().topk(min(self.top_k, self.num_classes))
        truths = outputs.fields["label"].tolist() if "label" in outputs.fields else [None] * len(outputs.ids)
        rows = []
        for example, best, classes, truth in zip(
            outputs.ids.tolist(), best_NK.tolist(), classes_NK.tolist(), truths, strict=True
        ):
            row: Row = {"id": example, "label": self._name(classes[0]), "probability": best[0]}
            if truth is not None:
                row["truth"] = self._name(truth)
            row["probabilities"] = {self._name(index): value for index, value in zip(classes, best, strict=True)}
            rows.append(row)
        return rows

    def _name(self, index: int) -> str:
        return self.spec.labels[index] if self.spec.labels else str(index)

    def pictures(self, batch: Batch, outputs: Outputs) -> list[Any]:
        """An image an example, below it "truth → prediction (probability)", marked where it is wrong; [] for what is
        no picture."""
        from dlrun import pictures

        drawn = []
        for image_CHW, row in zip(batch["image"], self.rows(outputs), strict=True) if "image" in batch else ():
            said, truth = f"{row['label']} ({row['probability']:.2f})", row.get("truth", row["label"])
            text = f"{truth} → {said}" if "truth" in row else said
            drawn.append(pictures.captioned(pictures.to_pil(image_CHW), text, is_wrong=truth != row["label"]))
        return drawn
