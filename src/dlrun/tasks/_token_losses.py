"""The loss of every task that predicts tokens: cross-entropy at each place that has a target."""

# B batch, T places, V vocabulary, N examples of the outputs

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from dlrun.contracts import NO_TARGET, Batch, DataSpec, Loss, Outputs, Row
from dlrun.errors import DlrunError
from dlrun.metrics.text import perplexity


def check_smoothing(label_smoothing: float) -> None:
    """Raises: DlrunError unless it is a share below 1."""
    if not 0 <= label_smoothing < 1:
        raise DlrunError(f"task.label_smoothing: {label_smoothing} is not in [0, 1)", "try task.label_smoothing=0.1")


def num_targets(batch: Batch) -> int:
    """Targets of a batch; the device is not waited for where `num_targets` [B] came with it on the CPU."""
    if "num_targets" in batch:
        return int(batch["num_targets"].sum())
    return int((batch["targets"] != NO_TARGET).sum())


def logits_of(model: nn.Module, spec: DataSpec, batch: Batch, vocabulary: int) -> Tensor:
    """[B, T, V], T as in the targets. Raises: DlrunError for a model that gives another shape."""
    logits_BTV = model(*[batch[name] for name in spec.inputs])
    expected = (*batch["targets"].shape, vocabulary)
    if logits_BTV.shape != expected:
        raise DlrunError(
            f"task: the model gives {list(logits_BTV.shape)}; a task that predicts tokens needs {list(expected)}",
            "choose a model for this task: dlrun list model",
        )
    return logits_BTV


def loss(logits_BTV: Tensor, batch: Batch, label_smoothing: float) -> Loss:
    """Cross-entropy summed over targets, in float32 (float64 for a float64 model)."""
    # Under autocast the logits are 16 bits wide, too few for a sum of exponentials.
    wide_BTV = logits_BTV.to(torch.promote_types(logits_BTV.dtype, torch.float32))
    total = cross_entropy(
        wide_BTV.flatten(0, 1), batch["targets"].flatten(), ignore_index=NO_TARGET, reduction="sum",
        label_smoothing=label_smoothing,
    )  # fmt: skip
    return Loss(total, num_targets(batch))


def sums(logits_BTV: Tensor, batch: Batch) -> dict[str, Tensor]:
    """What metrics.text.Perplexity reads: loss, num_targets, num_right, and bytes where the batch has them."""
    targets_BT = batch["targets"]
    flat_NV = logits_BTV.flatten(0, 1)
    flat_NV = flat_NV.to(torch.promote_types(flat_NV.dtype, torch.float32))
    loss_N = cross_entropy(flat_NV, targets_BT.flatten(), ignore_index=NO_TARGET, reduction="none")
    fields = {
        "loss": loss_N.reshape(targets_BT.shape).double().sum(1),
        "num_targets": (targets_BT != NO_TARGET).sum(1),
        "num_right": (logits_BTV.argmax(2) == targets_BT).sum(1),
    }
    return fields | ({"bytes": batch["bytes"]} if "bytes" in batch else {})


def rows(outputs: Outputs) -> list[Row]:
    """{"id"} and, where it is known, "loss" (a target's, in nats), "perplexity" and "tokens" (targets)."""
    found: list[Row] = [{"id": example} for example in outputs.ids.tolist()]
    if "loss" in outputs.fields:
        losses, counts = (outputs.fields[name].tolist() for name in ("loss", "num_targets"))
        for row, total, count in zip(found, losses, counts, strict=True):
            mean = total / count if count else float("nan")
            row |= {"loss": mean, "perplexity": perplexity(mean), "tokens": count}
    return found
