"""The stream of training batches: a pure function of (seed, step), in memory or through loader workers.

Step s takes rows [i*B, (i+1)*B) of the order of its epoch, cut into one micro-batch for each process and
each accumulation; the last batch of an epoch may be smaller. Rows that differ in length share a batch with
rows of like length.
"""

from __future__ import annotations

import ctypes
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from dlrun.contracts import NO_TARGET, Augmentation, Batch, Inputs, Split, WithLengths, num_tokens
from dlrun.errors import DlrunError, Exit
from dlrun.randomness import Draws, permutation
from dlrun.training.buckets import bucketed
from dlrun.training.distributed import World


@dataclass(frozen=True)
class Feed:
    """All that decides which examples a step sees, and how they arrive on the device."""

    split: Split
    inputs: Inputs
    augment: Augmentation | None
    batch_size: int
    accumulate: int
    seed: int
    workers: int
    world: World
    place: Callable[[Batch], Batch]
    same_batch: bool = False  # overfit-one-batch: every step sees step 0's

    def __post_init__(self) -> None:
        parts, rows = self.world.size * self.accumulate, len(self.split)
        if self.batch_size % parts:
            fits = max(parts, self.batch_size // parts * parts)
            raise DlrunError(
                f"data.batch_size: {self.batch_size} cannot be split over {self.world.size} processes x "
                f"{self.accumulate} micro-batches",
                f"use data.batch_size={fits} or train.accumulate=1",
            )
        if self.batch_size > rows:
            raise DlrunError(
                f"data.batch_size: {self.batch_size} is larger than the {rows} training examples",
                f"use data.batch_size={max(1, min(rows, 2 ** (rows.bit_length() - 2)))}",
            )

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of one pass. A last batch with under two rows for each micro-batch is left out
        (batch statistics of one row do not exist)."""
        full, rest = divmod(len(self.split), self.batch_size)
        return full + (rest >= 2 * self.world.size * self.accumulate)

    def rows(self, step: int) -> list[Tensor]:
        """This process's row numbers of a step, one tensor a micro-batch."""
        epoch, index = divmod(0 if self.same_batch else step, self.steps_per_epoch)
        rows = self._order(epoch)[index * self.batch_size : (index + 1) * self.batch_size]
        parts = rows.tensor_split(self.world.size * self.accumulate)
        return list(parts[self.world.rank :: self.world.size])

    def _order(self, epoch: int) -> Tensor:
        lengths = self.split.lengths if isinstance(self.split, WithLengths) else None
        key = (len(self.split), self.batch_size, self.seed, epoch)
        if _last_order.get("key") != key or _last_order["lengths"] is not lengths:
            order = permutation(len(self.split), "order", self.seed, epoch)
            if lengths is not None:
                order = bucketed(order, lengths, self.batch_size, self.seed, epoch)
            _last_order.update(key=key, lengths=lengths, order=order)
        return _last_order["order"]

    def steps_from(self, step: int) -> Iterator[list[Batch]]:
        """Micro-batches of step, step + 1, … on the device, augmented and prepared; without end.

        Micro-batches that bad rows left too few of are left out; a step without any takes those of the next that has
        some, so that a step's examples stay a function of its number.
        """
        fetch = self._stream(step) if self.workers and not self.split.in_memory else self._in_process(step)
        waiting = 0
        for fetched in fetch:
            micro_batches, waiting = self._large_enough(fetched), waiting + 1
            if not micro_batches and waiting > self.steps_per_epoch:
                raise DlrunError(
                    f"data: no batch of {waiting} steps has enough rows that can be read",
                    "mend the data, or use a larger data.batch_size",
                    Exit.DATA,
                )
            for _ in range(waiting if micro_batches else 0):
                yield [self._finish(batch, step) for batch in micro_batches]
                step, waiting = step + 1, waiting - 1

    def _large_enough(self, micro_batches: list[Batch]) -> list[Batch]:
        """Without those of under two rows (or none, where one was asked for) here or in another process.

        The processes agree, as they share gradients once for each.
        """
        if self.split.in_memory:
            return micro_batches  # bad rows are in no split that is held
        least = min(2, self.batch_size // (self.world.size * self.accumulate))
        lacking = self.world.totals(*(len(batch["id"]) < least for batch in micro_batches))
        return [batch for batch, lacks in zip(micro_batches, lacking, strict=True) if not lacks]

    def _in_process(self, step: int) -> Iterator[list[Batch]]:
        while True:
            yield [self.split.gather(rows) for rows in self.rows(step)]
            step += 1

    def _stream(self, step: int) -> Iterator[list[Batch]]:
        loader = torch.utils.data.DataLoader(
            _Steps(self), sampler=_Count(step), batch_size=None, num_workers=self.workers, prefetch_factor=2,
            pin_memory=self.world.device.type == "cuda", worker_init_fn=_die_with_parent,
            multiprocessing_context="fork",  # other start methods would have to pickle a user's own components
        )  # fmt: skip
        for fetched in loader:
            if isinstance(fetched, DlrunError):
                raise fetched
            yield fetched

    def _finish(self, batch: Batch, step: int) -> Batch:
        batch = self.place(batch)
        if self.augment is not None and not self.same_batch:
            draws = Draws(batch["id"], seed=self.seed, epoch=step // self.steps_per_epoch, step=step)
            batch = self.augment(batch, draws)
        return self.inputs.prepare(batch)


_last_order: dict = {}  # one epoch's order, so that it is made once and not at every step


class _Steps(torch.utils.data.Dataset):
    def __init__(self, feed: Feed) -> None:
        self.feed = feed

    def __getitem__(self, step: int) -> list[Batch] | DlrunError:
        try:
            return [self.feed.split.gather(rows) for rows in self.feed.rows(step)]
        except DlrunError as error:  # raised here it would reach the user as a worker's traceback
            return error


class _Count(torch.utils.data.Sampler):
    """step, step + 1, …"""

    def __init__(self, start: int) -> None:
        self.start = start

    def __iter__(self) -> Iterator[int]:
        step = self.start
        while True:
            yield step
            step += 1


def _die_with_parent(_worker: int) -> None:
    """Linux: a loader worker is killed with its parent, even while it hangs in a read."""
    try:
        ctypes.CDLL("libc.so.6").prctl(1, signal.SIGKILL)  # 1 is PR_SET_PDEATHSIG
    except OSError:
        return  # not Linux: workers notice by themselves within seconds


def chain(augmentations: list[Augmentation]) -> Augmentation | None:
    """Augmentations in order, each with draws of its own; None if there are none."""
    if not augmentations:
        return None

    def augment(batch: Batch, draws: Draws) -> Batch:
        for stream, operation in enumerate(augmentations):
            batch = operation(batch, draws.for_stream(stream))
        return batch

    return augment


def placer(device: torch.device, channels_last: bool) -> Callable[[Batch], Batch]:
    """Moves a batch to the device; pictures in channels-last memory format if asked for.

    Targets and tokens are counted before: asking the device would wait until it has done all that was asked of it so
    far.
    """

    def place(batch: Batch) -> Batch:
        if device.type != "cpu":
            counted = {"num_targets": (batch["targets"] != NO_TARGET).sum(1)} if "targets" in batch else {}
            counted |= {"num_tokens": tokens_B} if (tokens_B := num_tokens(batch)) is not None else {}
            batch = {name: value.to(device, non_blocking=True) for name, value in batch.items()} | counted
        if channels_last:
            batch = {
                name: value.contiguous(memory_format=torch.channels_last) if value.dim() == 4 else value
                for name, value in batch.items()
            }
        return batch

    return place
