"""The processes of a run: who am I, how many are we, adding numbers up over all of us."""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from dlrun.errors import DlrunError


@dataclass(frozen=True)
class World:
    """This process among the run's processes. Host tensors travel over gloo, so no device is made to wait."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def add_up(self, tensor: Tensor) -> Tensor:
        """Sum a tensor over all ranks, in place; the identity for one process."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def totals(self, *numbers: float) -> list[float]:
        """Each number summed over all ranks."""
        if self.size == 1:
            return list(numbers)
        return self.add_up(torch.tensor(numbers, dtype=torch.float64)).tolist()

    def gather_bytes(self, payload: bytes) -> list[bytes]:
        """Every rank's payload, on every rank, in order of rank."""
        if self.size == 1:
            return [payload]
        lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        dist.all_gather(lengths, torch.tensor([len(payload)]))
        longest = int(max(lengths))
        mine = torch.zeros(longest, dtype=torch.uint8)
        if payload:
            mine[: len(payload)] = torch.frombuffer(bytearray(payload), dtype=torch.uint8)
        parts = [torch.zeros(longest, dtype=torch.uint8) for _ in range(self.size)]
        dist.all_gather(parts, mine)
        return [bytes(part[: int(n)].numpy().tobytes()) for part, n in zip(parts, lengths, strict=True)]

    def gather_rows(self, rows: Tensor) -> Tensor:
        """Every rank's float64 rows [n, k], one after the other in order of rank; the identity for one process."""
        parts = self.gather_bytes(rows.numpy().tobytes())
        return torch.cat(
            [torch.frombuffer(bytearray(p), dtype=torch.float64).reshape(-1, rows.shape[1]) for p in parts if p]
            or [rows]
        )

    def wait_for_all(self) -> None:
        """Return when every rank has come here."""
        if self.size > 1:
            dist.barrier()


def choose_device(wanted: str, local_rank: int = 0) -> torch.device:
    """auto, cpu or cuda to a device. Raises: DlrunError if there is no such device."""
    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise DlrunError(
            "hardware.device: cuda was asked for, and torch sees no GPU here",
            "hardware.device=cpu, or look at: dlrun doctor",
        )
    if local_rank >= torch.cuda.device_count():
        raise DlrunError(
            f"hardware.processes: process {local_rank + 1} has no GPU; there are {torch.cuda.device_count()}",
            f"hardware.processes={torch.cuda.device_count()}",
        )
    return torch.device("cuda", local_rank)


@dataclass(frozen=True)
class Place:
    """Where the launcher put this process."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1


@contextmanager
def joined(timeout_seconds: int) -> Iterator[Place]:
    """Join the processes that a launcher started (RANK is set), or be alone."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield Place()
        return
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if torch.cuda.is_available() and local_rank < torch.cuda.device_count():
        torch.cuda.set_device(local_rank)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, timeout=datetime.timedelta(seconds=timeout_seconds))
    yield Place(dist.get_rank(), size, local_rank, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    dist.destroy_process_group()  # not after an exception: the launcher then ends the other ranks


def limit_threads(threads: int | None, processes_here: int) -> int:
    """Set torch's threads of this process: what was asked for, else OMP_NUM_THREADS (a launcher of several processes
    sets it too, so there it says nothing), else this process's share of the cores."""
    named = os.environ.get("OMP_NUM_THREADS", "") if processes_here == 1 else ""
    share = threads or (int(named) if named.isdigit() else 0) or max(1, available_cores() // processes_here)
    torch.set_num_threads(share)
    return share


def available_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
