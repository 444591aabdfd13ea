"""Schedules against torch's own, by hand, and what they refuse."""

from __future__ import annotations

import pytest
import torch
from torch.optim import lr_scheduler

from dlrun.errors import DlrunError
from dlrun.schedules import constant, cosine, exponential, linear, one_cycle, step

STEPS = 40


def torchs(make, **settings) -> list[float]:
    """The factors a torch scheduler gives at steps 0 to STEPS."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    scheduler = make(optimizer, **settings)
    factors = []
    for _ in range(STEPS + 1):
        factors.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if len(factors) <= STEPS:
            scheduler.step()
    return factors


@pytest.mark.parametrize(("schedule", "reference"), [
    (constant.build(STEPS), lambda: torchs(lr_scheduler.ConstantLR, factor=1.0)),
    (step.build(STEPS, milestones=(0.5, 0.75), gamma=0.1),
     lambda: torchs(lr_scheduler.MultiStepLR, milestones=[20, 30], gamma=0.1)),
    (exponential.build(STEPS, final=0.01), lambda: torchs(lr_scheduler.ExponentialLR, gamma=0.01 ** (1 / STEPS))),
    (cosine.build(STEPS, final=0.2), lambda: torchs(lr_scheduler.CosineAnnealingLR, T_max=STEPS, eta_min=0.2)),
    (linear.build(STEPS, final=0.2),
     lambda: torchs(lr_scheduler.LinearLR, start_factor=1.0, end_factor=0.2, total_iters=STEPS)),
    # torch counts STEPS + 1 positions, and puts the peak one step before pct_start of them.
    (one_cycle.build(STEPS, rise=0.25, start_divisor=20, final_divisor=1000),
     lambda: torchs(lr_scheduler.OneCycleLR, max_lr=1.0, total_steps=STEPS + 1, pct_start=11 / 41, div_factor=20,
                    final_div_factor=1000, cycle_momentum=False)),
], ids=["constant", "step", "exponential", "cosine", "linear", "one_cycle"])  # fmt: skip
def test_schedule_equals_torchs(schedule, reference):
    assert [schedule(position) for position in range(STEPS + 1)] == pytest.approx(reference(), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("module", [constant, step, exponential, cosine, linear, one_cycle])
def test_schedule_is_a_function_of_the_position_alone(module):
    schedule = module.build(STEPS)
    forwards = [schedule(position) for position in (0, 7.5, 20, 40)]
    backwards = [schedule(position) for position in (40, 20, 7.5, 0)][::-1]
    assert forwards == backwards
    assert schedule(-1) == schedule(0)
    assert schedule(STEPS + 100) == schedule(STEPS)
    assert module.build(10 * STEPS)(75) == pytest.approx(schedule(7.5))


def test_schedules_reach_their_final_factor():
    assert exponential.build(STEPS, final=0.05)(STEPS) == pytest.approx(0.05)
    assert cosine.build(STEPS, final=0.05)(STEPS) == pytest.approx(0.05)
    assert linear.build(STEPS, final=0.05)(STEPS) == pytest.approx(0.05)
    assert one_cycle.build(STEPS, start_divisor=10, final_divisor=100)(STEPS) == pytest.approx(0.001)


def test_one_cycle_peaks_where_it_is_told_to():
    schedule = one_cycle.build(STEPS, rise=0.25, start_divisor=10)
    assert schedule(0) == pytest.approx(0.1)
    assert schedule(10) == pytest.approx(1.0)
    assert max(range(STEPS + 1), key=schedule) == 10


@pytest.mark.parametrize("rise", [0.0, 1.0])
def test_one_cycle_may_only_fall_or_only_rise(rise):
    schedule = one_cycle.build(STEPS, rise=rise)
    assert schedule(rise * STEPS) == pytest.approx(1.0)


@pytest.mark.parametrize("total", [10, 30, 70, 1000])
def test_milestones_fall_on_their_step_in_spite_of_rounding(total):
    for milestone in (0.1, 0.3, 0.6, 0.7, 0.9):
        schedule = step.build(total, milestones=[milestone])
        first = round(milestone * total)
        assert (schedule(first - 1), schedule(first)) == (1.0, 0.1)


def test_a_run_of_no_steps_is_at_its_end():
    assert cosine.build(0, final=0.5)(0) == pytest.approx(0.5)


@pytest.mark.parametrize(("module", "settings", "message"), [
    (step, {"milestones": [0.5, 320]}, "schedule.milestones: expected fractions of the run in [0, 1], got [0.5, 320]"),
    (step, {"gamma": 0.0}, "schedule.gamma: expected a number above 0, got 0.0"),
    (exponential, {"final": 0.0}, "schedule.final: expected a number in (0, 1], got 0.0"),
    (cosine, {"final": -0.1}, "schedule.final: expected a number in [0, 1], got -0.1"),
    (linear, {"final": 2.0}, "schedule.final: expected a number in [0, 1], got 2.0"),
    (one_cycle, {"rise": 30.0}, "schedule.rise: expected a fraction of the run in [0, 1], got 30.0"),
    (one_cycle, {"start_divisor": 0.5}, "schedule.start_divisor: expected a number of at least 1, got 0.5"),
])  # fmt: skip
def test_settings_out_of_range_are_named(module, settings, message):
    with pytest.raises(DlrunError) as caught:
        module.build(STEPS, **settings)
    assert str(caught.value) == message
