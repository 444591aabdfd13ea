"""Gradient health: what is measured is what torch computes, and each disease gets its name and its cure."""

import math

import pytest
import torch
from torch import nn

from dlrun.training.diagnose import Diagnosis, judge


def layers(*norms: float, dead: float = 0.0) -> dict:
    return {f"layer{i}": {"gradient_norm": norm, "dead_share": dead} for i, norm in enumerate(norms)}


@pytest.mark.parametrize(("norms", "dead", "verdict"), [
    ((0.5, 0.2, 0.3), 0.1, "healthy"),
    ((1e-6, 1e-3, 0.8), 0.0, "vanishing"),
    ((0.0, 0.0, 0.0), 0.0, "vanishing"),
    ((2000.0, 3.0, 0.5), 0.0, "exploding"),
    ((1.0, math.inf, 0.5), 0.0, "exploding"),
    ((0.5, 0.2, 0.3), 0.7, "dead units"),
    ((0.0, 0.0, 0.4), 1.0, "dead units"),
    ((0.5, 0.2, 0.3), math.nan, "healthy"),
])  # fmt: skip
def test_a_disease_is_named(norms, dead, verdict):
    found, reason, cure = judge(layers(*norms, dead=dead))
    assert found == verdict
    assert reason and bool(cure) == (verdict != "healthy")


def test_what_is_measured_is_what_torch_computes():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    with torch.no_grad():
        model[0].bias[:2] = -100.0  # two of six units can never be positive
    diagnosis = Diagnosis(model, every=1)
    inputs = torch.randn(16, 4)
    model(inputs).square().sum().backward()
    values = diagnosis.after_step(1, [])
    assert values["gradient/0"] == pytest.approx(float(model[0].weight.grad.norm()))
    assert values["gradient/2"] == pytest.approx(float(model[2].weight.grad.norm()))
    hidden = inputs @ model[0].weight.T + model[0].bias
    assert values["activation/0"] == pytest.approx(float(hidden.detach().std()), rel=1e-5)
    expected = float((hidden.relu().amax(0) <= 0).float().mean())
    assert diagnosis.report()["layers"]["0"]["dead_share"] == pytest.approx(expected)
    assert expected >= 2 / 6


def test_steps_between_are_not_looked_at():
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3))
    diagnosis = Diagnosis(model, every=10)
    assert diagnosis.after_step(9, []) == {}
    assert diagnosis.report()["verdict"] == "unknown"
