"""Durations and what they come to in steps."""

import pytest

from dlrun.config.durations import Duration
from dlrun.errors import DlrunError


@pytest.mark.parametrize(
    ("text", "value", "unit"),
    [
        ("10 epochs", 10, "epochs"), ("1 epoch", 1, "epochs"), ("0.5 epochs", 0.5, "epochs"),
        (".5epochs", 0.5, "epochs"),
        ("5000 steps", 5000, "steps"), ("1e3 steps", 1000, "steps"), (" 7  STEP ", 7, "steps"),
        ("30 minutes", 1800, "seconds"), ("2 h", 7200, "seconds"), ("90 s", 90, "seconds"), ("1.5 min", 90, "seconds"),
        ("5 %", 5, "percent"), ("5%", 5, "percent"), ("2 percent", 2, "percent"), ("0 steps", 0, "steps"),
    ],
)  # fmt: skip
def test_a_duration_is_a_number_and_a_unit(text, value, unit):
    read = Duration.parse(text)
    assert (read.value, read.unit) == (value, unit)
    assert str(read) == text.strip()


@pytest.mark.parametrize(
    "text", ["", "10", "epochs", "-5 epochs", "five epochs", "1 2 epochs", "1,5 epochs", "nan steps", "5 ½"]
)
def test_anything_else_is_refused_with_an_example(text):
    with pytest.raises(DlrunError, match="is not a duration") as caught:
        Duration.parse(text)
    assert '"10 epochs"' in caught.value.hint


@pytest.mark.parametrize(("text", "meant"), [("3 epocs", "epochs"), ("3 stps", "steps"), ("3 minuts", "minutes")])
def test_a_misspelt_unit_gets_the_nearest_one(text, meant):
    with pytest.raises(DlrunError, match="has an unknown unit") as caught:
        Duration.parse(text)
    assert caught.value.hint == f"did you mean {meant}?"


def test_a_number_beyond_all_bounds_is_refused():
    with pytest.raises(DlrunError, match="is not a finite duration"):
        Duration.parse("1e999 steps")


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("3 epochs", 300), ("0.25 epochs", 25), ("0.1 epochs", 10), ("0.001 epochs", 1), ("7 steps", 7),
        ("6.5 steps", 7),
        ("0 epochs", 0), ("0 %", 0), ("10 %", 50), ("0.1 %", 1), ("33.3 %", 167), ("100 %", 500),
    ],
)  # fmt: skip
def test_steps_are_rounded_up_and_never_fall_to_nothing(text, steps):
    assert Duration.parse(text).steps(per_epoch=100, total=500) == steps


def test_tenths_of_an_epoch_are_not_lost_to_rounding():
    for tenths in range(1, 11):
        assert Duration.parse(f"{tenths / 10} epochs").steps(per_epoch=10) == tenths


@pytest.mark.parametrize("text", ["30 minutes", "5 %"])
def test_a_unit_that_means_nothing_here_is_refused(text):
    with pytest.raises(DlrunError, match="cannot be counted in steps here"):
        Duration.parse(text).steps(per_epoch=100)
