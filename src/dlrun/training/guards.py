"""Contexts around a run: deterministic algorithms, memory errors in one line, signals noted for the loop."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator

import torch

from dlrun.errors import DlrunError, Exit


@contextlib.contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """torch's deterministic algorithms, or an error where an operation has none."""
    before = torch.are_deterministic_algorithms_enabled()
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(wanted or before)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


@contextlib.contextmanager
def memory_errors(device: torch.device, batch_size: int, accumulate: int) -> Iterator[None]:
    """Out of memory as one line, with exit code 5."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise _out_of_memory(device, batch_size, accumulate) from error
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):
            raise
        raise _out_of_memory(device, batch_size, accumulate) from error


def _out_of_memory(device: torch.device, size: int, accumulate: int) -> DlrunError:
    return DlrunError(
        f"out of memory on {device} with {size // accumulate} examples at a time",
        f"train.accumulate={accumulate * 2} keeps the batch and halves the memory, or data.batch_size={size // 2}",
        Exit.MEMORY,
    )


@contextlib.contextmanager
def caught_signals(arrived: list[int]) -> Iterator[None]:
    """SIGINT and SIGTERM are noted for the loop; the second one ends the process now."""

    def note(number: int, _frame: object) -> None:
        if arrived:
            os._exit(128 + number)
        arrived.append(number)

    try:
        before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread (somebody's own program): signals stay theirs
        before = {}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
