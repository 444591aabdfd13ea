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
    parts, notes = divide(100, labels_of(60, 40), {"train", "test"}, HoldOut(0, valid_size=25))
    assert set(parts) == {"train", "valid"}
    assert len(parts["valid"]) == 25
    assert notes == ["valid: 25 rows held out of the 100 of train (stratified by label, seed 0)"]


def test_a_fraction_of_zero_makes_no_split():
    parts, notes = divide(10, labels_of(5, 5), {"train"}, HoldOut(0, valid_fraction=0, test_fraction=0))
    assert set(parts) == {"train"}
    assert notes == []


def test_a_smaller_training_set_is_stratified_part_of_a_larger_one():
    labels = labels_of(60, 40)
    small, large = (divide(100, labels, {"train"}, HoldOut(0, train_size=size))[0]["train"] for size in (20, 40))
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
        divide(10, labels_of(5, 5), {"train"}, hold_out)
    assert error.value.message == message


def test_rows_without_labels_are_drawn_without_a_word_of_stratification():
    parts, notes = divide(50, None, {"train", "test"}, HoldOut(3, valid_size=10))
    assert sorted(np.concatenate(list(parts.values())).tolist()) == list(range(50))
    assert notes == ["valid: 10 rows held out of the 50 of train (seed 3)"]


def test_blocks_are_equal_to_within_a_row_and_keep_their_order():
    hold_out = HoldOut(0, blocks=10, valid_blocks=[6], test_blocks=[8, 4])
    parts, notes = divide(1014, None, {"train"}, hold_out)
    assert parts["valid"].tolist() == list(range(608, 709))
    assert parts["test"].tolist() == [*range(405, 507), *range(811, 912)]
    assert sorted(np.concatenate(list(parts.values())).tolist()) == list(range(1014))
    assert notes == [
        "test: 203 rows, blocks 4 and 8 of 10 equal ones in the order of the rows",
        "valid: 101 rows, block 6 of 10 equal ones in the order of the rows",
    ]


def test_blocks_that_are_not_named_train_and_no_split_is_made_of_none():
    parts, _ = divide(20, labels_of(10, 10), {"train"}, HoldOut(0, blocks=4, test_blocks=[3]))
    assert {name: len(rows) for name, rows in parts.items()} == {"train": 15, "test": 5}


def test_a_smaller_training_set_is_drawn_from_the_blocks_that_train():
    parts, _ = divide(40, None, {"train"}, HoldOut(0, blocks=4, test_blocks=[0], train_size=12))
    assert len(parts["train"]) == 12
    assert parts["train"].min() >= 10


@pytest.mark.parametrize(
    ("settings", "given", "message"),
    [
        ({"blocks": 1}, set(), "data.blocks: 1 is not between 2 and the 20 rows there are"),
        ({"blocks": 21}, set(), "data.blocks: 21 is not between 2 and the 20 rows there are"),
        ({"blocks": 4, "test_blocks": [4]}, set(), "data.test_blocks: 4 is none of the blocks 0..3"),
        ({"blocks": 4, "test_blocks": ["b"]}, set(), "data.test_blocks: 'b' is none of the blocks 0..3"),
        ({"blocks": 4, "test_blocks": [1], "valid_blocks": [1]}, set(), "block 1 is held out already, for test"),
        ({"blocks": 4, "test_blocks": [1, 1]}, set(), "data.test_blocks: block 1 is held out already, for test"),
        ({"blocks": 2, "test_blocks": [0], "valid_blocks": [1]}, set(), "none is left to train on"),
        ({"blocks": 4, "test_blocks": [1]}, {"test"}, "data.test_blocks: the data has a test split already"),
        ({"blocks": 4, "valid_size": 3}, set(), "data.valid_size does not go with data.blocks"),
        ({"valid_blocks": [1]}, set(), "data.valid_blocks is set, and data.blocks is not"),
    ],
)
def test_impossible_blocks_are_named(settings, given, message):
    with pytest.raises(DlrunError) as error:
        divide(20, None, {"train"} | given, HoldOut(0, **settings))
    assert message in error.value.message
