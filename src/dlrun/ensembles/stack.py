"""Stacking: a small model over the members' outputs, learned on the validation split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from dlrun.contracts import DataSpec, Outputs, Task
from dlrun.ensembles import _fields, _stacking
from dlrun.ensembles._stacking import Learner
from dlrun.errors import DlrunError


def build(
    spec: DataSpec, *, learner: Literal["logistic", "ridge", "mlp"] = "logistic", folds: int = 5, width: int = 16
) -> Stack:
    """What the members say is the input of a further model, which is drawn towards their plain mean.

    How strongly it is drawn there is chosen on folds of the validation split; what is said of that split afterwards
    (for the temperature) comes from fits that did not see the example. Of numbers every linear learner is ridge.

    Settings:
        learner: logistic (linear, by likelihood), ridge (linear, by squared error), mlp (one hidden layer)
        folds: parts of the validation split, each left out once, at least 2
        width: hidden units of mlp, at least 1

    Source: Wolpert 1992, "Stacked generalization"; Breiman 1996, "Stacked regressions".
    """
    if folds < 2:
        raise DlrunError(f"ensemble.folds: {folds} is not at least 2", "try ensemble.folds=5")
    if width < 1:
        raise DlrunError(f"ensemble.width: {width} is not at least 1", "try ensemble.width=16")
    return Stack(learner, folds, width)


@dataclass(frozen=True)
class Stack:
    """See `build`."""

    learner: Literal["logistic", "ridge", "mlp"]
    folds: int
    width: int

    def fit(self, members: Sequence[Outputs], task: Task) -> dict[str, Any]:
        """{"penalty", "fit": the learner's tensors as lists}. Raises: DlrunError for pixels, boxes, or few examples."""
        learner, inputs, truth = self._prepared(members)
        if len(inputs) < 2 * self.folds:
            raise DlrunError(f"ensemble=stack: {len(inputs)} validation examples are too few for {self.folds} folds")
        return self._fitted(learner, inputs, truth, _stacking.best_penalty(learner, inputs, truth, self.folds))

    def refit(self, members: Sequence[Outputs], plan: Mapping[str, Any]) -> dict[str, Any]:
        """The plan of other members, drawn as strongly towards their mean."""
        return self._fitted(*self._prepared(members), plan["penalty"])

    def _fitted(self, learner: Learner, inputs: Tensor, truth: Tensor, penalty: float) -> dict[str, Any]:
        tensors = learner.fit(inputs, truth, penalty)
        return {"penalty": penalty, "fit": {name: tensor.tolist() for name, tensor in tensors.items()}}

    def held_out(self, members: Sequence[Outputs], plan: Mapping[str, Any]) -> Outputs:
        """Each example by the fit to the folds it is not in."""
        learner, inputs, truth = self._prepared(members)
        said = _stacking.out_of_fold(learner, inputs, truth, plan["penalty"], self.folds)
        return self._as_outputs(members[0], said)

    def combine(self, members: Sequence[Outputs], plan: Mapping[str, Any]) -> Outputs:
        """What the learner says."""
        tensors = {name: torch.tensor(value, dtype=torch.float64) for name, value in plan["fit"].items()}
        learner = self._learner(members)
        return self._as_outputs(members[0], learner.say(tensors, _inputs(members, learner.kind)))

    def _prepared(self, members: Sequence[Outputs]) -> tuple[Learner, Tensor, Tensor]:
        _fields.require_validation("stack", members)
        learner = self._learner(members)
        form = _fields.form_of(members[0])
        _fields.require_truth("stack", members[0], form)
        truth = members[0].fields[form.truth]
        return learner, _inputs(members, learner.kind), truth.long() if learner.kind == "classes" else truth.double()

    def _learner(self, members: Sequence[Outputs]) -> Learner:
        form = _fields.require("stack", members[0], "classes", "labels", "numbers")
        values = members[0].fields[form.field]
        if values.dim() > 2:
            raise DlrunError(
                "ensemble=stack does not apply to pixels and series", "try ensemble=weighted or ensemble=greedy"
            )
        return Learner(self.learner, form.kind, len(members), values.shape[1], self.width)

    def _as_outputs(self, first: Outputs, said: Tensor) -> Outputs:
        form = _fields.form_of(first)
        return Outputs(first.ids, first.fields | {form.field: said.to(first.fields[form.field].dtype)})


def _inputs(members: Sequence[Outputs], kind: str) -> Tensor:
    """[N, M, C] float64: log-probabilities or logits cut off at 15, or numbers."""
    form = _fields.form_of(members[0])
    values = torch.stack([member.fields[form.field].double() for member in members], 1)
    return values if kind == "numbers" else values.clamp(-15, 15)
