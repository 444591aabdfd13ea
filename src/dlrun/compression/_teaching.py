"""A task that learns from a teacher beside the truth: what the models say, and the features under their heads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlrun.compression import _layers
from dlrun.contracts import NO_TARGET, Batch, DataSpec, Loss, Metric, Outputs, Row, Task
from dlrun.errors import DlrunError

# B batch, K classes (or labels, targets, tokens of a vocabulary); in front of K maybe times or behind it pixels

_CACHE_BYTES = 2**28  # of a teacher's answers


class Teacher:
    """One model or several, whose probabilities are averaged. shares: of each in the mean, that sum to 1; else equal.
    remembers: answers are kept by id, for examples that are never changed."""

    def __init__(
        self, models: Sequence[nn.Module], spec: DataSpec, temperature: float, remembers: bool,
        shares: Sequence[float] | None = None,
    ) -> None:  # fmt: skip
        self.models = [model.eval().requires_grad_(False) for model in models]
        self.spec, self.temperature = spec, temperature
        self._shares = torch.tensor(shares or [1 / len(models)] * len(models))
        self._known: dict[int, Tensor] | None = {} if remembers else None

    @torch.no_grad()
    def says(self, batch: Batch) -> Tensor:
        """Softened log-probabilities; of several labels probabilities; of numbers the numbers."""
        ids = batch["id"].tolist()
        if self._known is not None and all(one in self._known for one in ids):
            return torch.stack([self._known[one] for one in ids]).to(batch["id"].device)
        said = [softened(answer(model, self.spec, batch), self.spec, self.temperature) for model in self.models]
        together = torch.stack(said)
        shares = self._shares.to(together.device).view(-1, *[1] * (together.dim() - 1))
        if kind(self.spec) == "classes":
            mean = (together + shares.log()).logsumexp(0)
        else:
            mean = (shares * together).sum(0)
        self._remember(ids, mean)
        return mean

    def _remember(self, ids: list[int], said: Tensor) -> None:
        if self._known is None:
            return
        if said.dim() != 2 or len(self._known) * said[0].numel() * 4 > _CACHE_BYTES:
            self._known = None  # times and pixels are many, and padded to each batch's own size
            return
        self._known |= dict(zip(ids, said.cpu(), strict=True))


def answer(model: Any, spec: DataSpec, batch: Batch) -> Tensor:
    """The logits, or the numbers, of a model."""
    return _first(model(*[batch[name] for name in spec.inputs]))


def _first(said: Any) -> Tensor:
    if isinstance(said, dict):
        said = next(iter(said.values()))
    while isinstance(said, list | tuple):
        said = said[0]
    if not isinstance(said, Tensor):
        raise DlrunError("distill: what this model says is no tensor of logits", "there is no way to distil it yet")
    return said


def kind(spec: DataSpec) -> str:
    """What a model's numbers are: of classes, of several labels, or numbers."""
    return "numbers" if "targets" in spec.sizes else "labels" if "labels" in spec.sizes else "classes"


def softened(logits: Tensor, spec: DataSpec, temperature: float) -> Tensor:
    """Log-probabilities of classes at a temperature, probabilities of labels, numbers as they are."""
    form = kind(spec)
    if form == "numbers":
        return logits.float()
    if form == "labels":
        return (logits.float() / temperature).sigmoid()
    return (logits.float() / temperature).log_softmax(1 if logits.dim() == 4 else -1)


