"""The processes of a sweep: started once, given one run after another, ended with the sweep."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from dlrun.registry import Registry


class Process(Protocol):
    """A worker's process on this machine, or a job on another."""

    def say(self, text: str) -> None: ...

    def hear(self) -> Iterator[str]: ...

    def hang_up(self) -> None:
        """Nothing more will be said: a worker that is free then ends."""
        ...

    def terminate(self) -> None: ...

    def end(self, patience_seconds: float) -> str:
        """Wait for its end, force it after a while; in words how it ended."""
        ...


@dataclass(eq=False)
class Worker:
    """One process. job: what the sweep keeps of the trial it trains; None: it is free."""

    index: int
    process: Process
    job: Any = None
    latest: dict[str, Any] = field(default_factory=dict)

    def send(self, **order: Any) -> None:
        """Give an order or an answer; a worker that is gone is noticed when its silence is read."""
        with contextlib.suppress(OSError, ValueError):
            self.process.say(json.dumps(order) + "\n")


class Workers:
    """The workers of one sweep and the one queue of what they say: (worker, event), or (worker, None) at its death."""

    def __init__(self, count: int, registry: Registry, folder: Path, gpus: int, hardware: Mapping[str, Any]) -> None:
        self.heard: queue.Queue[tuple[Worker, dict[str, Any] | None]] = queue.Queue()
        self._components, self._folder, self._gpus, self._count = registry.components, folder, gpus, count
        self._processes = int(hardware.get("processes", 1))
        self._cluster = None
        if hardware.get("launcher") == "slurm":
            from dlrun.commands._sweep_slurm import Cluster

            self._cluster = Cluster(folder, hardware["slurm"])
        self.all = [self._start(index) for index in range(count)]

    def replace(self, dead: Worker) -> Worker:
        """A new process in place of one that died."""
        self.all[dead.index] = self._start(dead.index)
        return self.all[dead.index]

    def close(self, patience_seconds: float = 5.0) -> None:
        """End every worker: those that train save first."""
        for worker in self.all:
            end = worker.process.terminate if worker.job is not None else worker.process.hang_up
            with contextlib.suppress(OSError):
                end()
        for worker in self.all:
            worker.process.end(patience_seconds)
        if self._cluster is not None:
            self._cluster.close()

    def _start(self, index: int) -> Worker:
        command = [sys.executable, "-m", "dlrun.trials"]
        command += ["--components", str(self._components)] if self._components else []
        worker = Worker(index, self._cluster.submit(command) if self._cluster else self._local(command, index))
        threading.Thread(target=self._listen, args=(worker,), daemon=True, name=f"dlrun-worker-{index}").start()
        return worker

    def _local(self, command: list[str], index: int) -> Process:
        environment = dict(os.environ)
        if cores := self._cores(index):
            command += ["--cores", ",".join(map(str, cores))]
            environment["OMP_NUM_THREADS"] = str(len(cores))
        if self._gpus:
            there = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(self._gpus)))).split(",")
            mine = [there[place] for place in devices(index, self._processes, len(there))]
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(mine)
        return LocalProcess(command, self._folder / "workers.log", environment)

    def _cores(self, index: int) -> list[int]:
        """This worker's share of the cores; several workers share one where there are fewer."""
        if not hasattr(os, "sched_getaffinity") or self._count == 1:
            return []
        cores = sorted(os.sched_getaffinity(0))
        each = len(cores) // self._count
        return cores[index * each : (index + 1) * each] if each else [cores[index % len(cores)]]

    def _listen(self, worker: Worker) -> None:
        for line in worker.process.hear():
            with contextlib.suppress(json.JSONDecodeError):
                self.heard.put((worker, json.loads(line)))
        self.heard.put((worker, None))


def devices(index: int, processes: int, gpus: int) -> list[int]:
    """The places of a worker's GPUs: one for each process of a trial, as far as there are so many; workers beyond
    share."""
    return sorted({(index * processes + rank) % gpus for rank in range(processes)})


class LocalProcess:
    """A process of this machine, spoken with through its pipes."""

    def __init__(self, command: list[str], log: Path, environment: Mapping[str, str]) -> None:
        with open(log, "ab") as output:
            self._popen = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=output, text=True, env=environment,
                start_new_session=True,  # Ctrl-C is ours alone; we tell them
            )  # fmt: skip
        assert self._popen.stdin is not None and self._popen.stdout is not None
        self._to, self._from = self._popen.stdin, self._popen.stdout

    def say(self, text: str) -> None:
        """Write to its standard input."""
        self._to.write(text)
        self._to.flush()

    def hear(self) -> Iterator[str]:
        """The lines it writes, until its end."""
        return iter(self._from)

    def hang_up(self) -> None:
        """Close its standard input."""
        self._to.close()

    def terminate(self) -> None:
        """SIGTERM: it saves and ends."""
        self._popen.terminate()

    def end(self, patience_seconds: float) -> str:
        """Wait; kill it after a while."""
        import signal

        try:
            code = self._popen.wait(patience_seconds)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            code = self._popen.wait()
        return signal.Signals(-code).name if code < 0 else f"code {code}"
