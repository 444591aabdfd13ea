"""Held-out splits: stratified, seeded, disjoint, and as large as asked for."""

import numpy as np
import pytest

from dlrun.data._splits import HoldOut, divide, stratified
from dlrun.errors import DlrunError, Exit


def labels_of(*counts: int) -> np.ndarray:
    """Labels with these many rows of each class, shuffled."""
    labels = np.repeat(np.arange(len(counts)), counts)
    return labels[np.random.default_rng(0).permutation(len(labels))]


def test_splits_are_disjoint_and_together_are_all_rows():
    labels = labels_of(50, 30, 20)
    parts = stratified(labels, {"test": 20, "valid": 13}, seed=0)
    assert sorted(np.concatenate(list(parts.values())).tolist()) == list(range(100))
    assert {name: len(rows) for name, rows in parts.items()} == {"test": 20, "valid": 13, "train": 67}


def test_every_class_gets_its_share_to_within_a_row():
    labels = labels_of(500, 300, 137, 63)
    parts = stratified(labels, {"test": 150, "valid": 101}, seed=3)
    for name, size in (("test", 150), ("valid", 101)):
        share = np.bincount(labels) * size / len(labels)
        assert np.abs(np.bincount(labels[parts[name]], minlength=4) - share).max() < 1


def test_the_same_seed_gives_the_same_rows_and_another_seed_others():
    labels = labels_of(60, 40)
    first, again, other = (stratified(labels, {"test": 20}, seed)["test"] for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_rows_are_drawn_from_all_over_the_file():
    rows = stratified(np.zeros(1000, dtype=np.int64), {"test": 100}, seed=0)["test"]
    assert (rows < 500).sum() in range(30, 71)


def test_train_keeps_a_row_of_every_class():
    labels = labels_of(2, 2, 40)
    parts = stratified(labels, {"test": 20, "valid": 20}, seed=0)
    assert set(labels[parts["train"]]) == {0, 1, 2}


def test_too_few_rows_to_hold_out_is_an_error_that_says_how_many_can_be_spared():
    with pytest.raises(DlrunError, match="a test split of 3 rows cannot be made: 2 rows can be spared") as error:
        stratified(labels_of(2, 2), {"test": 3}, seed=0)
    assert error.value.code == Exit.DATA
    assert "data.test_fraction=0" in error.value.hint


def test_a_given_split_is_not_made_again_and_a_size_wins_over_a_fraction():
    parts, notes = divide(labels_of(60, 40), {"train", "test"}, HoldOut(0, valid_size=25))
    assert set(parts) == {"train", "valid"}
    assert len(parts["valid"]) == 25
    assert notes == ["valid: 25 rows held out of the 100 of train (stratified by label, seed 0)"]


def test_a_fraction_of_zero_makes_no_split():
    parts, notes = divide(labels_of(5, 5), {"train"}, HoldOut(0, valid_fraction=0, test_fraction=0))
    assert set(parts) == {"train"}
    assert notes == []


def test_a_smaller_training_set_is_stratified_part_of_a_larger_one():
    labels = labels_of(60, 40)
    small, large = (divide(labels, {"train"}, HoldOut(0, train_size=size))[0]["train"] for size in (20, 40))
    assert np.bincount(labels[small]).tolist() == [12, 8]
    assert set(small) < set(large)


@pytest.mark.parametrize(
    ("hold_out", "message"),
    [
        (HoldOut(0, valid_fraction=1.0), "data.valid_fraction: 1.0 is not in [0, 1)"),
        (HoldOut(0, test_size=10), "data.test_size: 10 is not between 0 and the 10 rows there are"),
        (HoldOut(0, train_size=9), "data.train_size: 9 is not between 1 and the 8 training rows there are"),
    ],
)
def test_impossible_sizes_are_named(hold_out, message):
    with pytest.raises(DlrunError) as error:
        divide(labels_of(5, 5), {"train"}, hold_out)
    assert error.value.message == message