class Taught:
    """A task with a teacher: (1 - weight) of its own loss, and weight of the distance to what the teacher says.

    Of classes T^2 KL(teacher || student) at temperature T, of labels T^2 cross-entropy, of numbers the square.
    Source: Hinton et al. 2015, "Distilling the Knowledge in a Neural Network", section 2. Features: Romero et al.
    2015, "FitNets", section 2.2, with a linear map where widths differ.
    """

    def __init__(self, task: Task, teacher: Teacher, weight: float, features: Features | None) -> None:
        self.task, self.teacher, self.weight, self.features = task, teacher, weight, features
        self.goal, self.additive = task.goal, task.additive
        if features is not None:
            self.parts = features.map

    def __getattr__(self, name: str) -> Any:
        return getattr(self.task, name)

    def count(self, batch: Batch) -> int:
        return self.task.count(batch)

    def outputs(self, model: nn.Module, batch: Batch) -> Outputs:
        return self.task.outputs(model, batch)

    def metrics(self) -> list[Metric]:
        return self.task.metrics()

    def rows(self, outputs: Outputs) -> list[Row]:
        return self.task.rows(outputs)

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        """As the task's; one pass of each model."""
        heard = _Heard(model)
        own = self.task.loss(heard, batch)  # type: ignore[arg-type]
        read = batch | dict(zip(self.teacher.spec.inputs, heard.inputs, strict=False))  # as a task hid tokens of it
        logits = _first(heard.said)
        counts = _counting(heard.said, logits, batch)
        distance = self._distance(logits, self.teacher.says(read), counts)
        total = (1 - self.weight) * own.sum + self.weight * own.count * distance
        if self.features is not None:
            total = total + own.count * self.features.distance(read, counts)
        return Loss(total, own.count)

    def _distance(self, logits: Tensor, wanted: Tensor, counts: Tensor | None) -> Tensor:
        """Mean over targets."""
        spec, temperature = self.teacher.spec, self.teacher.temperature
        form = kind(spec)
        if form == "numbers":
            return F.mse_loss(logits.float(), wanted)
        if form == "labels":
            return temperature**2 * F.binary_cross_entropy_with_logits(logits.float() / temperature, wanted)
        said = softened(logits, spec, temperature)
        if said.shape != wanted.shape:
            raise DlrunError(
                f"distill: the student says {list(said.shape[1:])} of an example, the teacher {list(wanted.shape[1:])}",
                "they must have the same classes or vocabulary, and the same length",
            )
        each = (wanted.exp() * (wanted - said)).sum(1 if said.dim() == 4 else -1)
        return temperature**2 * _mean(each, counts)


def _counting(said: Any, logits: Tensor, batch: Batch) -> Tensor | None:
    """Which places [B, T] of an answer [B, T, K] count: those with a target, or as many as the model says; or None."""
    if logits.dim() != 3:
        return None
    if isinstance(said, tuple) and len(said) == 2 and said[1].shape == logits.shape[:1]:
        return torch.arange(logits.shape[1], device=logits.device) < said[1][:, None].to(logits.device)
    targets = batch.get("targets")
    return targets != NO_TARGET if targets is not None and targets.shape == logits.shape[:2] else None


def _mean(values: Tensor, counts: Tensor | None) -> Tensor:
    """Over the places that count, of all behind them."""
    if counts is None:
        return values.mean()
    counts = counts.view(*counts.shape, *[1] * (values.dim() - 2)).expand_as(values)
    return (values * counts).sum() / counts.sum().clamp(min=1)


class _Heard:
    """A model whose inputs and answer are remembered."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        self.inputs = inputs
        self.said = self._model(*inputs, **named)
        return self.said

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


class Features:
    """What goes into the heads of student and teacher, and a linear map from the first to the second."""

    def __init__(self, student: nn.Module, teacher: nn.Module, batch: Batch, spec: DataSpec, weight: float) -> None:
        self.weight, self.spec, self._teacher = weight, spec, teacher
        self._found: dict[str, Tensor] = {}
        self._handles = [self._listen(student, "student"), self._listen(teacher, "teacher")]
        with torch.no_grad():
            for model in (student, teacher):
                model.eval()
                answer(model, spec, batch)
        widths = [self._found[who].shape[-1] for who in ("student", "teacher")]
        self.map = nn.Linear(widths[0], widths[1]).to(batch["id"].device)

    def _listen(self, model: nn.Module, who: str) -> Any:
        heads = [name for name in _layers.in_heads(model) if _layers.is_linear(model.get_submodule(name))]
        if len(heads) != 1:
            raise DlrunError(
                f"distill: {_layers.kind(model)} has no single linear head whose features could be compared",
                "compression.distill.features=0",
            )

        def note(_: nn.Module, inputs: Any) -> None:
            self._found[who] = inputs[0]

        return model.get_submodule(heads[0]).register_forward_pre_hook(note)

    def distance(self, batch: Batch, counts: Tensor | None) -> Tensor:
        """Mean square between the teacher's features and the student's, mapped, at the places [B, T] that count."""
        with torch.no_grad():
            answer(self._teacher, self.spec, batch)
        mapped, wanted = self.map(self._found["student"]).float(), self._found["teacher"].float()
        if mapped.shape != wanted.shape:
            raise DlrunError(
                f"distill: the student's features are {list(mapped.shape[1:-1])} times its width, the teacher's "
                f"{list(wanted.shape[1:-1])}",
                "compression.distill.features=0",
            )
        return self.weight * _mean((mapped - wanted).square(), counts if mapped.dim() == 3 else None)

    def close(self) -> None:
        """Listen no more."""
        for handle in self._handles:
            handle.remove()
