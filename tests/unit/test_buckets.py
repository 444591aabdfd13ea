"""Batches of rows of like length: the same rows, in an order that depends on the seed and the epoch alone."""

from dataclasses import replace

import pytest
import torch

from dlrun.data._ragged import Ragged, RaggedSplit
from dlrun.randomness import permutation
from dlrun.training.batches import Feed
from dlrun.training.buckets import bucketed, longest_first
from dlrun.training.distributed import World
from dlrun.training.evaluate import batches

N, BATCH = 5000, 16


class AsTheyAre:
    """Inputs that prepare nothing."""

    def prepare(self, batch):
        return batch


def ragged_split(with_lengths: bool = True, rows: int = N) -> RaggedSplit:
    lengths = (torch.rand(rows, generator=torch.Generator().manual_seed(0)) * 60).long() + 1
    tokens = Ragged(torch.ones(100, dtype=torch.int32), torch.zeros(rows, dtype=torch.int64), lengths)
    return RaggedSplit({"id": torch.arange(rows), "tokens": tokens}, lengths if with_lengths else None)


def feed(split, rank: int = 0, size: int = 1, accumulate: int = 1, seed: int = 0) -> Feed:
    world = World(rank, size, torch.device("cpu"))
    return Feed(split, AsTheyAre(), None, BATCH, accumulate, seed, 0, world, lambda batch: batch)  # type: ignore[arg-type]


def waste(split, made: Feed, epoch: int = 0) -> float:
    """Share of the places of an epoch's batches that hold no token."""
    steps = made.steps_per_epoch
    there = places = 0
    for step in range(epoch * steps, (epoch + 1) * steps):
        for rows in made.rows(step):
            lengths = split.fields["tokens"].lengths_N[rows]
            there, places = there + int(lengths.sum()), places + int(lengths.max()) * len(rows)
    return 1 - there / places


def test_an_epoch_has_every_row_once_and_little_padding():
    plain, sorted_ = ragged_split(with_lengths=False), ragged_split()
    made = feed(sorted_)
    seen = torch.cat([rows for step in range(made.steps_per_epoch) for rows in made.rows(step)])
    assert sorted(seen.tolist()) == list(range(N))
    assert waste(plain, feed(plain)) > 0.4
    assert waste(sorted_, made) < 0.05


def test_the_order_is_a_function_of_seed_and_epoch_and_a_resumed_run_sees_the_same():
    split = ragged_split()
    steps = feed(split).steps_per_epoch
    straight = [feed(split).rows(step)[0] for step in range(2 * steps)]
    again = feed(split)
    assert all(torch.equal(again.rows(step)[0], straight[step]) for step in (2 * steps - 1, 3, steps, 0))
    assert not torch.equal(straight[0], straight[steps])
    assert not torch.equal(feed(split, seed=1).rows(0)[0], straight[0])


@pytest.mark.parametrize(("size", "accumulate"), [(2, 1), (1, 4), (2, 2)])
def test_ranks_and_micro_batches_cover_the_rows_of_one_process(size, accumulate):
    split = ragged_split()
    one = feed(split)
    ranks = [feed(split, rank, size, accumulate) for rank in range(size)]
    for step in (0, 7, one.steps_per_epoch + 1):
        rows = torch.cat([part for rank in ranks for part in rank.rows(step)])
        assert sorted(rows.tolist()) == sorted(one.rows(step)[0].tolist())


def test_batches_of_an_epoch_come_in_no_order_of_length():
    split, made = ragged_split(), feed(ragged_split())
    means = torch.stack([split.lengths[made.rows(step)[0]].double().mean() for step in range(made.steps_per_epoch)])
    places = torch.arange(len(means)).double()
    assert abs(float(torch.corrcoef(torch.stack([means, places]))[0, 1])) < 0.2


def test_rows_that_fill_no_batch_stay_as_they_were_shuffled():
    order, lengths = permutation(37, 0), torch.arange(37)
    found = bucketed(order, lengths, 16, 0)
    assert torch.equal(found[32:], order[32:])
    assert torch.equal(bucketed(order[:5], lengths, 16, 0), order[:5])


def test_one_order_is_never_taken_for_anothers():
    plain, sorted_ = ragged_split(with_lengths=False), ragged_split()
    first = feed(sorted_).rows(0)[0]
    assert not torch.equal(feed(plain).rows(0)[0], first)
    assert torch.equal(feed(sorted_).rows(0)[0], first)
    assert not torch.equal(replace(feed(sorted_), batch_size=32).rows(0)[0][:BATCH], first)


def test_evaluation_goes_from_the_longest_to_the_shortest_and_leaves_none_out():
    split = ragged_split(rows=100)
    parts = [list(batches(split, AsTheyAre(), batch_size=8, place=lambda b: b, rank=r, size=2)) for r in range(2)]  # type: ignore[arg-type]
    ids = torch.cat([batch["id"] for part in parts for batch in part])
    assert sorted(ids.tolist()) == list(range(100))
    widths = [batch["tokens"].shape[1] for batch in parts[0]]
    assert widths == sorted(widths, reverse=True)
    assert torch.equal(longest_first(ragged_split(with_lengths=False, rows=9)), torch.arange(9))


def test_features_of_rows_read_by_length_lie_where_their_rows_are():
    from dlrun.training.features import extract
    from dlrun.training.precision import Precision

    class Mean(torch.nn.Module):
        """The mean place of a row's tokens goes into the head."""

        def __init__(self) -> None:
            super().__init__()
            self.head = torch.nn.Identity()

        def forward(self, tokens):
            return self.head((tokens != 0).sum(1, keepdim=True).float())

    split = ragged_split(rows=50)
    precision = Precision.of("fp32", torch.device("cpu"))
    found = extract(
        Mean(), "head", split, AsTheyAre(), ("tokens",), batch_size=8, place=lambda batch: batch, precision=precision
    )
    assert found.fields["id"].tolist() == list(range(50))
    assert torch.equal(found.fields["features"][:, 0].long(), split.lengths)
