"""Temperature scaling: one number, learned on validation, that makes probabilities as sure as they are right."""

# P rows of predictions, C classes

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from dlrun.contracts import Outputs
from dlrun.ensembles._fields import form_of, rows_of

_LEAST, _MOST = math.log(0.05), math.log(20.0)
_STEPS = 40  # of golden section; each shortens the range by 0.618


def temperature(outputs: Outputs) -> float | None:
    """The divisor of the logits under which the outputs' truth is likeliest; None for what has no probabilities.

    The loss is convex in 1/T, so that it has one minimum over the logarithm of T, in [0.05, 20].
    Source: Guo et al. 2017, "On Calibration of Modern Neural Networks", section 4.2.
    """
    form = form_of(outputs)
    if form.kind not in ("classes", "labels"):
        return None
    values, truth = rows_of(outputs)
    if truth is None or not len(values):
        return None

    def loss(log_temperature: float) -> float:
        scaled = values / math.exp(log_temperature)
        if form.kind == "classes":
            return float(cross_entropy(scaled, truth.long()))
        return float(binary_cross_entropy_with_logits(scaled, truth.double()))

    return math.exp(_minimum(loss))


def _minimum(loss) -> float:
    low, high, ratio = _LEAST, _MOST, (math.sqrt(5) - 1) / 2
    left, right = high - ratio * (high - low), low + ratio * (high - low)
    at_left, at_right = loss(left), loss(right)
    for _ in range(_STEPS):
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - ratio * (high - low)
            at_left = loss(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + ratio * (high - low)
            at_right = loss(right)
    return (low + high) / 2


def tempered(outputs: Outputs, by: float | None) -> Outputs:
    """The same predictions, their logits divided by a temperature; themselves for None, or where it has no meaning."""
    form = form_of(outputs)
    if by is None or form.kind not in ("classes", "labels"):
        return outputs
    values: Tensor = outputs.fields[form.field]
    scaled = values.to(torch.promote_types(values.dtype, torch.float32)) / by
    scaled = scaled.log_softmax(1) if form.kind == "classes" else scaled
    return Outputs(outputs.ids, outputs.fields | {form.field: scaled.to(values.dtype)})
