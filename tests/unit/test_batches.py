"""The stream of training batches where rows are skipped as bad while they are read."""

from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from dlrun.errors import DlrunError, Exit
from dlrun.training.batches import Feed
from dlrun.training.distributed import World


class AsTheyAre:
    """Inputs that prepare nothing."""

    def prepare(self, batch):
        return batch


@dataclass
class Streamed:
    """Rows that are their ids; those that are bad are left out when they are gathered."""

    count: int
    bad: set[int] = field(default_factory=set)
    in_memory = False

    def __len__(self) -> int:
        return self.count

    def gather(self, rows_B: Tensor):
        return {"id": torch.tensor([row for row in rows_B.tolist() if row not in self.bad], dtype=torch.int64)}


CPU = torch.device("cpu")


def feed(split, batch_size: int, accumulate: int = 1, world: World | None = None, workers: int = 0) -> Feed:
    world = world or World(0, 1, CPU)
    return Feed(split, AsTheyAre(), None, batch_size, accumulate, 0, workers, world, lambda batch: batch)  # type: ignore[arg-type]


def ids(made: Feed, start: int, end: int) -> list[list[list[int]]]:
    """The ids of each micro-batch of each of these steps."""
    steps = made.steps_from(start)
    return [[batch["id"].tolist() for batch in next(steps)] for _ in range(start, end)]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_step_whose_rows_are_all_bad_takes_those_of_the_next_and_a_resumed_run_sees_the_same(workers):
    whole = ids(feed(Streamed(6), 1), 0, 12)
    bad = {*whole[1][0], *whole[2][0]}
    made = feed(Streamed(6, bad), 1, workers=workers)
    expected = [whole[3] if step in (1, 2) else whole[step] for step in range(6)]
    assert ids(made, 0, 6) == expected
    assert [ids(made, start, start + 1)[0] for start in range(6)] == expected


def test_a_micro_batch_of_one_row_is_left_out_where_two_were_asked_for():
    (first, second), *_ = ids(feed(Streamed(8), 4, accumulate=2), 0, 1)
    assert ids(feed(Streamed(8, {first[0]}), 4, accumulate=2), 0, 1) == [[second]]
    assert ids(feed(Streamed(8, {first[0]}), 4), 0, 1) == [[[*first[1:], *second]]]


def test_processes_leave_out_the_same_micro_batches():
    @dataclass(frozen=True)
    class Beside(World):
        """One of two processes; the other lacks rows in its second micro-batch."""

        def totals(self, *numbers):
            return [number + other for number, other in zip(numbers, (0, 1), strict=True)]

    made = feed(Streamed(8), 8, accumulate=2, world=Beside(0, 2, CPU))
    assert ids(made, 0, 1) == [[made.rows(0)[0].tolist()]]


def test_data_without_a_batch_that_has_rows_is_an_error():
    with pytest.raises(DlrunError, match="data: no batch of 5 steps has enough rows that can be read") as error:
        next(feed(Streamed(4, {0, 1, 2, 3}), 1).steps_from(0))
    assert error.value.code == Exit.DATA
