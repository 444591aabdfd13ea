"""The proof of a compression: before and after are timed in turns, on the same batches."""

from __future__ import annotations

from itertools import groupby
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from dlrun.commands import _compress_proof as proof
from dlrun.training import latency
from dlrun.training.precision import Precision

CPU = torch.device("cpu")


def predictor(name: str, called: list[tuple[str, int]]) -> Any:
    model = nn.Linear(4, 3)
    model.register_forward_pre_hook(lambda _, inputs: called.append((name, len(inputs[0]))))
    spec = SimpleNamespace(inputs=("x",))
    return SimpleNamespace(model=model, spec=spec, device=CPU, _precision=Precision.of("fp32", CPU))


def test_two_models_are_timed_in_turns_and_both_as_often(monkeypatch):
    monkeypatch.setattr(latency, "_SECONDS", 0.0)
    called: list[tuple[str, int]] = []
    batches = [{"x": torch.randn(8, 4)} for _ in range(2)]
    before, after = proof.measure([predictor("before", called), predictor("after", called)], batches)
    for size in (1, 8):
        turns = [(name, len(list(calls))) for name, calls in groupby(name for name, rows in called if rows == size)]
        assert [name for name, _ in turns[-2 * proof._TURNS :]] == ["before", "after"] * proof._TURNS
        assert len({count for _, count in turns[-2 * proof._TURNS :]}) == 1
    for measured in (before, after):
        assert measured.latency_p95 >= measured.latency > 0
        assert measured.rate > 0 and measured.joules >= 0
        assert measured.memory_bytes >= 4 * (4 * 3 + 3)


def test_that_boxes_have_no_interval_is_said():
    side = {"parameters": 10, "nonzero": 10, "macs": 5}
    assert proof.remarks(side, side | {"goal_interval": [0.1, 0.2]}) == []
    (said,) = proof.remarks(side, side | {"goal_interval": None})
    assert said == "the goal has no bootstrap interval: boxes are not resampled"


def test_a_clock_that_slows_down_in_the_middle_slows_both(monkeypatch):
    """Each call takes a second at first and ten from the middle on; the same model, before and after, is as fast."""
    seconds, calls = [0.0], [0]
    monkeypatch.setattr(latency, "_SECONDS", 40.0)
    monkeypatch.setattr("time.perf_counter", lambda: seconds[0])
    called: list[tuple[str, int]] = []

    def slower(*_) -> None:
        calls[0] += 1
        seconds[0] += 1.0 if calls[0] < 60 else 10.0

    both = [predictor(name, called) for name in ("before", "after")]
    for each in both:
        each.model.register_forward_pre_hook(slower)
    before, after = proof.measure(both, [{"x": torch.randn(8, 4)}])
    assert before.latency == pytest.approx(after.latency)
    assert before.rate == pytest.approx(after.rate)
