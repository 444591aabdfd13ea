"""The models of stacking: linear or with a hidden layer, drawn towards the mean of the members."""

# N examples, M members, C classes, labels or targets; F = M C inputs; H hidden units

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, mse_loss

from dlrun.randomness import permutation

PENALTIES = (1e-3, 1e-2, 1e-1)
Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Learner:
    """inputs [N, M, C] -> [N, C]: log-probabilities, logits or numbers, as the members' are."""

    name: Literal["logistic", "ridge", "mlp"]
    kind: str
    num_members: int
    num_classes: int
    width: int

    def fit(self, inputs_NMC: Tensor, truth: Tensor, penalty: float) -> Tensors:
        """The tensors of the least mean loss plus penalty times the mean square distance from the plain mean."""
        if self.name == "ridge" or (self.kind == "numbers" and self.name == "logistic"):
            return self._ridge(inputs_NMC, truth, penalty)
        tensors = {name: tensor.requires_grad_() for name, tensor in self._start(inputs_NMC).items()}
        drawn = [name for name in tensors if name not in ("shift", "scale", "bias")]
        search = torch.optim.LBFGS(
            list(tensors.values()), max_iter=40, line_search_fn="strong_wolfe",
            tolerance_grad=1e-6, tolerance_change=1e-8,
        )  # fmt: skip

        def closure() -> Tensor:
            search.zero_grad()
            loss = self.loss(self._raw(tensors, inputs_NMC), truth)
            loss = loss + penalty * sum(tensors[name].square().mean() for name in drawn)
            loss.backward()
            return loss

        for name in ("shift", "scale"):
            tensors[name].requires_grad_(False)
        search.step(closure)  # type: ignore[arg-type]
        return {name: tensor.detach() for name, tensor in tensors.items()}

    def say(self, tensors: Tensors, inputs_NMC: Tensor) -> Tensor:
        """[N, C]."""
        raw_NC = self._raw(tensors, inputs_NMC)
        if self.kind == "classes":
            if self.name == "ridge":
                raw_NC = raw_NC.clamp(min=1e-6).log()
            return raw_NC.log_softmax(1)
        if self.kind == "labels" and self.name == "ridge":
            return raw_NC.clamp(1e-6, 1 - 1e-6).logit()
        return raw_NC

    def loss(self, raw_NC: Tensor, truth: Tensor) -> Tensor:
        """Mean negative log-likelihood, or squared error."""
        if self.kind == "classes":
            return cross_entropy(raw_NC, truth)
        if self.kind == "labels":
            return binary_cross_entropy_with_logits(raw_NC, truth)
        return mse_loss(raw_NC, truth)

    def _start(self, inputs_NMC: Tensor) -> Tensors:
        """Tensors of a model that says the plain mean; a hidden layer is drawn by a fixed seed."""
        size, flat_NF = self.num_members * self.num_classes, inputs_NMC.flatten(1)
        facts = {"shift": flat_NF.mean(0), "scale": 1 / flat_NF.std(0).clamp(min=1e-6)}
        bias = torch.zeros(self.num_classes, dtype=torch.float64)
        if self.name != "mlp":
            return facts | {"weight": torch.zeros(size, self.num_classes, dtype=torch.float64), "bias": bias}
        generator = torch.Generator().manual_seed(0)
        inward = torch.randn(size, self.width, dtype=torch.float64, generator=generator) / size**0.5
        outward = torch.zeros(self.width, self.num_classes, dtype=torch.float64)
        return facts | {"inward": inward, "outward": outward, "bias": bias}

    def _raw(self, tensors: Tensors, inputs_NMC: Tensor) -> Tensor:
        as_is = self.name == "ridge" and self.kind != "numbers"
        given = (inputs_NMC.exp() if self.kind == "classes" else inputs_NMC.sigmoid()) if as_is else inputs_NMC
        scaled_NF = (inputs_NMC.flatten(1) - tensors["shift"]) * tensors["scale"]
        if as_is:
            scaled_NF = given.flatten(1) - tensors["shift"]
        if self.name == "mlp":
            return given.mean(1) + (scaled_NF @ tensors["inward"]).tanh() @ tensors["outward"] + tensors["bias"]
        return given.mean(1) + scaled_NF @ tensors["weight"] + tensors["bias"]

    def _ridge(self, inputs_NMC: Tensor, truth: Tensor, penalty: float) -> Tensors:
        """Least squares of what the mean leaves, in closed form."""
        tensors = self._start(inputs_NMC) | {"weight": torch.zeros(0)}
        if self.kind == "classes":
            wanted_NC = torch.nn.functional.one_hot(truth, self.num_classes).double()
            inputs_NMC = inputs_NMC.exp()
        else:
            wanted_NC = truth
            inputs_NMC = inputs_NMC.sigmoid() if self.kind == "labels" else inputs_NMC
        flat_NF = inputs_NMC.flatten(1)
        tensors["shift"] = flat_NF.mean(0)
        if self.kind != "numbers":
            tensors["scale"] = torch.ones_like(tensors["scale"])
        given_NF, rest_NC = (flat_NF - tensors["shift"]) * tensors["scale"], wanted_NC - inputs_NMC.mean(1)
        middle_C = rest_NC.mean(0)
        square_FF = given_NF.T @ given_NF / len(given_NF)
        square_FF += penalty * torch.eye(len(square_FF), dtype=torch.float64)
        weight_FC = torch.linalg.solve(square_FF, given_NF.T @ (rest_NC - middle_C) / len(given_NF))
        return {name: tensors[name] for name in ("shift", "scale")} | {"weight": weight_FC, "bias": middle_C}


def out_of_fold(learner: Learner, inputs: Tensor, truth: Tensor, penalty: float, folds: int) -> Tensor:
    """[N, C]: each example as the fit to the other folds says it."""
    order_N = permutation(len(inputs), "folds", 0)
    said = torch.zeros(len(inputs), learner.num_classes, dtype=torch.float64)
    for fold_n in order_N.tensor_split(folds):
        left_N = torch.ones(len(inputs), dtype=torch.bool)
        left_N[fold_n] = False
        tensors = learner.fit(inputs[left_N], truth[left_N], penalty)
        said[fold_n] = learner.say(tensors, inputs[fold_n])
    return said


def best_penalty(learner: Learner, inputs: Tensor, truth: Tensor, folds: int) -> float:
    """Of PENALTIES, the one whose fits do best on the folds they did not see."""
    found = []
    for penalty in PENALTIES:
        said = out_of_fold(learner, inputs, truth, penalty, folds)
        found.append((float(learner.loss(said, truth)), -penalty))
    return -min(found)[1]
