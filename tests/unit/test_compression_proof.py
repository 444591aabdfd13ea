"""The proof of a compression: before and after are timed in turns, on the same batches."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
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
        assert measured.memory_bytes is None or measured.memory_bytes >= 4 * (4 * 3 + 3)


def test_weights_that_are_written_out_and_what_a_runtime_makes_ready_count_as_memory(monkeypatch):
    from tests.unit.fake_compression import IMAGES, Tools, images_net

    from dlrun.compression import quantize_weights

    monkeypatch.setattr(latency, "_SECONDS", 0.0)
    monkeypatch.setattr(proof, "_added", lambda run, device: run() or 0)
    model, _ = quantize_weights.build(IMAGES, format="int8", smallest=1).compress(images_net(), Tools(IMAGES))
    floats = sum(4 * weight.numel() for weight in images_net().parameters())
    sides = [predictor("", []), predictor("", [])]
    for side, net in zip(sides, (images_net(), model), strict=True):
        side.model, side.spec.inputs = net, IMAGES.inputs
    before, after = proof.measure(sides, [{"image": torch.randn(4, 1, 8, 8)}])
    assert before.memory_bytes is not None and after.memory_bytes is not None
    assert before.memory_bytes >= floats and after.memory_bytes > 1.2 * before.memory_bytes


def test_memory_is_weighed_at_the_first_call_and_is_unknown_where_the_system_does_not_tell(monkeypatch):
    monkeypatch.setattr(latency, "_SECONDS", 0.0)
    called: list[tuple[str, int]] = []
    calls_before: list[int] = []
    monkeypatch.setattr(proof, "_added", lambda run, device: calls_before.append(len(called)) or run())
    measured = proof.measure([predictor("before", called), predictor("after", called)], [{"x": torch.randn(8, 4)}])
    assert calls_before == [0, 1] and [each.memory_bytes for each in measured] == [None, None]
    side = {"parameters": 10, "nonzero": 10, "macs": 5}
    (said,) = proof.remarks(side, side | {"peak_memory_bytes": None})
    assert said == "peak memory is unknown: this system does not tell it"


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux counts the peak of a process")
def test_memory_that_is_used_again_is_seen_to_be_needed():
    def run() -> None:
        torch.ones(4 << 20).sum()

    added = [proof._added(run, CPU) for _ in range(3)]
    if added[0] is not None:
        assert all(each is not None and 15 << 20 < each < 24 << 20 for each in added)


def test_that_boxes_have_no_interval_is_said():
    side = {"parameters": 10, "nonzero": 10, "macs": 5}
    assert proof.remarks(side, side | {"goal_interval": [0.1, 0.2]}) == []
    (said,) = proof.remarks(side, side | {"goal_interval": None})
    assert said == "the goal has no bootstrap interval: boxes are not resampled"


def test_zeros_that_save_no_time_are_named_in_a_stack_that_saves_time_otherwise_too():
    before = {"parameters": 10, "nonzero": 7, "macs": 50}
    (said,) = proof.remarks(before, {"parameters": 5, "nonzero": 3, "macs": 20})
    assert said == "40% of the weights are zero: that saves no time here, for they are multiplied all the same"


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
