"""Teach a smaller model what a run or an ensemble says (Hinton et al. 2015): logits, features, every token of texts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from dlrun.compression import _layers
from dlrun.compression._teaching import Features, Taught, Teacher
from dlrun.contracts import CompressionTools, Compressor, DataSpec
from dlrun.errors import DlrunError


def build(
    spec: DataSpec,
    *,
    student: dict | None = None,
    teacher: str | None = None,
    duration: str = "10 epochs",
    temperature: float = 4.0,
    weight: float = 0.9,
    features: float = 0.0,
    lr_scale: float = 1.0,
) -> Compressor:
    """A student learns from the training examples and from the probabilities that a teacher gives them:
        loss = (1 - w) loss(truth) + w T^2 KL(teacher || student), both softened by the temperature T
    Of texts that is a sum over tokens, with the truth in front of each (teacher forcing). Where nothing is augmented a
    teacher of labels is asked about each example once.

    Source: Hinton et al. 2015, "Distilling the Knowledge in a Neural Network"; of tokens, Kim and Rush 2016, section 3.

    Settings:
    student: a model group, best given as model@compression.distill.student=NAME; null teaches the model as it is now,
        after the steps before this one
    teacher: a run or an ensemble; null for the run that is compressed
    duration: of the training, as train.duration
    temperature: T, at least 1; more shows more of what the teacher thinks of wrong classes
    weight: w, how much the teacher counts against the truth, from 0 to 1
    features: weight of the mean square between the features under the heads; 0 leaves them alone
    lr_scale: factor on the run's learning rate
    """
    _layers.require(temperature >= 1, "distill.temperature", temperature, "a number of at least 1")
    _layers.require(0 <= weight <= 1, "distill.weight", weight, "a number from 0 to 1")
    _layers.require(features >= 0, "distill.features", features, "a number of at least 0")
    _layers.require_training("distill", "duration", duration, lr_scale, optional=False)
    return Distill(student, teacher, duration, temperature, weight, features, lr_scale)


@dataclass(frozen=True)
class Distill:
    """See `build`."""

    student: dict | None
    teacher: str | None
    duration: str
    temperature: float
    weight: float
    features: float
    lr_scale: float

    def compress(self, model: nn.Module, tools: CompressionTools) -> tuple[nn.Module, dict[str, Any]]:
        """The student, trained. Raises: DlrunError for a model of boxes, which are chosen from what it says."""
        if "box_classes" in tools.spec.sizes:
            raise DlrunError(
                "distill: a detector says which boxes it chose, not how sure it is of each class everywhere",
                "there is no way to distil it yet; train the smaller model on the data itself: dlrun train model=NAME",
            )
        reference = self.teacher or tools.source
        known: Any = tools.predictor(reference)
        members = list(getattr(known, "members", [known]))
        self._require_alike(members, tools)
        before = _layers.numbers(model)
        student = tools.make_model(self.student) if self.student else model
        shares = _shares(known, members)
        models = [model.to(tools.device) for model in shares]
        teacher = Teacher(models, tools.spec, self.temperature, not tools.augments, list(shares.values()))
        found = None
        if self.features:
            found = Features(student, models[0], _layers.one_batch(tools), tools.spec, self.features)
        try:
            task = Taught(tools.task, teacher, self.weight, found)
            student = tools.finetune(student, self.duration, task=task, lr_scale=self.lr_scale)
        finally:
            if found is not None:
                found.close()
        report = _layers.change(before, student) | {"teacher": reference[:8], "teachers": len(models)}
        return student, ({"model": self.student} if self.student else {}) | {"report": report}

    def reshape(self, model: nn.Module, plan: Mapping[str, Any], tools: CompressionTools | None) -> nn.Module:
        """A student is what the run's config says; a model that was taught as it is keeps its shape."""
        return model

    def _require_alike(self, members: list[Any], tools: CompressionTools) -> None:
        for member in members:
            if _said_and_read(member.spec) != _said_and_read(tools.spec) or not hasattr(member, "model"):
                raise DlrunError(
                    "distill: the teacher reads or says other things than the student",
                    "they need the same inputs, classes and vocabulary: train both on one data set",
                )


def _said_and_read(spec: DataSpec) -> tuple[Any, ...]:
    """What must be one in teacher and student; files hold vocabularies."""
    return spec.inputs, spec.labels, spec.sizes, spec.files


def _shares(known: Any, members: list[Any]) -> dict[nn.Module, float]:
    """Each model of a teacher and its share of the mean: an ensemble that weighs its members has weights."""
    weights = dict(getattr(known, "fit", {})).get("weights") or [1.0] * len(members)
    found: dict[nn.Module, float] = {}
    for member, weight in zip(members, weights, strict=True):
        if weight > 0:
            found[member.model] = found.get(member.model, 0.0) + weight / sum(weights)
    return found
